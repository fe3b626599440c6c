"""Settings: the order of their sources, unknown keys, secrets on the screen, and addresses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from deploy.configuration import check_prefix, environment_variable, read_configuration, shown, split_address
from schemas.errors import ConfigurationError

STACK = {"kafka": "stack:1", "redis": "redis://stack:2", "prefix": "stacked", "processes": []}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA", "REDIS", "PREFIX", "CONFIG"):
        monkeypatch.delenv(f"HEADRACE_{name}", raising=False)
    return tmp_path


def settings(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[Any, str]]:
    assert run([*arguments, "--print-config", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {name: (setting["value"], setting["origin"]) for name, setting in printed.items()}


def with_file(folder: Path, text: str) -> str:
    file = folder / "headrace.toml"
    file.write_text(text)
    return str(file)


def with_stack(folder: Path) -> None:
    (folder / ".headrace").mkdir()
    (folder / ".headrace" / "stack.json").write_text(json.dumps(STACK))


def test_option_beats_environment_beats_file_beats_stack_beats_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings(capsys, "poll", "x")["kafka"] == (None, "default")
    with_stack(folder)
    assert settings(capsys, "poll", "x")["kafka"] == ("stack:1", "stack")
    file = with_file(folder, 'kafka = "file:1"\nprefix = "filed"\n[poll]\nkafka = "table:1"\n')
    assert settings(capsys, "poll", "x", "--config", file)["kafka"] == ("table:1", "file")
    assert settings(capsys, "send", "a", "b", "--config", file)["kafka"] == ("file:1", "file")
    monkeypatch.setenv("HEADRACE_KAFKA", "environment:1")
    monkeypatch.setenv("HEADRACE_CONFIG", file)
    found = settings(capsys, "poll", "x")
    assert found["kafka"] == ("environment:1", "environment")
    assert found["prefix"] == ("filed", "file")
    assert settings(capsys, "poll", "x", "--kafka", "option:1")["kafka"] == ("option:1", "option")


def test_another_kafka_than_the_stack_s_leaves_its_redis_and_prefix_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_stack(folder)
    found = settings(capsys, "poll", "x", "--kafka", "other:1")
    assert found["redis"] == (None, "default")
    assert found["prefix"] == ("headrace", "default")
    assert settings(capsys, "poll", "x", "--redis", "redis://other:1")["prefix"] == ("stacked", "stack")


def test_every_option_has_its_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_MEMORY_BYTES_MAX", "2GiB")
    monkeypatch.setenv("HEADRACE_ALLOW_CPU", "true")
    monkeypatch.setenv("HEADRACE_PROVIDERS", "A B")
    monkeypatch.setenv("HEADRACE_ACCELERATOR", "gpu")
    assert run(["worker", "--print-config"]) == 0
    rows = {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert rows["memory_bytes_max"] == [str(2 << 30), "environment"]
    assert rows["allow_cpu"] == ["True", "environment"]
    assert rows["accelerator"] == ["gpu", "environment"]
    assert rows["http"] == ["default"]
    assert environment_variable("ready-file") == "HEADRACE_READY_FILE"


def test_client_options_of_the_file_pass_through_and_secrets_are_masked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = with_file(
        folder,
        'redis = "rediss://user:hidden@host:1/0"\n[kafka_options]\nsecurity_protocol = "SASL_SSL"\nsasl_plain_password = "hidden"\n',
    )
    assert run(["poll", "x", "--config", file, "--print-config", "--json"]) == 0
    out = capsys.readouterr().out
    assert "hidden" not in out
    printed = json.loads(out)
    assert printed["kafka_options"]["value"] == {"security_protocol": "SASL_SSL", "sasl_plain_password": "***"}
    assert printed["redis"]["value"] == "rediss://user:***@host:1/0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('kafak = "x:1"', ["unknown key 'kafak' at the top level", "did you mean 'kafka'?"]),
        ("[pol]\nwait_ms = 1", ["unknown table [pol]", "'poll'"]),
        ("[poll]\nwiat_ms = 1", ["unknown key 'wiat_ms' in [poll]", "'wait_ms'"]),
        ("[poll]\nwait_ms = [1]", ["'wait_ms' is one value, not a list"]),
        ("[poll.wait_ms]\na = 1", ["not a table"]),
        ("wait_ms = 1", ["at the top level"]),
        ('config = "other.toml"', ["unknown key 'config'"]),
        ("a = ", ["not valid TOML"]),
        ("a = 1\nb = 2", ["'a'", "'b'"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told(folder: Path, text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = with_file(folder, text)
    assert run(["poll", "x", "--config", file]) == 1
    told = capsys.readouterr().err
    assert file in told
    assert all(word in told for word in words), told


def test_a_list_is_for_options_that_repeat(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = with_file(folder, '[worker]\naccelerator = "gpu"\nproviders = ["A", "B"]\n')
    assert run(["worker", "--config", good, "--print-config"]) == 0
    assert "['A', 'B']" in capsys.readouterr().out
    bad = with_file(folder, '[worker]\naccelerator = "gpu"\nproviders = "A"\n')
    assert run(["worker", "--config", bad, "--print-config"]) == 1
    assert "'providers' is a list" in capsys.readouterr().err


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml: cannot be read: No such file"):
        read_configuration(folder / "none.toml", command="poll", options=(), shared=(), commands=())


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:70000", "http://host:1", "a b:1", "host:1:2"])
def test_what_is_no_address_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        split_address(address)
    assert run(["get", "plan", "--kafka", address]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_addresses_have_hosts_of_every_kind() -> None:
    assert split_address("127.0.0.1:9092") == ("127.0.0.1", 9092)
    assert split_address("[::1]:0") == ("::1", 0)
    assert split_address("kafka-0.kafka_headless:9092") == ("kafka-0.kafka_headless", 9092)


@pytest.mark.parametrize("prefix", ["", "a b", "-a", "a" * 65, "a/b"])
def test_what_kafka_would_not_take_in_a_name_is_no_prefix(prefix: str) -> None:
    with pytest.raises(ConfigurationError):
        check_prefix(prefix)


def test_only_secrets_are_masked() -> None:
    assert shown("ssl_certfile", "a.pem") == "a.pem"
    assert shown("x", {"password": None, "auth_token": "t"}) == {"password": None, "auth_token": "***"}
    assert shown("redis", "redis://host:1") == "redis://host:1"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("payload_byte_max = 5", "unknown key 'payload_byte_max' in \\[limits\\].*payload_bytes_max"),
        ("rows_max = 0", "rows_max in \\[limits\\] is a whole number from 1, not 0"),
        ('rows_max = "many"', "not 'many'"),
        ("response_ttl_ms = 1000", "at least 600000"),
    ],
)
def test_limits_that_are_none_are_refused(tmp_path: Path, table: str, words: str) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(f"[limits]\n{table}\n")
    with pytest.raises(ConfigurationError, match=words):
        read_configuration(file, command="sink", options=(), shared=(), commands=("sink",))


def test_limits_of_a_file_reach_the_roles(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("[limits]\nrows_max = 7\n")
    found = read_configuration(file, command="sink", options=(), shared=(), commands=("sink",))
    assert found.client_options["limits"].rows_max == 7

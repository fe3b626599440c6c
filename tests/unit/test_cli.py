"""The command line without servers: help, near misses, exit codes, one clear line for every failure, and what `up` would run."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest

from deploy import cli, request_files
from deploy.commands.role_options import Bytes
from deploy.request_files import read_request
from deploy.stack_plan import UpOptions, parse_ranges, plan_stack, start_counts
from schemas.errors import BadRequest, ConfigurationError
from schemas.limits import Limits
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA", "REDIS", "PREFIX", "CONFIG"):
        monkeypatch.delenv(f"HEADRACE_{name}", raising=False)
    return tmp_path


def all_commands() -> list[list[str]]:
    """The words of every command and sub-command."""
    found: list[list[str]] = []
    ctx = click.Context(cli.headrace)
    for name in cli.headrace.list_commands(ctx):
        command = cli.headrace.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [[name, inner] for inner in command.list_commands(ctx)]
        else:
            found.append([name])
    return found


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*words, "--help"]) == 0
    told = capsys.readouterr().out
    assert re.search(rf"^\s*(\w+=\S+ |.*\| )?headrace {' '.join(words)}\b", told, re.MULTILINE), told
    assert "--print-config" in told
    assert "HEADRACE_KAFKA" in told or "--kafka" in told


def test_the_commands_of_the_design_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    told = capsys.readouterr().out
    for name in ("up", "status", "down", "apply", "get", "delete", "send", "poll", "dispatcher", "worker", "sink", "scaler", "profile", "deadletter"):
        assert re.search(rf"^  {name} ", told, re.MULTILINE), name


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert metadata.version("headrace") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["wroker"], "no such command 'wroker'; did you mean 'worker'?"),
        (["get", "enpoints"], "endpoints"),
        (["worker", "--acelerator", "cpu"], "--accelerator"),
        (["worker"], "--accelerator"),
        (["worker", "--accelerator", "tpu"], "'tpu' is not one of"),
        (["worker", "--accelerator", "cpu", "--name", "a b"], "'a b': letters"),
        (["worker", "--accelerator", "gpu", "--memory-max", "lots"], "'lots' is not a size"),
        (["sink", "--redis", "host:6379"], "redis://HOST:PORT"),
        (["apply"], "FILE"),
        (["send", "a", "b", "--min-accuracy", "1.1"], "0.0<=x<=1.0"),
        (["up", "--workers", "cpu=x"], "0 to 16 workers"),
        (["up", "--prefix", "a b"], "prefix"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_right(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("words", [["get", "plan"], ["dispatcher"], ["send", "a", "-"], ["apply", "x.yaml"], ["deadletter", "list"], ["sink"]])
def test_without_an_address_it_says_what_to_do(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert all(word in told for word in ("--kafka", "HEADRACE_KAFKA", "headrace up"))


def test_with_json_an_error_is_a_json_object_on_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["poll", "x", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["code"] == "configuration"
    assert "--redis" in json.loads(printed.out)["error"]["message"]
    assert printed.err.startswith("headrace: no Redis")


def broken() -> None:
    raise ZeroDivisionError("by zero")


def test_a_defect_is_one_line_and_a_traceback_only_with_debug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("deploy.commands.stack.local.stop", lambda _folder: broken())
    assert cli.run(["down"]) == 1
    quiet = capsys.readouterr().err
    assert quiet.count("\n") == 1
    assert "ZeroDivisionError: by zero" in quiet
    for words in (["--debug", "down"], ["down", "--debug"]):
        assert cli.run(words) == 1
        assert "Traceback" in capsys.readouterr().err


def test_without_a_stack_status_fails_and_down_has_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"state": "none", "processes": []}
    assert "headrace up" in printed.err
    assert cli.run(["down", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ended": []}


def test_up_looks_at_its_files_before_it_starts_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.yaml").write_text("kind: endpiont\n")
    assert cli.run(["up", "--detach", "bad.yaml"]) == 1
    assert "bad.yaml:1: unknown kind 'endpiont'; did you mean 'endpoint'?" in capsys.readouterr().err
    assert not (folder / ".headrace").exists()


@pytest.mark.parametrize(("text", "size"), [("17", 17), ("512M", 512 << 20), ("2GiB", 2 << 30), ("1.5k", 1536), ("1 TB", 1 << 40)])
def test_sizes_have_units(text: str, size: int) -> None:
    assert Bytes().convert(text, None, None) == size


def test_workers_are_counted_by_class() -> None:
    assert start_counts(parse_ranges("cpu=2, vpu")) == {"cpu": 2, "vpu": 1}
    for wrong in ("", "tpu=1", "cpu=-1", "cpu=17", "cpu=1,cpu=2"):
        with pytest.raises(ConfigurationError):
            parse_ranges(wrong)


def test_up_runs_every_role_and_waits_for_service_only_where_files_are_applied(folder: Path) -> None:
    options = UpOptions(
        workers={"cpu": 2, "vpu": 1}, dispatchers=2, models=folder / "m", profiles=folder / "p", cache=folder / "c", applies_files=True
    )
    plan = plan_stack(folder, options, kafka=None, redis="redis://h:1", prefix="p")
    assert [role.name for role in plan.roles] == ["scaler-1", "sink-1", "dispatcher-1", "dispatcher-2", "cpu-1", "cpu-2", "vpu-1"]
    argv = {role.name: role.argv for role in plan.roles}
    assert argv["vpu-1"][argv["vpu-1"].index("--device") + 1] == "CPU"
    assert "--device" not in argv["cpu-1"]
    assert all("{ready}" in words and "{kafka}" in words for words in argv.values())
    assert "{redis}" in argv["sink-1"]
    assert all("serving" in words for words in argv.values())
    bare = plan_stack(folder, msgspec.structs.replace(options, applies_files=False), kafka=None, redis=None, prefix="p")
    assert {role.role: "serving" in role.argv for role in bare.roles} == {"scaler": True, "sink": True, "dispatcher": False, "worker": False}


def test_the_roles_of_a_stack_understand_their_command_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = UpOptions(workers={"cpu": 1, "vpu": 1, "gpu": 1}, models=folder, profiles=folder, cache=folder, taps=True)
    roles = plan_stack(folder, options, kafka="h:1", redis="redis://h:1", prefix="p").roles
    assert "taps" in {role.role for role in roles}
    for role in roles:
        words = [word.format(kafka="h:1", redis="redis://h:1", prefix="p", ready="r") for word in role.argv]
        assert words[:4] == [sys.executable, "-P", "-m", "deploy.cli"]
        assert cli.run([*words[4:], "--print-config"]) == 0, capsys.readouterr().err
        assert "h:1" in capsys.readouterr().out


def no_name() -> str:
    raise AssertionError("no name is needed")


def test_a_json_file_goes_out_as_it_is(folder: Path) -> None:
    content = b'{"id": "a", "inputs": [ ]}\n'
    (folder / "a.json").write_bytes(content)
    body = read_request("a.json", no_name)
    assert (body.value, body.content_type, body.id) == (content, JSON_TYPE, "a")


def test_stdin_is_read_for_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_files.sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"inputs": []}')))
    assert read_request("-", no_name).value == b'{"inputs": []}'


def test_arrays_become_inputs_with_raw_bytes(folder: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(folder / "a.npy", values)
    np.savez(folder / "a.npz", image=values, mask=values > 2)
    body = read_request("a.npy", lambda: "image")
    assert body.content_type == MSGPACK_TYPE
    image = {"name": "image", "shape": [2, 3], "datatype": "FP32", "data": values.tobytes()}
    assert msgspec.msgpack.decode(body.value) == {"inputs": [image]}
    both = msgspec.msgpack.decode(read_request("a.npz", no_name).value)["inputs"]
    assert [(tensor["name"], tensor["datatype"]) for tensor in both] == [("image", "FP32"), ("mask", "BOOL")]


def test_a_file_that_is_no_request_is_refused_with_a_reason(folder: Path) -> None:
    def refused(content: bytes, words: str) -> None:
        (folder / "x").write_bytes(content)
        with pytest.raises(BadRequest, match=words):
            read_request("x", lambda: "image")

    refused(b"hello", "neither JSON nor")
    refused(b"[1]", "is a JSON object")
    refused(b'{"input": []}', "no `inputs`.*did you mean 'inputs'")
    refused(b"\x93NUMPY", "not a readable .npy")
    refused(b"PK\x03\x04...", "not a readable .npz")
    refused(b" " * (Limits().record_bytes_max + 1), "over 2097152 bytes")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    refused(pickled.getvalue(), "allow_pickle=False")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * (4 << 20))
    refused(bomb.getvalue(), "its arrays have over")
    with pytest.raises(BadRequest, match="No such file"):
        read_request("none.json", no_name)

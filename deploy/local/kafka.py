"""A genuine one-node Kafka (KRaft) on this machine: its settings, its storage, the command that runs it, and when it answers."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import subprocess
import uuid
from pathlib import Path

import msgspec

from deploy.local.kafka_install import DOCKER_IMAGE, JAVA_VERSION_MIN, KafkaInstallation, last_lines, run_to_end
from deploy.local.ports import LOOPBACK
from schemas.errors import ConfigurationError
from schemas.limits import Limits

QUICK_JVM = ("-XX:TieredStopAtLevel=1",)
"""First compiler only: on two cores a third less CPU until ready and half as much in the first half minute; for tests and demos."""
STEADY_JVM = ()
"""Both compilers: after some 30,000 records about a third less CPU per record; for what runs longer than minutes."""
HEAP = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData")
FORMAT_S_MAX = 60.0
RECORD_OVERHEAD_BYTES = 64 << 10
DOCKER_DATA = "/var/lib/kafka/data"
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "4",
    # One node: nothing can be replicated.
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # A group of one starts at once, and a dead member can be noticed within a second where a client asks for it.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A broker that was killed may register again only when its old session is over: 5 s after a kill -9 instead of 12.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "message.max.bytes": str(Limits().record_bytes_max + RECORD_OVERHEAD_BYTES),
    "replica.fetch.max.bytes": str(Limits().record_bytes_max + RECORD_OVERHEAD_BYTES),
    "log.retention.hours": "24",
    "log.segment.bytes": str(128 << 20),
    "log.segment.delete.delay.ms": "1000",
    # Small machine: threads and buffers to match.
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": str(4 << 20),
}


class KafkaCommand(msgspec.Struct, frozen=True, kw_only=True):
    """How the broker is run: in the foreground, until SIGTERM."""

    argv: tuple[str, ...]
    clean_argv: tuple[str, ...] = ()
    """Run before each start and after the end: removes what a killed foreground process leaves (a container)."""


def prepare_kafka(installation: KafkaInstallation, folder: Path, ports: tuple[int, int], *, jvm_options: tuple[str, ...] = QUICK_JVM) -> KafkaCommand:
    """Write the settings, format the storage where that was not done before, and return the command. Blocks some seconds.

    `ports` are the broker's and the controller's. What the folder already holds is kept.
    Raises ConfigurationError where the storage cannot be formatted.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if installation.libs is None:
        return _docker_command(installation, folder, ports, jvm_options)
    data = folder / "data"
    if "," in str(data):
        raise ConfigurationError(f"Kafka cannot keep its data in {data}: a comma separates folders in its settings. Work in another folder")
    settings = SETTINGS | _listeners(ports, host=LOOPBACK) | {"log.dirs": str(data)}
    properties = folder / "server.properties"
    properties.write_text("".join(f"{name}={_escape(value)}\n" for name, value in settings.items()))
    java = (installation.program, "-cp", f"{installation.libs}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
    if not (data / "meta.properties").exists():
        _format(java, properties)
    return KafkaCommand(argv=(*java, *HEAP, *jvm_options, "kafka.Kafka", str(properties)))


def _listeners(ports: tuple[int, int], *, host: str) -> dict[str, str]:
    broker, controller = ports
    return {
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "listeners": f"PLAINTEXT://{host}:{broker},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{broker}",
    }


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\")


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _format(java: tuple[str, ...], properties: Path) -> None:
    # One word with "=": an id may start with "-", and would then be taken for an option of its own.
    tool = ("kafka.tools.StorageTool", "format", "--ignore-formatted", f"--cluster-id={_cluster_id()}", "-c", str(properties))
    argv = [*java, "-XX:+UseSerialGC", *QUICK_JVM, *tool]
    try:
        done = run_to_end(argv, FORMAT_S_MAX)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"Kafka's storage was not formatted within {FORMAT_S_MAX:.0f} s: is this machine overloaded?") from None
    if done.returncode == 0:
        return
    output = done.stdout + done.stderr
    if "UnsupportedClassVersionError" in output:
        raise ConfigurationError(f"{java[0]} is too old for Kafka: install Java {JAVA_VERSION_MIN} or newer")
    raise ConfigurationError(f"Kafka's storage in {properties.parent} cannot be formatted: {last_lines(output)}")


def _docker_command(installation: KafkaInstallation, folder: Path, ports: tuple[int, int], jvm_options: tuple[str, ...]) -> KafkaCommand:
    """The image takes each setting as KAFKA_<NAME>, formats by itself, and keeps its data in a volume named after the folder."""
    broker = ports[0]
    name = f"headrace-kafka-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    settings = SETTINGS | _listeners(ports, host="0.0.0.0") | {"log.dirs": DOCKER_DATA}  # noqa: S104 - inside the container; published on loopback only
    cluster_id = folder / "cluster-id"
    if not cluster_id.exists():
        cluster_id.write_text(_cluster_id())
    environment = {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()}
    environment |= {"CLUSTER_ID": cluster_id.read_text(), "KAFKA_HEAP_OPTS": " ".join(HEAP[:2]), "KAFKA_OPTS": " ".join((*HEAP[3:], *jvm_options))}
    options = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
    run = (installation.program, "run", "--rm", "--name", name, "--publish", f"{LOOPBACK}:{broker}:{broker}", "--volume", f"{name}:{DOCKER_DATA}")
    return KafkaCommand(argv=(*run, *options, DOCKER_IMAGE), clean_argv=(installation.program, "rm", "--force", name))


METADATA_KEY, METADATA_VERSION, CORRELATION = 3, 1, 7
CLIENT_ID = b"headrace"
ANSWER_BYTES_MAX = 1 << 16


def kafka_answers(host: str, port: int, *, timeout_ms: float = 1_000.0) -> bool:
    """Whether the broker answers a metadata request with a broker in it; blocks up to the time-out for each step.

    An open port is not a ready broker. Asked in Kafka's own protocol (a Metadata request, version 1, for no topic), without a client library.
    """
    head = struct.pack(">hhih", METADATA_KEY, METADATA_VERSION, CORRELATION, len(CLIENT_ID)) + CLIENT_ID
    request = head + struct.pack(">i", 0)
    try:
        with socket.create_connection((host, port), timeout_ms / 1000) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _receive(connection, 4))
            if not 8 <= size <= ANSWER_BYTES_MAX:
                return False
            correlation, brokers = struct.unpack(">ii", _receive(connection, size)[:8])
            return correlation == CORRELATION and brokers > 0
    except OSError:
        return False


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            raise ConnectionError("closed in the middle of an answer")
        received += part
    return received

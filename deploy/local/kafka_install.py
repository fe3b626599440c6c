"""Finds a genuine Kafka to run on this machine: a Kafka home, the jars by Maven coordinates (fetched once per user), or Docker."""

from __future__ import annotations

import fcntl
import importlib.resources
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from schemas.errors import ConfigurationError

KAFKA_VERSION = "4.3.0"
JAVA_VERSION_MIN = 17
DOCKER_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
BROKER_JAR = f"kafka_2.13-{KAFKA_VERSION}.jar"
FETCH_S_MAX = 300.0
DOCKER_S_MAX = 10.0
OUTPUT_LINES_SHOWN = 8

Progress = Callable[[str], None]


class KafkaInstallation(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker's program comes from: jars with a Java to run them, or a container image with Docker."""

    source: str
    """home, maven or docker."""
    program: str
    """Path of `java` or `docker`."""
    libs: Path | None = None
    """Folder of the jars; None with Docker."""


class _NotHere(Exception):
    """One way to a Kafka is closed; says why."""


def find_kafka(*, home: str | None, cache_folder: Path | None = None, on_progress: Progress | None = None) -> KafkaInstallation:
    """The first of: `home` (KAFKA_HOME), Maven, Docker. Blocks while Maven fetches, at most FETCH_S_MAX.

    `cache_folder` keeps what Maven fetched, by default ~/.cache/headrace. Raises ConfigurationError with what was looked for and what to install;
    a `home` that was given is not passed over in silence.
    """
    if home:
        return _in_home(Path(home).expanduser())
    reasons: list[str] = []
    for find in (lambda: _by_maven(cache_folder or Path.home() / ".cache" / "headrace", on_progress), _by_docker):
        try:
            return find()
        except _NotHere as reason:
            reasons.append(str(reason))
    raise ConfigurationError(
        f"no Kafka on this machine: KAFKA_HOME is not set; {'; '.join(reasons)}. "
        f"Install Java {JAVA_VERSION_MIN} or newer with Maven, or start Docker, or name a running Kafka with --kafka HOST:PORT"
    )


def _in_home(home: Path) -> KafkaInstallation:
    libs = home / "libs"
    if not list(libs.glob("kafka_2.*.jar")):
        raise ConfigurationError(f"KAFKA_HOME {home} is not a Kafka: it has no libs/kafka_2.*.jar. Correct or unset it")
    try:
        return KafkaInstallation(source="home", program=_program("java"), libs=libs)
    except _NotHere as reason:
        raise ConfigurationError(f"KAFKA_HOME {home} cannot be run: {reason}. Install Java {JAVA_VERSION_MIN} or newer") from None


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise _NotHere(f"no `{name}` on the PATH")
    return found


def _by_maven(cache_folder: Path, on_progress: Progress | None) -> KafkaInstallation:
    java = _program("java")
    home = cache_folder / f"kafka-{KAFKA_VERSION}"
    libs = home / "libs"
    if not (libs / BROKER_JAR).is_file():
        maven = _program("mvn")
        cache_folder.mkdir(parents=True, exist_ok=True)
        with (cache_folder / f"kafka-{KAFKA_VERSION}.lock").open("w") as lock:
            # The second of two at once waits here, and then finds the folder.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (libs / BROKER_JAR).is_file():
                if on_progress is not None:
                    on_progress(f"fetching Kafka {KAFKA_VERSION} by Maven, once for this user")
                _fetch(maven, home)
    return KafkaInstallation(source="maven", program=java, libs=libs)


def _fetch(maven: str, home: Path) -> None:
    """Into a folder beside `home`, renamed when it is whole: what stands under the final name is never half a Kafka."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f"{home.name}.partial-") as partial:
        pom = Path(partial) / "pom.xml"
        pom.write_text(importlib.resources.files("deploy.local").joinpath("pom.xml").read_text())
        fetched = Path(partial) / "home"
        argv = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={fetched / 'libs'}", "-DincludeScope=runtime"]
        try:
            done = run_to_end(argv, FETCH_S_MAX)
        except subprocess.TimeoutExpired:
            raise _NotHere(f"Maven did not fetch it within {FETCH_S_MAX:.0f} s") from None
        if done.returncode != 0 or not (fetched / "libs" / BROKER_JAR).is_file():
            raise _NotHere(f"Maven could not fetch it: {last_lines(done.stdout + done.stderr)}")
        if home.exists():
            # Without the broker's jar (it was looked for): somebody emptied it.
            shutil.rmtree(home)
        fetched.rename(home)


def _by_docker() -> KafkaInstallation:
    docker = _program("docker")
    argv = [docker, "version", "--format", "{{.Server.Version}}"]
    try:
        done = run_to_end(argv, DOCKER_S_MAX)
    except subprocess.TimeoutExpired:
        raise _NotHere(f"the Docker engine did not answer within {DOCKER_S_MAX:.0f} s") from None
    if done.returncode != 0:
        raise _NotHere(f"Docker is installed, but its engine does not run ({last_lines(done.stderr, 1)})")
    return KafkaInstallation(source="docker", program=docker)


def run_to_end(argv: Sequence[str], s_max: float) -> subprocess.CompletedProcess[str]:
    """The finished program with its output. Raises subprocess.TimeoutExpired, the program ended, after `s_max` seconds."""
    # No shell, and every word is ours or a path.
    return subprocess.run(argv, capture_output=True, text=True, timeout=s_max, check=False, stdin=subprocess.DEVNULL)  # noqa: S603


def last_lines(text: str, count: int = OUTPUT_LINES_SHOWN) -> str:
    """The end of a program's output, on one line."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-count:]) or "it said nothing"

"""Servers for the tests: a running Kafka and Valkey named by environment variable, else managed ones of this session; and how tests wait.

HEADRACE_TEST_KAFKA (host:port) and HEADRACE_TEST_REDIS (redis://host:port) name running servers. Where a server is missing, a test that needs it
is skipped with the reason at a desk, and fails where CI=true or HEADRACE_REQUIRE_SERVERS=1.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
import structlog

from deploy.local import launch
from deploy.local.kafka import kafka_answers, prepare_kafka
from deploy.local.kafka_install import find_kafka
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.process import log_tail
from deploy.local.valkey import find_valkey, valkey_answers, valkey_argv, valkey_url
from schemas.errors import ConfigurationError

START_S_MAX = 60.0
POLL_S = 0.02
KAFKA_FIXTURES = {"local_servers", "kafka_address", "kafka_server", "private_kafka"}
VALKEY_FIXTURES = {"redis_url", "valkey_server", "private_valkey"}


def _stands_still(thread: Path) -> bool:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True  # it has ended


class ManagedServer:
    """A genuine server that this test run started, at one address for all its lives; it dies with the test run.

    Tests break and mend it: `kill`, `terminate`, `pause`, `resume`, `spawn`, `await ready()`.
    """

    def __init__(self, argv: Sequence[str], address: str, answers: Callable[[], bool], log_file: Path, clean_argv: Sequence[str] = ()) -> None:
        self.address = address
        self._argv = argv
        self._answers = answers
        self._log_file = log_file
        self._clean_argv = clean_argv
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start it, without waiting for it."""
        assert threading.current_thread() is threading.main_thread(), "a server dies with the thread that started it"
        assert not self.runs
        self._clean()
        with self._log_file.open("ab") as log:
            argv = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *self._argv]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def start(self) -> None:
        """Start it and block until it answers; for fixtures. Tests: `spawn()`, then `await ready()`."""
        self.spawn()
        deadline_s = time.monotonic() + START_S_MAX
        while not self._answers():
            self._check(deadline_s)
            time.sleep(POLL_S)

    async def ready(self) -> None:
        """Until it answers."""
        deadline_s = time.monotonic() + START_S_MAX
        while not await asyncio.to_thread(self._answers):
            self._check(deadline_s)
            await asyncio.sleep(POLL_S)

    def _check(self, deadline_s: float) -> None:
        assert self.runs, f"{self._argv[0]} ended:\n{log_tail(self._log_file)}"
        assert time.monotonic() < deadline_s, f"{self._argv[0]} does not answer:\n{log_tail(self._log_file)}"

    def kill(self) -> None:
        """As with kill -9: nothing is put in order, what the disk holds stays."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self.runs:
            self._process.send_signal(number)
            self.resume()
            self._process.wait(timeout=START_S_MAX)
            self._clean()

    def _clean(self) -> None:
        if self._clean_argv:
            subprocess.run(self._clean_argv, check=False, capture_output=True)

    def pause(self) -> None:
        """It keeps its connections and answers nothing, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True
        # On a busy machine some of its threads go on for a while.
        threads = Path(f"/proc/{self.pid}/task")
        while threads.exists() and not all(_stands_still(thread) for thread in threads.iterdir()):
            time.sleep(POLL_S)

    def resume(self) -> None:
        if self._paused and self.runs:
            os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def mend(self) -> None:
        """Make it run again, whatever the last test did to it."""
        self.resume()
        if not self.runs:
            self.start()


@pytest.fixture(autouse=True)
def default_logs() -> Iterator[None]:
    """What a test configured of the logs is over with it."""
    yield
    structlog.reset_defaults()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needed = set(getattr(item, "fixturenames", ()))
        for mark, fixtures in (("kafka", KAFKA_FIXTURES), ("valkey", VALKEY_FIXTURES)):
            if needed & fixtures:
                item.add_marker(mark)


def _missing(reason: str) -> NoReturn:
    required = os.environ.get("CI", "").lower() in ("1", "true") or os.environ.get("HEADRACE_REQUIRE_SERVERS") == "1"
    (pytest.fail if required else pytest.skip)(reason)
    raise AssertionError  # both raised


def _managed_kafka(folder: Path) -> Iterator[ManagedServer]:
    try:
        installation = find_kafka(home=os.environ.get("KAFKA_HOME"))
        broker, controller = free_ports(2)
        command = prepare_kafka(installation, folder, (broker, controller))
    except ConfigurationError as error:
        _missing(str(error))
    answers = partial(kafka_answers, LOOPBACK, broker)
    yield from _running(ManagedServer(command.argv, f"{LOOPBACK}:{broker}", answers, folder / "kafka.log", command.clean_argv))


def _managed_valkey(folder: Path) -> Iterator[ManagedServer]:
    try:
        program, (port,) = find_valkey(), free_ports(1)
    except ConfigurationError as error:
        _missing(str(error))
    argv = valkey_argv(program, port, folder)
    yield from _running(ManagedServer(argv, valkey_url(port), partial(valkey_answers, LOOPBACK, port), folder / "valkey.log"))


def _running(server: ManagedServer) -> Iterator[ManagedServer]:
    try:
        server.start()
        yield server
    finally:
        server.terminate()


@pytest.fixture(scope="session")
def local_servers() -> None:
    """For tests which start servers of their own through the stack: these can be found here."""
    try:
        find_kafka(home=os.environ.get("KAFKA_HOME"))
        find_valkey()
    except ConfigurationError as error:
        _missing(str(error))


@pytest.fixture(scope="session")
def mlops_python() -> Path:
    """The interpreter of evidently's environment."""
    python = Path(__file__).resolve().parents[1] / ".venv-mlops" / "bin" / "python"
    if not python.exists():
        _missing("evidently's environment is not there: make mlops-env")
    return python


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    """The session's own Kafka; every test shares it, so nobody breaks it."""
    yield from _managed_kafka(tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    """The session's own Valkey; every test shares it, so nobody breaks it."""
    yield from _managed_valkey(tmp_path_factory.mktemp("valkey"))


@pytest.fixture(scope="session")
def kafka_address(request: pytest.FixtureRequest) -> str:
    """host:port of a genuine Kafka that all tests share: keep to your `prefix`."""
    named = os.environ.get("HEADRACE_TEST_KAFKA")
    if not named:
        return request.getfixturevalue("kafka_server").address
    host, _, port = named.rpartition(":")
    if not kafka_answers(host, int(port)):
        _missing(f"HEADRACE_TEST_KAFKA={named} does not answer")
    return named


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """URL of a genuine Valkey or Redis that all tests share: keep to your `prefix`."""
    named = os.environ.get("HEADRACE_TEST_REDIS")
    if not named:
        return request.getfixturevalue("valkey_server").address
    url = urlsplit(named)
    if not valkey_answers(url.hostname or LOOPBACK, url.port or 6379):
        _missing(f"HEADRACE_TEST_REDIS={named} does not answer")
    return named


@pytest.fixture(scope="module")
def _module_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    yield from _managed_kafka(tmp_path_factory.mktemp("private-kafka"))


@pytest.fixture(scope="module")
def _module_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    yield from _managed_valkey(tmp_path_factory.mktemp("private-valkey"))


@pytest.fixture
def private_kafka(_module_kafka: ManagedServer) -> ManagedServer:
    """A Kafka of this test module alone, to be broken; whole again (with its data) at the start of each test."""
    _module_kafka.mend()
    return _module_kafka


@pytest.fixture
def private_valkey(_module_valkey: ManagedServer) -> ManagedServer:
    """A Valkey of this test module alone, to be broken; whole again at the start of each test, empty where it had died."""
    _module_valkey.mend()
    return _module_valkey


@pytest.fixture
def prefix() -> str:
    """Names of this test alone."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    """`await eventually(condition, timeout_s=10)`: the first true value of a plain or async function, or a failure with its last one."""
    return _eventually


async def _eventually(condition: Callable[[], Any], *, timeout_s: float = 10.0, interval_s: float = POLL_S) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline_s:
            pytest.fail(f"not within {timeout_s} s; the last value was {value!r}")
        await asyncio.sleep(interval_s)

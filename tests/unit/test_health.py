"""The health server tells what the role says; the watchdog tells a blocked loop from a stopped process; logs are one line each."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter

from deploy.health import HealthServer
from deploy.log_output import configure_logs
from deploy.watchdog import LoopWatchdog
from schemas.errors import ConfigurationError


class Stated:
    """A role that says what it is told to say."""

    def __init__(self) -> None:
        self.not_ready = ""
        self.sick = ""

    async def run(self) -> None: ...

    def stop(self) -> None: ...

    def unready(self) -> str:
        return self.not_ready

    def unhealthy(self) -> str:
        return self.sick


@pytest.fixture
def role() -> Stated:
    return Stated()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def address(role: Stated, registry: CollectorRegistry) -> AsyncIterator[str]:
    server = HealthServer(role, registry, "127.0.0.1:0")
    yield await server.start()
    await server.close()


@pytest.fixture
def logs_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


async def fetch(address: str, path: str, **headers: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}", headers=headers) as answer:
        return answer.status, answer.headers["content-type"], await answer.text()


async def test_health_and_readiness_are_what_the_role_says(role: Stated, address: str) -> None:
    assert (await fetch(address, "/healthz"))[::2] == (200, "ok\n")
    assert (await fetch(address, "/readyz"))[::2] == (200, "ok\n")
    role.not_ready = "no live worker is ready"
    assert (await fetch(address, "/healthz"))[0] == 200
    assert (await fetch(address, "/readyz"))[::2] == (503, "no live worker is ready\n")
    role.sick, role.not_ready = "nothing was read for 60 s", ""
    assert (await fetch(address, "/healthz"))[::2] == (503, "nothing was read for 60 s\n")
    assert (await fetch(address, "/readyz"))[0] == 200


async def test_metrics_come_in_the_format_that_is_asked_for(registry: CollectorRegistry, address: str) -> None:
    Counter("headrace_things", "Things.", registry=registry).inc(3)
    status, kind, text = await fetch(address, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert "headrace_things_total 3.0" in text
    assert (await fetch(address, "/metrics", accept="application/openmetrics-text"))[1].startswith("application/openmetrics-text")


async def test_other_paths_are_unknown(address: str) -> None:
    assert (await fetch(address, "/nothing?x=1"))[0] == 404


async def test_whoever_asks_nothing_takes_no_place_for_ever(role: Stated, registry: CollectorRegistry) -> None:
    server = HealthServer(role, registry, "127.0.0.1:0")
    host, _, port = (await server.start()).rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
    assert (await fetch(f"{host}:{port}", "/healthz"))[0] == 200
    await server.close()
    for reader, writer in silent:
        assert await asyncio.wait_for(reader.read(), 10) == b"", "they are let go"
        writer.close()


async def test_a_port_that_is_taken_is_an_error(role: Stated, registry: CollectorRegistry, address: str) -> None:
    second = HealthServer(role, registry, address)
    with pytest.raises(OSError, match="address already in use"):
        await second.start()
    await second.close()
    with pytest.raises(ConfigurationError):
        HealthServer(role, registry, "9100")


async def test_a_blocked_loop_is_noticed_and_measured(registry: CollectorRegistry) -> None:
    noticed: list[float] = []
    seen = threading.Event()

    def blocked(blocked_ms: float) -> None:
        noticed.append(blocked_ms)
        seen.set()

    watchdog = LoopWatchdog(registry, blocked_ms_max=80.0, blocked=blocked)
    watchdog.start()
    # The loop is what is tested: it must not run meanwhile.
    assert seen.wait(5.0)
    await asyncio.sleep(0.03)
    watchdog.stop()
    assert noticed[0] > 80.0
    assert (registry.get_sample_value("headrace_loop_lag_seconds_sum") or 0.0) > 0.05


async def test_a_loop_that_runs_is_left_alone(registry: CollectorRegistry) -> None:
    noticed: list[float] = []
    watchdog = LoopWatchdog(registry, blocked_ms_max=1_000.0, blocked=noticed.append)
    watchdog.start()
    deadline = time.monotonic() + 5.0
    while (registry.get_sample_value("headrace_loop_lag_seconds_count") or 0.0) < 3 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    watchdog.stop()
    assert registry.get_sample_value("headrace_loop_lag_seconds_count") == 3
    assert not noticed


PROGRAM = """
import asyncio, sys, time
from prometheus_client import CollectorRegistry
from deploy.watchdog import LoopWatchdog
from deploy.log_output import configure_logs
configure_logs(log_format=None, log_level="info")
async def main():
    LoopWatchdog(CollectorRegistry(), blocked_ms_max=float(sys.argv[1])).start()
    print("started", flush=True)
    await asyncio.sleep(0.05)
    if sys.argv[2] == "block":
        time.sleep(30)
    await asyncio.sleep(0.3)
asyncio.run(main())
"""


def started(blocked_ms_max: float, what: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(blocked_ms_max), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    return child


def test_a_blocked_process_ends_with_its_exit_code_and_says_why() -> None:
    with started(200.0, "block") as child:
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 70
    assert "event loop blocked" in errors
    assert " in main" in errors


def test_a_process_that_was_stopped_as_a_whole_goes_on() -> None:
    with started(400.0, "run") as child:
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.9)  # not a wait for something: the time that the process is stopped is what is tested
        child.send_signal(signal.SIGCONT)
        child.communicate(timeout=20)
    assert child.returncode == 0


@pytest.mark.usefixtures("logs_restored")
def test_every_line_of_the_log_is_json_with_its_role_and_utc_time() -> None:
    stream = io.StringIO()
    configure_logs(log_format=None, log_level="info", stream=stream, role="sink", name="sink-1")
    structlog.get_logger().info("stored", count=3)
    structlog.get_logger().debug("not shown")
    logging.getLogger("aiokafka.client").warning("Topic %s not authorized", "t")
    logging.getLogger("aiokafka.client").info("not shown")
    logging.getLogger("redis").error("gone", exc_info=ValueError("x"))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["stored", "Topic t not authorized", "gone"]
    assert all(line["role"] == "sink" and line["name"] == "sink-1" and line["timestamp"].endswith("Z") for line in lines)
    assert lines[0]["count"] == 3
    assert "ValueError: x" in lines[2]["exception"]


@pytest.mark.usefixtures("logs_restored")
def test_what_is_expected_of_kafka_is_lowered_to_debug() -> None:
    stream = io.StringIO()
    configure_logs(log_format="text", log_level="info", stream=stream)
    logging.getLogger("aiokafka.consumer.fetcher").warning("Got NotLeaderForPartitionError for %s", "t-0")
    assert stream.getvalue() == ""
    configure_logs(log_format="text", log_level="debug", stream=stream)
    logging.getLogger("aiokafka.consumer.fetcher").warning("Got NotLeaderForPartitionError for %s", "t-0")
    assert "NotLeaderForPartition" in stream.getvalue()
    assert "debug" in stream.getvalue()

"""Two genuine Faust processes on a genuine Kafka: one leads; kill -9, a pause and a rebalance change the leader and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scaler_fleet import Fleet, fleet_on

from broker.kafka import KafkaLog
from deploy.snapshots import read_leader
from schemas.names import Names
from schemas.plan_journal import PUBLISHING

Eventually = Callable[..., Awaitable[Any]]
TAKEOVER_S = 10.0


class Scalers:
    """Processes of `headrace scaler`, by name."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self._kafka, self._prefix, self._folder = kafka, prefix, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *options: str) -> None:
        argv = [sys.executable, "-m", "deploy.cli", "scaler", "--name", name, "--kafka", self._kafka, "--prefix", self._prefix]
        argv += ["--interval-s", "1", "--log-format", "json", "--ready-file", str(self._folder / f"{name}.ready"), *options]
        if name in self.processes:
            self.processes[name].wait(timeout=10.0)
        (self._folder / f"{name}.ready").unlink(missing_ok=True)
        with (self._folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def ready(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.log(name)
        return (self._folder / f"{name}.ready").exists()

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.processes[name].pid, number)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(timeout=10.0)


@asynccontextmanager
async def two_scalers(kafka: str, prefix: str, folder: Path, eventually: Eventually) -> AsyncIterator[tuple[Scalers, Fleet]]:
    """`one` leads, `two` stands by."""
    log = KafkaLog(kafka)
    scalers = Scalers(kafka, prefix, folder)
    try:
        async with fleet_on(log, Names(prefix), beat_s=0.5) as fleet:
            scalers.start("one")
            await eventually(lambda: leads(fleet, "one"), timeout_s=30.0, interval_s=0.1)
            scalers.start("two")
            await eventually(lambda: scalers.ready("two"), timeout_s=30.0)
            await eventually(lambda: fleet.plan.epoch > 0, timeout_s=30.0)
            yield scalers, fleet
    finally:
        scalers.end()
        await log.close()


async def leads(fleet: Fleet, name: str) -> bool:
    report = await read_leader(fleet.log, fleet.names, now_ms=time.time() * 1000 + 3_000)  # within the last two seconds
    return report is not None and report.scaler == name


async def epochs_only_grow(fleet: Fleet) -> None:
    epochs = [plan.epoch for plan in await fleet.log_plans()]
    assert epochs == sorted(set(epochs)), epochs


@pytest.mark.timeout(180)
async def test_kill_9_of_the_leader_changes_the_leader_and_nothing_else(
    kafka_address: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with two_scalers(kafka_address, prefix, tmp_path, eventually) as (scalers, fleet):
        # A rebalance does not move the lead: whoever leads keeps it while others join.
        await eventually(lambda: "this scaler leads" not in scalers.log("two"))
        assert await leads(fleet, "one")
        before = fleet.plan
        scalers.signal("one", signal.SIGKILL)
        killed_s = time.monotonic()
        await eventually(lambda: leads(fleet, "two"), timeout_s=TAKEOVER_S, interval_s=0.1)
        assert time.monotonic() - killed_s < TAKEOVER_S
        assert fleet.plan.bindings == before.bindings, "nothing but the leader has changed"
        led = (await fleet.history("led"))[-1]
        assert (led.scaler, led.epoch) == ("two", before.epoch)
        assert "knows 2 workers" in led.reason
        # The new one carries on: a third worker is bound; the old one comes back and stands by.
        scalers.start("one")
        fleet.workers["w2"] = 1
        await eventually(lambda: fleet.plan.binding("w2"), timeout_s=15.0)
        assert fleet.plan.planner == "two"
        await eventually(lambda: scalers.ready("one"), timeout_s=30.0)
        scalers.signal("two", signal.SIGTERM)
        await eventually(lambda: scalers.processes["two"].poll() == 0, timeout_s=12.0)
        await eventually(lambda: leads(fleet, "one"), timeout_s=TAKEOVER_S, interval_s=0.1)
        await epochs_only_grow(fleet)
        published = await fleet.history(*PUBLISHING)
        assert [decision.plan for decision in published] == await fleet.log_plans()


@pytest.mark.timeout(180)
async def test_a_leader_that_was_paused_publishes_nothing_over_the_one_that_took_its_place(
    kafka_address: str, prefix: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with two_scalers(kafka_address, prefix, tmp_path, eventually) as (scalers, fleet):
        scalers.signal("one", signal.SIGSTOP)
        await eventually(lambda: leads(fleet, "two"), timeout_s=TAKEOVER_S, interval_s=0.1)
        fleet.workers["w2"] = 1
        await eventually(lambda: fleet.plan.binding("w2"), timeout_s=15.0)
        scalers.signal("one", signal.SIGCONT)
        await eventually(lambda: "this scaler leads no more" in scalers.log("one"))
        fleet.workers["w3"] = 1
        await eventually(lambda: fleet.plan.binding("w3"), timeout_s=20.0)
        await epochs_only_grow(fleet)
        assert all(scalers.processes[name].poll() is None for name in ("one", "two"))

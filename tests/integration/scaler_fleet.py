"""What the tests of the live control loop stand on: a fleet that reports and does what plans say, loops that run as tasks, and what they wrote."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from broker.log import Log, TopicPartition
from deploy.snapshots import read_history, read_plan, read_topic
from scaler.control_loop import ControlLoop
from scaler.control_loop_feed import Feed, LogFeed
from scaler.control_loop_planning import MakeOptimizers
from scaler.control_loop_settings import LoopSettings
from scaler.optimizer_runner import Proposed
from scaler.optimizers.greedy import Greedy
from scaler.optimizers.optimizer import Limits
from scaler.optimizers.snapshot import Snapshot
from scaler.policy.control_settings import ControlSettings
from schemas.catalog import Defaults, EndpointSpec, TaskSpec, VariantSpec, catalog_key, encode_catalog
from schemas.control import CONTROL_KEY, ControlSpec, encode_control
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.plan import PLAN_KEY, Plan, decode_plan, encode_plan
from schemas.plan_journal import PlanDecision
from schemas.profile import Latency
from schemas.telemetry import DispatcherReport, EndpointCounts, HostedVariant, Telemetry, WorkerReport, encode_telemetry

LADDER = {"small": (0.80, 1.0), "large": (0.90, 20.0)}
"""(accuracy, milliseconds a row) by variant."""
QUICK = LoopSettings(
    optimizer="greedy",
    control=ControlSettings(interval_ms=600.0, cool_down_ms=100.0, warm_up_ms=200.0, worker_lost_ms=900.0, dispatcher_lost_ms=900.0),
    first_warm_up_ms=100.0,
    read_ms=20,
    say_s=0.1,
    costs_interval_ms=100.0,
    lag_s=0.1,
)


class InProcess:
    """An optimizer without a process of its own; `hold` keeps it thinking."""

    def __init__(self, name: str = "greedy") -> None:
        self.name, self.asked = name, 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.snapshots: list[Snapshot] = []

    async def propose(self, snapshot: Snapshot, *, seed: int, now_ms: float) -> Proposed:
        self.asked += 1
        self.snapshots.append(snapshot)
        await self.hold.wait()
        return Proposed(Greedy().propose(snapshot, Limits(time_s=1.0, seed=seed, clock_s=time.monotonic)), self.name, ())

    async def close(self) -> None:
        pass


def task(ladder: Iterable[str] = LADDER, name: str = "t") -> TaskSpec:
    return TaskSpec(name=name, variants=tuple(VariantSpec(name=each, sha256=each, accuracy=LADDER[each][0]) for each in ladder))


ENDPOINT = EndpointSpec(name="shop", task="t", defaults=Defaults(min_accuracy=0.8, timeout_ms=400))


class Fleet:
    """Workers and one dispatcher: they report every `beat_s`, and host what the newest plan says."""

    def __init__(self, log: Log, names: Names, workers: Iterable[str] = ("w0", "w1"), *, beat_s: float = 0.1) -> None:
        self.log, self.names, self.beat_s = log, names, beat_s
        self.workers = dict.fromkeys(workers, 1)
        """Incarnation by name."""
        self.rate_rps = 40.0
        self.corrupt: set[str] = set()
        self.loading: set[str] = set()
        """Variants that go on loading."""
        self.bears_outage = False
        self.plans: list[Plan] = []
        """All that stand in the log, in order."""
        self.writer = log.writer("fleet")
        self._reader = log.reader("fleet", fetch_wait_ms=20)
        self._arrived = 0.0
        self._counted_s = time.monotonic()

    async def start(self) -> None:
        await self.log.create_topics(self.names.topics(shards=1, lanes=4))
        await self.writer.start()
        await self._reader.start()
        await self._reader.assign({TopicPartition(self.names.plan, 0): "earliest"})
        await self.catalog(task(), ENDPOINT)

    async def run(self) -> None:
        while True:
            try:
                await self._turn()
            except LogUnavailable:
                if not self.bears_outage:
                    raise
            await asyncio.sleep(self.beat_s)

    async def _turn(self) -> None:
        for records in (await self._reader.read(timeout_ms=20, records_max=100)).values():
            self.plans += [decode_plan(record.value or b"") for record in records]
        await self.tell(*[self.report(name) for name in self.workers], self.counted())

    @property
    def plan(self) -> Plan:
        return max(self.plans, key=lambda plan: plan.epoch, default=Plan())

    def report(self, name: str, **fields: Any) -> WorkerReport:
        binding = self.plan.binding(name)
        hosted = {key: self._hosted(key) for key in (binding.variants if binding is not None else ())}
        said: dict[str, Any] = {
            "worker": name,
            "incarnation": self.workers.get(name, 1),
            "accelerator": "cpu",
            "device": "box",
            "host": name,
            "at_ms": int(time.time() * 1000),
            "state": "ready",
            "epoch": self.plan.epoch,
            "variants": hosted,
            "memory_bytes_max": 10_000,
        }
        return WorkerReport(**(said | fields))

    def _hosted(self, key: str) -> HostedVariant:
        if key in self.corrupt:
            return HostedVariant(state="failed", reason="the file is corrupt")
        if key in self.loading:
            return HostedVariant(state="loading")
        row_ms = LADDER.get(key.partition("/")[2], (0.0, 2.0))[1]
        latency = {1: Latency(row_ms, row_ms * 1.2, 9), 8: Latency(6.0 * row_ms, 7.0 * row_ms, 9)}
        return HostedVariant(state="ready", latency=latency, load_ms=20.0, memory_bytes=100)

    def counted(self) -> DispatcherReport:
        now_s = time.monotonic()
        self._arrived += self.rate_rps * (now_s - self._counted_s)
        self._counted_s = now_s
        count = int(self._arrived)
        counts = EndpointCounts(arrived={"0.8": count}, rows=count, ended=count, timeout_ms=300.0)
        return DispatcherReport(dispatcher="d0", incarnation=1, at_ms=int(time.time() * 1000), shards=(0,), endpoints={"shop": counts})

    async def tell(self, *records: Telemetry) -> None:
        await self.raw(*[encode_telemetry(record) for record in records])

    async def raw(self, *values: bytes) -> None:
        await self.writer.write(self.names.telemetry, 0, [(b"x", value, ()) for value in values])

    async def catalog(self, *specs: TaskSpec | EndpointSpec) -> None:
        await self.writer.write(self.names.catalog, 0, [(catalog_key(spec), encode_catalog(spec), ()) for spec in specs])

    async def control(self, **fields: Any) -> None:
        await self.writer.write(self.names.catalog, 0, [(CONTROL_KEY, encode_control(ControlSpec(**fields)), ())])

    async def publish(self, plan: Plan) -> None:
        await self.writer.write(self.names.plan, 0, [(PLAN_KEY, encode_plan(plan), ())])

    async def history(self, *kinds: str) -> list[PlanDecision]:
        return [decision for decision in await read_history(self.log, self.names) if not kinds or decision.kind in kinds]

    async def newest(self) -> Plan:
        return await read_plan(self.log, self.names) or Plan()

    async def log_plans(self) -> list[Plan]:
        return [decode_plan(record.value or b"") for record in await read_topic(self.log, self.names.plan)]

    async def close(self) -> None:
        await self._reader.close()
        await self.writer.close()


@asynccontextmanager
async def fleet_on(log: Log, names: Names, **fields: Any) -> AsyncIterator[Fleet]:
    """A fleet that reports until the end."""
    fleet = Fleet(log, names, **fields)
    await fleet.start()
    running = asyncio.create_task(fleet.run())
    try:
        yield fleet
        assert not running.done() or running.cancelled(), running.exception()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await fleet.close()


@asynccontextmanager
async def loop_on(
    fleet: Fleet,
    name: str = "one",
    *,
    settings: LoopSettings = QUICK,
    optimizers: MakeOptimizers | InProcess | None = None,
    feed: Callable[[], Feed] | None = None,
    **control: Any,
) -> AsyncIterator[ControlLoop]:
    """A control loop as a task; `control`: fields of its ControlSettings."""
    settings = msgspec.structs.replace(settings, control=msgspec.structs.replace(settings.control, **control))
    fixed = optimizers if isinstance(optimizers, InProcess) else None
    make = optimizers if optimizers is not None and fixed is None else (lambda chosen, _settings: fixed or InProcess(chosen))
    registry = CollectorRegistry()
    made = feed() if feed is not None else LogFeed(fleet.log, fleet.names, name=name)
    loop = ControlLoop(fleet.log, fleet.names, made, name=name, registry=registry, settings=settings, make_optimizers=make)  # type: ignore[arg-type]
    loop.registry = registry  # type: ignore[attr-defined]
    running = asyncio.create_task(loop.run())
    loop.running = running  # type: ignore[attr-defined]
    try:
        yield loop
    finally:
        loop.stop()
        await asyncio.wait({running}, timeout=15.0)
        ended = running.done()
        running.cancel()
        outcome = (await asyncio.gather(running, return_exceptions=True))[0]
        assert ended, "the loop did not stop in time"
        loop.outcome = outcome  # type: ignore[attr-defined]


def metric(loop: ControlLoop, name: str, **labels: str) -> float:
    value = loop.registry.get_sample_value(name, labels)  # type: ignore[attr-defined]
    return 0.0 if value is None else value

"""Trials on genuine Kafka: a cluster that tells of itself, a leader that does what the catalog says, and clients' answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from broker.kafka import KafkaLog
from deploy.snapshots import read_catalog, read_plan
from scaler.policy.guarded import GuardSettings
from scaler.trial import ShadowTrial, TrialSettings
from scaler.trial_comparing import TrialImpossible
from scaler.trial_switchback import Switchback, SwitchbackSettings
from schemas.catalog import EndpointSpec, TaskSpec, VariantSpec, catalog_key, encode_catalog
from schemas.control import CONTROL_KEY, ControlSpec, encode_control
from schemas.names import Names
from schemas.plan import PLAN_KEY, Binding, Plan, encode_plan
from schemas.profile import Latency
from schemas.telemetry import DispatcherReport, EndpointCounts, HostedVariant, ScalerReport, WorkerReport, encode_telemetry
from schemas.terminal import JSON_TYPE, TERMINAL_VERSION, Terminal, encode_terminal

LADDER = {"small": (0.80, 1.0), "large": (0.90, 4.0)}
GUARD = GuardSettings(time_s=2.0, grace_s=8.0)
Eventually = Callable[..., Awaitable[object]]


class Cluster:
    """Says every 100 ms what a small cluster would; answers 20 requests each time, less accurately while `static-fast` plans."""

    def __init__(self, log: KafkaLog, names: Names) -> None:
        self._log, self._names, self._count = log, names, 0
        self._writer = log.writer("cluster")

    async def run(self) -> None:
        while True:
            now_ms = int(time.time() * 1000)
            control = (await read_catalog(self._log, self._names)).control
            optimizer = control.optimizer or "headrace"
            self._count += 20
            hosted = {
                f"t/{name}": HostedVariant(state="ready", latency={1: Latency(ms, ms, 9), 8: Latency(6 * ms, 6 * ms, 9)}, load_ms=50.0)
                for name, (_, ms) in LADDER.items()
            }
            counts = EndpointCounts(arrived={"0.5": self._count}, rows=self._count, ended=self._count, timeout_ms=300.0)
            told = (
                WorkerReport(worker="w", incarnation=1, accelerator="cpu", device="box", host="h", at_ms=now_ms, state="ready", variants=hosted),
                DispatcherReport(dispatcher="d", incarnation=1, at_ms=now_ms, shards=(0,), endpoints={"shop": counts}),
                ScalerReport(scaler="s", incarnation=1, at_ms=now_ms, leads_since_ms=1, optimizer=optimizer),
            )
            await self._writer.write(self._names.telemetry, 0, [(None, encode_telemetry(record), ()) for record in told])
            accuracy = 0.8 if optimizer == "static-fast" else 0.9
            answers = [self._answer(f"r{self._count + number}", now_ms, accuracy) for number in range(20)]
            await self._writer.write(self._names.responses, 0, answers)
            await asyncio.sleep(0.1)

    @staticmethod
    def _answer(key: str, now_ms: int, accuracy: float) -> tuple[bytes, bytes, tuple[()]]:
        terminal = Terminal(
            id=key, outcome="completed", endpoint="shop", path=[], accuracy=accuracy, received_ms=now_ms, finished_ms=now_ms, attempts=1,
            epoch=1, version=TERMINAL_VERSION,
        )  # fmt: skip
        return key.encode(), encode_terminal(terminal, JSON_TYPE), ()

    async def begin(self) -> None:
        await self._log.create_topics(self._names.topics())
        await self._writer.start()
        variants = tuple(VariantSpec(name=name, file=name, sha256=name, accuracy=accuracy) for name, (accuracy, _) in LADDER.items())
        for spec in (TaskSpec(name="t", variants=variants), EndpointSpec(name="shop", task="t")):
            await self._writer.write(self._names.catalog, 0, [(catalog_key(spec), encode_catalog(spec), ())])
        await self.control(ControlSpec(optimizer="greedy"))
        binding = Binding(worker="w", accelerator="cpu", lane=0, variants=("t/large", "t/small"))
        await self._writer.write(self._names.plan, 0, [(PLAN_KEY, encode_plan(Plan(epoch=7, bindings=(binding,))), ())])

    async def control(self, spec: ControlSpec) -> None:
        await self._writer.write(self._names.catalog, 0, [(CONTROL_KEY, encode_control(spec), ())])

    async def close(self) -> None:
        await self._writer.close()


@asynccontextmanager
async def running(address: str, prefix: str) -> AsyncGenerator[tuple[KafkaLog, Names, Cluster]]:
    log, names = KafkaLog(address), Names(prefix)
    cluster = Cluster(log, names)
    await cluster.begin()
    telling = asyncio.create_task(cluster.run())
    try:
        yield log, names, cluster
    finally:
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telling
        await cluster.close()
        await log.close()


async def test_a_shadow_finds_the_less_accurate_one_worse_and_changes_nothing(kafka_address: str, prefix: str) -> None:
    async with running(kafka_address, prefix) as (log, names, _):
        settings = TrialSettings(duration_s=6.0, interval_s=1.0, guard=GUARD)
        report = await ShadowTrial(log, names, candidate="static-fast", against="static-accurate", settings=settings).run(asyncio.Event())
        assert report.verdict == "worse"
        assert report.worth is not None
        assert report.worth.mean == pytest.approx(-0.1, abs=0.03)
        assert report.candidate.offered == report.against.offered > 100
        plan = await read_plan(log, names)
        assert plan is not None
        assert plan.epoch == 7
        assert (await read_catalog(log, names)).control.optimizer == "greedy"


async def test_a_candidate_that_never_proposes_has_no_trial(kafka_address: str, prefix: str) -> None:
    async with running(kafka_address, prefix) as (log, names, _):
        settings = TrialSettings(duration_s=20.0, interval_s=0.5, guard=GUARD)
        trial = ShadowTrial(log, names, candidate="moody_optimizers:Absent", against="greedy", settings=settings)
        with pytest.raises(TrialImpossible, match="proposed nothing 3 times in a row"):
            await trial.run(asyncio.Event())


async def test_a_switchback_measures_both_and_puts_back_what_was_chosen(kafka_address: str, prefix: str) -> None:
    async with running(kafka_address, prefix) as (log, names, _):
        settings = SwitchbackSettings(duration_s=9.0, period_s=1.5, settle_s=0.5, guard=GUARD)
        report = await Switchback(log, names, candidate="static-fast", against="static-accurate", settings=settings).run(asyncio.Event())
        assert (report.worth is not None, len(report.pairs)) == (True, 3)
        assert report.verdict == "worse"
        assert report.candidate.accuracy_served == pytest.approx(0.8, abs=0.03)
        assert report.against.accuracy_served == pytest.approx(0.9, abs=0.03)
        assert (await read_catalog(log, names)).control.optimizer == "greedy"


@pytest.mark.parametrize("end", ["stopped", "cancelled", "pinned"])
async def test_however_a_switchback_ends_no_choice_of_its_own_is_left(kafka_address: str, prefix: str, eventually: Eventually, end: str) -> None:
    async with running(kafka_address, prefix) as (log, names, cluster):
        stopping = asyncio.Event()
        settings = SwitchbackSettings(duration_s=120.0, period_s=60.0, settle_s=0.5, guard=GUARD)
        trial = asyncio.create_task(Switchback(log, names, candidate="static-fast", against="static-accurate", settings=settings).run(stopping))

        async def switched() -> bool:
            return (await read_catalog(log, names)).control.optimizer.startswith("static-")

        await eventually(switched, timeout_s=30.0)
        if end == "stopped":
            stopping.set()
            assert (await trial).verdict == "too little data"
        elif end == "cancelled":
            trial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await trial
        else:
            await cluster.control(ControlSpec(optimizer="loki", pinned=True, changed_by="ann", changed_ms=int(time.time() * 1000) + 5))
            with pytest.raises(TrialImpossible, match=r"the plan was pinned by ann during the trial"):
                await trial
        assert (await read_catalog(log, names)).control.optimizer == ("loki" if end == "pinned" else "greedy")


async def test_without_telemetry_the_trial_says_what_is_missing(kafka_address: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler.trial_watching.WAIT_S_MAX", 0.5)
    log, names = KafkaLog(kafka_address), Names(prefix)
    cluster = Cluster(log, names)
    await cluster.begin()
    with pytest.raises(TrialImpossible, match=r"no telemetry in .*headrace status"):
        await ShadowTrial(log, names, candidate="loki", against="greedy", settings=TrialSettings()).run(asyncio.Event())
    await cluster.close()
    await log.close()

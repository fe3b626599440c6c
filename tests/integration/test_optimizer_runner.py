"""Optimizers in processes of their own: whatever a plug-in does, there is an answer in time, and the next turn works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psutil
import pytest

from scaler.optimizer_runner import GuardedOptimizers, OptimizerRunner
from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import Cost, EndpointDemand, FloorDemand, Snapshot, StageDemand, Variant, Worker
from scaler.policy.guarded import DIED, INVALID, LATE, NONSENSE, RAISED, Failure, GuardSettings
from schemas.profile import Latency

MOODY = "moody_optimizers:Moody"
SETTINGS = GuardSettings(time_s=0.3, grace_s=0.3)
PATIENT = GuardSettings(time_s=20.0, grace_s=1.0)
SNAPSHOT = Snapshot(
    at_ms=0.0,
    endpoints=(
        EndpointDemand(
            endpoint="shop",
            stages=(StageDemand(name="", task="t"),),
            floors=(FloorDemand(floor=0.0, rate_rps=50.0, forecast_rps=60.0),),
            timeout_ms=500.0,
        ),
    ),
    variants=(Variant(key="t/a", task="t", accuracy=0.9, costs={"cpu": Cost(latency={1: {1: Latency(2.0, 3.0), 8: Latency(9.0, 11.0)}})}),),
    workers=(Worker(name="w0", accelerator="cpu", type="cpu"), Worker(name="w1", accelerator="cpu", type="cpu")),
)


@asynccontextmanager
async def running(name: str = MOODY, mood: int | None = None, *, settings: GuardSettings = SETTINGS) -> AsyncGenerator[OptimizerRunner]:
    runner = OptimizerRunner(name, None if mood is None else {"mood": mood}, settings=settings, memory_bytes_max=512 << 20)
    try:
        yield runner
    finally:
        await runner.close()


async def failure_of(mood: int, settings: GuardSettings = SETTINGS) -> Failure:
    async with running(mood=mood, settings=settings) as runner:
        found = await runner.propose(SNAPSHOT, seed=1)
        assert isinstance(found, Failure)
        return found


async def test_a_proposal_comes_back_as_it_was_made_and_the_process_is_kept() -> None:
    async with running(mood=0) as runner:
        first = await runner.propose(SNAPSHOT, seed=1)
        pid = runner.pid
        second = await runner.propose(SNAPSHOT, seed=1)
        assert isinstance(first, Proposal)
        assert [binding.worker for binding in first.bindings] == ["w0", "w1"]
        assert (first, runner.pid) == (second, pid)
    assert pid is not None
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3])
async def test_a_question_that_nobody_waits_for_any_more_does_not_spoil_the_next_one(after_s: float) -> None:
    async with running(mood=0) as runner:
        dropped = asyncio.create_task(runner.propose(SNAPSHOT, seed=1))
        await asyncio.wait({dropped}, timeout=after_s)
        dropped.cancel()
        found = await runner.propose(SNAPSHOT, seed=2)
        assert isinstance(found, Proposal), found


async def test_closing_waits_for_nobody() -> None:
    async with running(mood=2) as runner:
        asking = asyncio.create_task(runner.propose(SNAPSHOT, seed=1))
        await asyncio.wait({asking}, timeout=0.05)
        began_s = time.monotonic()
        await runner.close()
        assert time.monotonic() - began_s < 5.0
        assert isinstance(await asking, Failure)
        assert runner.pid is None


@pytest.mark.parametrize(
    ("mood", "kind", "said"),
    [
        (1, RAISED, "ZeroDivisionError: no demand"),
        (4, DIED, "segmentation fault, so to say"),
        (5, NONSENSE, "it returned str"),
        (6, INVALID, "worker 'ghost' is unknown"),
        (8, NONSENSE, "fields of the wrong kind"),
        (9, RAISED, "cannot be built: RuntimeError: no licence"),
    ],
)
async def test_what_goes_wrong_is_told(mood: int, kind: str, said: str) -> None:
    failure = await failure_of(mood, PATIENT)
    assert failure.kind == kind
    assert said in failure.reason


async def test_a_plug_in_that_never_returns_is_ended_in_time() -> None:
    async with running(mood=0) as well:
        await well.propose(SNAPSHOT, seed=1)  # what a start takes is not measured here
    async with running(mood=2) as runner:
        failure = await runner.propose(SNAPSHOT, seed=1)
        assert isinstance(failure, Failure)
        assert failure.kind == LATE
        assert runner.pid is None
        began_s = time.monotonic()
        assert isinstance(await runner.propose(SNAPSHOT, seed=1), Failure)
        assert time.monotonic() - began_s < 25.0


async def test_a_plug_in_that_leaks_is_ended_before_the_machine_is_full() -> None:
    failure = await failure_of(3, PATIENT)
    assert failure.kind == DIED
    assert "MiB of memory" in failure.reason


async def test_what_a_plug_in_prints_is_no_reply_and_fills_no_pipe() -> None:
    async with running(mood=7, settings=PATIENT) as runner:
        assert isinstance(await runner.propose(SNAPSHOT, seed=1), Proposal)


async def test_an_unknown_name_is_a_failure_that_names_what_is_known() -> None:
    async with running("gredy") as runner:
        failure = await runner.propose(SNAPSHOT, seed=1)
        assert isinstance(failure, Failure)
        assert "greedy" in failure.reason


async def test_another_optimizer_stands_in_and_the_bad_one_is_left_out_for_a_while() -> None:
    bad = OptimizerRunner(MOODY, {"mood": 4}, settings=PATIENT)
    good = OptimizerRunner("greedy", settings=PATIENT)
    guarded = GuardedOptimizers([bad, good], PATIENT)
    try:
        first = await guarded.propose(SNAPSHOT, seed=1, now_ms=0.0)
        assert (first.optimizer, first.proposal is not None) == ("greedy", True)
        assert len(first.failures) == 1
        second = await guarded.propose(SNAPSHOT, seed=1, now_ms=1_000.0)
        assert (second.optimizer, second.failures) == ("greedy", ())
        assert bad.pid is None
        later = await guarded.propose(SNAPSHOT, seed=1, now_ms=60_000.0)
        assert len(later.failures) == 1
    finally:
        await guarded.close()

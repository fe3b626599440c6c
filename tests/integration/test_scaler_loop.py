"""The live control loop over the log in memory: plans, rebindings step by step, pins, switches, other leaders, bad input, and its own watchdog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from scaler_fleet import ENDPOINT, QUICK, Fleet, InProcess, fleet_on, loop_on, metric, task

from broker.memory import MemoryLog
from deploy.snapshots import read_topic
from scaler.control_loop import ScalerStalled
from scaler.control_loop_feed import Listener
from scaler.optimizer_runner import GuardedOptimizers, OptimizerRunner
from scaler.policy.guarded import GuardSettings
from schemas.learned_costs import LEARNED_COSTS_KEY
from schemas.names import Names
from schemas.plan import Binding, Plan
from schemas.telemetry import HostedVariant, WorkerReport

Eventually = Callable[..., Awaitable[Any]]
NAMES = Names("loop")
BOTH = {"t/small", "t/large"}


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    log = MemoryLog()
    async with fleet_on(log, NAMES) as found:
        yield found
    await log.close()


def hosted(plan: Plan) -> dict[str, set[str]]:
    return {binding.worker: set(binding.variants) for binding in plan.bindings}


def planned(fleet: Fleet) -> bool:
    return bool(fleet.plan.optimizer)


async def test_everything_is_tried_first_and_then_planned_and_the_history_says_why(fleet: Fleet, eventually: Eventually) -> None:
    async with loop_on(fleet) as loop:
        await eventually(lambda: len(fleet.plans) > 0)
        assert hosted(fleet.plans[0]) == {"w0": BOTH, "w1": BOTH}
        assert (fleet.plans[0].planner, fleet.plans[0].optimizer) == ("one", "")
        fleet.rate_rps = 400.0
        await eventually(lambda: planned(fleet))
        await eventually(lambda: metric(loop, "headrace_scaler_lag_messages", group=NAMES.dispatchers_group, topic=NAMES.requests) == 0.0)
        assert metric(loop, "headrace_scaler_leads") == 1.0
        assert metric(loop, "headrace_scaler_decisions_total", kind="published") >= 2.0
        assert metric(loop, "headrace_scaler_epoch") == fleet.plan.epoch
    plans = await fleet.log_plans()
    assert [plan.epoch for plan in plans] == list(range(1, len(plans) + 1))
    published = await fleet.history("published", "step")
    assert [decision.plan for decision in published] == plans
    measured = next(decision for decision in published if decision.optimizer == "greedy")
    assert measured.explanation is not None
    assert measured.demand["shop"].forecast_rps > 0.0
    assert measured.rules is not None
    assert measured.rules.gain_min == 0.01


async def test_a_new_leader_goes_on_from_the_last_plan_and_from_what_was_reported_before_it(fleet: Fleet, eventually: Eventually) -> None:
    async with loop_on(fleet):
        await eventually(lambda: len(fleet.plans) > 0)
        await asyncio.sleep(1.0)
    before = await fleet.newest()
    optimizer = InProcess()
    async with loop_on(fleet, "two", optimizers=optimizer):
        await eventually(lambda: optimizer.snapshots)
    first = optimizer.snapshots[0]
    assert first.plan.epoch >= before.epoch
    assert {worker.name for worker in first.workers} == {"w0", "w1"}
    assert first.endpoints[0].forecast_rps > 10.0
    led = (await fleet.history("led"))[-1]
    assert led.scaler == "two"
    assert "knows 2 workers" in led.reason


async def test_a_new_leader_knows_what_variants_cost_that_nobody_hosts_any_more(fleet: Fleet, eventually: Eventually) -> None:
    optimizer = InProcess()
    async with loop_on(fleet, optimizers=optimizer):
        await eventually(lambda: optimizer.snapshots and {variant.key for variant in optimizer.snapshots[-1].variants} == BOTH)
        await eventually(lambda: kept_costs(fleet))
    last = await fleet.newest()
    small = tuple(msgspec.structs.replace(binding, variants=("t/small",)) for binding in last.bindings)
    await fleet.publish(msgspec.structs.replace(last, epoch=last.epoch + 1, bindings=small))
    await eventually(lambda: all(found == {"t/small"} for found in hosted(fleet.plan).values()))
    await asyncio.sleep(0.3)  # of what was told before, nothing is read
    optimizer, epoch = InProcess(), fleet.plan.epoch
    async with loop_on(fleet, "two", settings=msgspec.structs.replace(QUICK, replay_ms=150.0), optimizers=optimizer):
        await eventually(lambda: optimizer.snapshots)
        assert {variant.key for variant in optimizer.snapshots[0].variants} == BOTH
        await eventually(lambda: optimizer.asked >= 2)
    later = [plan for plan in await fleet.log_plans() if plan.epoch > epoch]
    assert all(plan.optimizer for plan in later), "what is known is not tried"


async def kept_costs(fleet: Fleet) -> bool:
    return any(record.key == LEARNED_COSTS_KEY for record in await read_topic(fleet.log, fleet.names.catalog))


async def test_one_leads_and_the_other_takes_over(fleet: Fleet, eventually: Eventually) -> None:
    async with loop_on(fleet, "two") as standby:
        async with loop_on(fleet, "one") as first:
            await eventually(lambda: first.leading or standby.leading)
            await eventually(lambda: first.leading != standby.leading)
            assert standby.unready() == first.unready() == ""
        await eventually(lambda: standby.leading)


async def test_a_rebinding_is_done_in_steps_that_keep_serving(fleet: Fleet, eventually: Eventually) -> None:
    async with loop_on(fleet):
        await eventually(lambda: planned(fleet) or len(fleet.plans) > 0)
        fleet.rate_rps = 30.0
        await fleet.catalog(task(("small",)))
        await eventually(lambda: fleet.plan.bindings and all(found == {"t/small"} for found in hosted(fleet.plan).values()))
        await fleet.catalog(task())
        fleet.loading.add("t/large")
        await eventually(lambda: any("t/large" in found for found in hosted(fleet.plan).values()))
        # Catalog change in the middle of the rebinding: what is being loaded is gone again.
        await fleet.catalog(task(("small",)))
        await eventually(lambda: all(found == {"t/small"} for found in hosted(fleet.plan).values()))
        fleet.loading.clear()
    plans = await fleet.log_plans()
    assert [plan.epoch for plan in plans] == sorted({plan.epoch for plan in plans})
    assert all(any(binding.variants for binding in plan.bindings) for plan in plans)


async def test_a_corrupt_model_is_quarantined_and_the_plan_made_without_it(fleet: Fleet, eventually: Eventually) -> None:
    fleet.corrupt.add("t/large")
    optimizer = InProcess()
    async with loop_on(fleet, optimizers=optimizer):
        await eventually(lambda: fleet.plan.bindings and all(found == {"t/small"} for found in hosted(fleet.plan).values()))
        await eventually(lambda: optimizer.snapshots)
    assert optimizer.snapshots[-1].workers[0].refused == {"t/large": "the file is corrupt"}
    assert (await fleet.history("kept", "published"))[-1].left_out == {f"{name}: t/large": "the file is corrupt" for name in ("w0", "w1")}


async def test_zero_demand_for_long_keeps_the_endpoint_ready(fleet: Fleet, eventually: Eventually) -> None:
    fleet.rate_rps = 0.0
    optimizer = InProcess()
    async with loop_on(fleet, optimizers=optimizer):
        await eventually(lambda: optimizer.asked >= 3)
    assert fleet.plan.bindings
    assert any(found for found in hosted(fleet.plan).values())


async def test_a_pinned_plan_stays_until_it_is_unpinned(fleet: Fleet, eventually: Eventually) -> None:
    optimizer = InProcess()
    async with loop_on(fleet, optimizers=optimizer) as loop:
        await eventually(lambda: optimizer.asked > 0 and fleet.plans)
        await fleet.control(pinned=True, pin_reason="measuring", changed_by="ann")
        await eventually(lambda: metric(loop, "headrace_scaler_pinned") == 1.0)
        epoch, asked = fleet.plan.epoch, optimizer.asked
        await fleet.catalog(task(("small",)))
        fleet.workers["w2"] = 1
        await asyncio.sleep(1.5)
        assert (fleet.plan.epoch, optimizer.asked) == (epoch, asked)
        await fleet.control()
        await eventually(lambda: "w2" in hosted(fleet.plan))
    pins = await fleet.history("pinned", "unpinned")
    assert [(pin.kind, pin.reason) for pin in pins] == [("pinned", "measuring by ann"), ("unpinned", "asked for")]


async def test_the_optimizer_is_switched_while_all_goes_on(fleet: Fleet, eventually: Eventually) -> None:
    made: dict[str, InProcess] = {}

    def make(name: str, _settings: object) -> InProcess:
        made[name] = InProcess(name)
        return made[name]

    async with loop_on(fleet, optimizers=make):  # type: ignore[arg-type]
        await eventually(lambda: "greedy" in made)
        await fleet.control(optimizer="loki")
        await eventually(lambda: "loki" in made and made["loki"].asked)
        asked = made["greedy"].asked
        await eventually(lambda: made["loki"].asked >= 2)
        assert made["greedy"].asked == asked
    switched = (await fleet.history("switched"))[0]
    assert switched.reason == "from greedy to loki"


async def test_older_epochs_of_somebody_else_are_written_over_and_newer_ones_followed(fleet: Fleet, eventually: Eventually) -> None:
    async with loop_on(fleet):
        await eventually(lambda: fleet.plan.epoch >= 1)
        stale = msgspec.structs.replace(fleet.plans[0], epoch=fleet.plan.epoch, planner="ghost", bindings=())
        await fleet.publish(stale)
        await eventually(lambda: fleet.plans[-1].planner == "one" and fleet.plans[-1].epoch > stale.epoch)
        # One that is newer, and cannot be: both workers on one lane.
        both = tuple(Binding(worker=name, accelerator="cpu", lane=0, variants=("t/small", "t/ghost")) for name in ("w0", "w1"))
        await fleet.publish(Plan(epoch=fleet.plan.epoch + 7, bindings=both, planner="ghost"))
        newer = fleet.plan.epoch + 7
        await eventually(lambda: fleet.plan.planner == "one" and fleet.plan.epoch > newer)
        assert sorted(binding.lane for binding in fleet.plan.bindings) == [0, 1]
        assert not any("t/ghost" in found for found in hosted(fleet.plan).values())
    assert await fleet.history("mended")
    newest = -1
    for plan in await fleet.log_plans():
        assert plan.epoch > newest or plan.planner == "ghost"
        newest = max(newest, plan.epoch)


async def test_telemetry_that_lies_changes_nothing(fleet: Fleet, eventually: Eventually) -> None:
    async with loop_on(fleet) as loop:
        await eventually(lambda: fleet.plan.epoch >= 1)
        ghost = WorkerReport(
            worker="liar", incarnation=1, accelerator="cpu", device="box", host="h", at_ms=-5, state="nonsense", memory_bytes_max=1 << 62,
            variants={"t/large": HostedVariant(state="ready", load_ms=-1e300)},
        )  # fmt: skip
        await fleet.tell(ghost)
        await fleet.raw(
            b"", b"{", b"\xff\xfe", b'{"kind":"worker"}', b'{"kind":"worker","worker":"n","credits":-1}', b'{"kind":"unheard-of"}', b"[" * 500
        )
        fleet.workers["w2"] = 1
        await eventually(lambda: "w2" in hosted(fleet.plan))
        assert not loop.running.done()  # type: ignore[attr-defined]
    assert "liar" not in hosted(fleet.plan)


@pytest.mark.parametrize("mood", [1, 2, 5, 6])
async def test_a_plug_in_that_misbehaves_costs_its_turn_and_nothing_else(fleet: Fleet, mood: int, eventually: Eventually) -> None:
    """It raises, hangs, returns nonsense, and plans for workers that are not there; greedy stands in."""
    guard = GuardSettings(time_s=0.3, grace_s=0.2)

    def make(_name: str, _settings: object) -> GuardedOptimizers:
        runners = [OptimizerRunner("moody_optimizers:Moody", {"mood": float(mood)}, settings=guard), OptimizerRunner("greedy", settings=guard)]
        return GuardedOptimizers(runners, guard)

    async with loop_on(fleet, optimizers=make) as loop:  # type: ignore[arg-type]
        await eventually(lambda: metric(loop, "headrace_scaler_optimizer_failures_total") >= 1.0, timeout_s=20.0)
        assert not loop.running.done()  # type: ignore[attr-defined]
    failed = [decision for decision in await fleet.history() if decision.failures]
    assert failed[0].failures[0].startswith("moody_optimizers:Moody")
    assert failed[0].optimizer == "greedy"


async def test_an_answer_that_comes_after_the_lead_was_lost_is_not_published(fleet: Fleet, eventually: Eventually) -> None:
    optimizer = InProcess()
    optimizer.hold.clear()
    async with loop_on(fleet, optimizers=optimizer) as loop:
        await eventually(lambda: optimizer.asked)
        epoch = (await fleet.newest()).epoch
        loop.revoked()
        optimizer.hold.set()
        await asyncio.sleep(0.5)
        assert not loop.leading
        assert (await fleet.newest()).epoch == epoch


class DeafFeed:
    """It leads, and hears nothing."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    async def run(self, listener: Listener) -> None:
        listener.assigned()
        await self._stopping.wait()

    def stop(self) -> None:
        self._stopping.set()


async def test_a_leader_that_hears_nothing_ends_with_the_reason(fleet: Fleet, eventually: Eventually) -> None:
    settings = msgspec.structs.replace(QUICK, silent_s_max=0.6)
    async with loop_on(fleet, settings=settings, feed=DeafFeed) as loop:
        await eventually(loop.running.done)  # type: ignore[attr-defined]
        with pytest.raises(ScalerStalled, match="no telemetry was read"):
            loop.running.result()  # type: ignore[attr-defined]


async def test_without_endpoints_or_workers_nothing_is_planned(eventually: Eventually) -> None:
    log = MemoryLog()
    async with fleet_on(log, NAMES, workers=()) as fleet, loop_on(fleet) as loop:
        await eventually(lambda: loop.leading)
        await asyncio.sleep(0.5)
        assert (await fleet.newest()).epoch == 0
        fleet.workers["w0"] = 1
        await fleet.catalog(ENDPOINT)
        await eventually(lambda: fleet.plan.epoch == 1)
    await log.close()

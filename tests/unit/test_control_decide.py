"""What becomes of a proposal: checked, held against the present plan, put on the workers with the fewest loads, and carried out in steps."""

from __future__ import annotations

import msgspec
import pytest
from control_stage import ControlStage, hosted, proposing

from scaler.optimizers.optimizer import ALWAYS, FEASIBLE, WITHOUT_LOADS, Explanation, Proposal
from scaler.policy.control import INVALID, KEPT, PUBLISHED, STEP
from scaler.policy.control_settings import ControlSettings
from schemas.plan import Binding, Plan

BOTH = ("t/large", "t/small")


def settled(workers: tuple[str, ...] = ("w0", "w1")) -> ControlStage:
    """Both variants are measured, and everybody hosts them."""
    stage = ControlStage(workers)
    stage.run(2)
    for name in workers:
        stage.policy.observe_worker(stage.report(name, variants={key: hosted(key) for key in BOTH}), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    plan = stage.policy.decide(proposing(snapshot, dict.fromkeys(workers, BOTH)), snapshot, stage.now_ms)
    assert plan is not None
    stage.second()
    return stage


def test_an_invalid_proposal_leaves_the_plan_in_force_and_the_reason_is_kept() -> None:
    stage = settled()
    before = stage.policy.plan
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert stage.policy.decide(proposing(snapshot, {"w0": ("t/huge",)}), snapshot, stage.now_ms, "moody") is None
    last = stage.policy.history[-1]
    assert (last.kind, last.epoch) == (INVALID, before.epoch)
    assert "moody proposed what cannot be: worker 'w0' gets 't/huge', which is unknown" in last.reason
    assert stage.policy.plan == before


def test_a_proposal_for_a_dead_worker_is_invalid() -> None:
    stage = settled()
    del stage.incarnations["w1"]
    stage.run(4)
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert stage.policy.decide(proposing(snapshot, {"w1": BOTH}), snapshot, stage.now_ms) is None
    assert "'w1' is lost" in stage.policy.history[-1].reason


def test_a_gain_that_is_not_worth_its_loads_is_kept_and_says_so() -> None:
    stage = settled()
    narrow = proposing(stage.policy.snapshot(stage.now_ms), {"w0": ("t/large",), "w1": BOTH})
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert stage.policy.decide(narrow, snapshot, stage.now_ms) is None
    last = stage.policy.history[-1]
    assert last.kind == KEPT
    assert last.reason.startswith("a gain of 0.00% is not worth it (accuracy 0.9000, now 0.9000; 0 loads")
    assert stage.policy.decide(proposing(snapshot, {"w0": BOTH, "w1": BOTH}), snapshot, stage.now_ms) is None
    assert stage.policy.history[-1].reason == "the bindings are the same"


def test_what_loads_nothing_is_taken_where_requests_are_late() -> None:
    stage = settled()
    stage.missed_part = 0.2
    before = stage.policy.plan.epoch
    for _ in range(3):
        stage.now_ms += 1_000.0
        for name in stage.incarnations:
            stage.policy.observe_worker(stage.report(name), stage.now_ms)
        stage.policy.observe_dispatcher(stage.counted(), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    plan = stage.policy.decide(proposing(snapshot, {"w0": ("t/large",), "w1": BOTH}), snapshot, stage.now_ms)
    assert plan is not None
    assert plan.epoch > before
    assert plan.reason.endswith("shop is late with what is bound, and the change loads nothing")


def test_a_gain_is_taken() -> None:
    stage = settled()
    snapshot = stage.policy.snapshot(stage.now_ms)
    stage.policy.observe_plan(Plan(epoch=9, bindings=tuple(msgspec.structs.replace(b, variants=("t/small",)) for b in stage.policy.plan.bindings)))
    for name in ("w0", "w1"):
        stage.policy.observe_worker(stage.report(name), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    plan = stage.policy.decide(proposing(snapshot, {"w0": BOTH, "w1": BOTH}), snapshot, stage.now_ms)
    assert plan is not None
    assert plan.epoch == 10
    assert "accuracy 0.9000, now 0.8000; 2 loads cost 0.0% of the workers' time" in plan.reason
    assert (stage.policy.history[-1].kind, stage.policy.history[-1].loads) == (PUBLISHED, 2)


def test_shares_alone_are_published_without_touching_the_bindings() -> None:
    stage = settled()
    bindings = stage.policy.plan.bindings
    snapshot = stage.policy.snapshot(stage.now_ms)
    shares = {"t": {"t/large": 0.25, "t/small": 0.75}}
    plan = stage.policy.decide(proposing(snapshot, {"w0": ("t/large",), "w1": BOTH}, shares), snapshot, stage.now_ms)
    assert plan is not None
    assert (plan.bindings, plan.shares) == (bindings, shares)
    nearly = {"t": {"t/large": 0.26, "t/small": 0.74}}
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert stage.policy.decide(proposing(snapshot, {"w0": BOTH, "w1": BOTH}, nearly), snapshot, stage.now_ms) is None


def test_a_rebinding_goes_by_steps_and_waits_for_those_who_load() -> None:
    stage = settled()
    large = tuple(msgspec.structs.replace(binding, variants=("t/large",)) for binding in stage.policy.plan.bindings)
    stage.policy.observe_plan(Plan(epoch=5, bindings=large))
    for name in ("w0", "w1"):
        stage.policy.observe_worker(stage.report(name), stage.now_ms)
    stage.rate_rps = 3_000.0  # more than the large variant serves
    stage.counts.clear()
    for _ in range(3):
        stage.now_ms += 1_000.0
        stage.policy.observe_dispatcher(stage.counted(), stage.now_ms)
        for name in ("w0", "w1"):
            stage.policy.observe_worker(stage.report(name), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    shares = {"t": {"t/small": 1.0}}
    first = stage.policy.decide(proposing(snapshot, {"w0": ("t/small",), "w1": ("t/small",)}, shares), snapshot, stage.now_ms)
    assert first is not None
    assert [set(binding.variants) for binding in first.bindings] == [{"t/small", "t/large"}] * 2
    assert (first.epoch, first.shares) == (6, {})
    loading = {"t/small": hosted("t/small", "loading"), "t/large": hosted("t/large")}
    for name in ("w0", "w1"):
        stage.policy.observe_worker(stage.report(name, variants=loading), stage.now_ms)
    assert stage.policy.next_step(stage.now_ms) is None
    for name in ("w0", "w1"):
        stage.policy.observe_worker(stage.report(name), stage.now_ms)
    last = stage.policy.next_step(stage.now_ms)
    assert last is not None
    assert ([binding.variants for binding in last.bindings], last.epoch, last.shares) == ([("t/small",)] * 2, 7, shares)
    assert (stage.policy.next_step(stage.now_ms), stage.policy.rebinding) == (None, False)
    assert stage.policy.history[-1].kind == STEP


def test_a_step_that_never_settles_is_passed_over_in_the_end() -> None:
    stage = settled()
    stage.policy.observe_plan(Plan(epoch=5, bindings=tuple(msgspec.structs.replace(b, variants=("t/small",)) for b in stage.policy.plan.bindings)))
    for name in ("w0", "w1"):
        stage.policy.observe_worker(stage.report(name), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert stage.policy.decide(proposing(snapshot, {"w0": ("t/large",), "w1": ("t/large",)}), snapshot, stage.now_ms) is not None
    assert stage.policy.next_step(stage.now_ms + 59_000.0) is None
    assert stage.policy.next_step(stage.now_ms + 60_000.0) is not None
    assert "not everybody was ready in time" in stage.policy.history[-1].reason


def test_bindings_go_to_those_who_host_them_and_workers_keep_their_lanes() -> None:
    stage = settled()
    first, second = stage.policy.plan.bindings
    apart = (msgspec.structs.replace(first, variants=("t/small",)), msgspec.structs.replace(second, variants=("t/large",)))
    stage.policy.observe_plan(Plan(epoch=5, bindings=apart))
    for name in ("w0", "w1"):
        stage.policy.observe_worker(stage.report(name), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    crossed = Proposal(
        bindings=(
            Binding(worker="w0", accelerator="cpu", lane=7, variants=("t/large",)),
            Binding(worker="w1", accelerator="cpu", lane=8, variants=("t/small",)),
        ),
        explanation=Explanation(status=FEASIBLE),
    )
    assert stage.policy.decide(crossed, snapshot, stage.now_ms) is None
    assert stage.policy.history[-1].reason == "the bindings are the same"


def test_a_lost_worker_keeps_its_binding_and_lane_until_it_is_forgotten() -> None:
    stage = settled()
    kept = stage.policy.plan.binding("w1")
    del stage.incarnations["w1"]
    stage.incarnations["w2"] = 1
    stage.run(20)
    assert stage.policy.plan.binding("w1") == kept
    assert stage.policy.plan.binding("w2") is not None
    lanes = [binding.lane for binding in stage.policy.plan.bindings]
    assert len(set(lanes)) == len(lanes) == 3
    stage.run(60)
    stage.rate_rps *= 4.0
    stage.incarnations["w3"] = 1
    stage.run(10)
    assert stage.policy.plan.binding("w1") is None


def test_epochs_go_on_from_another_leaders_plan_and_older_plans_change_nothing() -> None:
    stage = settled()
    other = Plan(epoch=41, bindings=stage.policy.plan.bindings[:1], planner="other")
    stage.policy.observe_plan(other)
    stage.policy.observe_plan(Plan(epoch=40))
    assert stage.policy.plan == other
    snapshot = stage.policy.snapshot(stage.now_ms)
    plan = stage.policy.decide(proposing(snapshot, {"w0": BOTH, "w1": BOTH}), snapshot, stage.now_ms)
    assert plan is not None
    assert plan.epoch == 42
    assert "1 workers had nothing to do" in plan.reason


def test_variants_that_nobody_has_measured_are_tried() -> None:
    stage = ControlStage()
    stage.run(4)
    # Nothing is known yet: everybody tries everything.
    assert [set(binding.variants) for binding in stage.plans[0].bindings] == [set(BOTH)] * 2
    stage.run(10)
    assert {variant.key for variant in stage.policy.snapshot(stage.now_ms).variants} == set(BOTH)


def test_what_is_measured_while_an_optimizer_thinks_takes_nothing_from_the_workers() -> None:
    stage = ControlStage()
    while not stage.plans:
        stage.second()
    trying = stage.policy.plan.bindings
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert not any(variant.costs for variant in snapshot.variants)
    for name in stage.incarnations:
        stage.policy.observe_worker(stage.report(name), stage.now_ms)
    # The optimizer knew of nothing to bind, and by now everything is measured: neither is a reason to unbind.
    stage.policy.decide(proposing(snapshot, {}), snapshot, stage.now_ms, obliged="the plan in force cannot be")
    assert stage.policy.plan.bindings == trying


def test_history_is_bounded() -> None:
    stage = settled()
    for _ in range(300):
        stage.policy.failed("late", stage.now_ms)
    assert len(stage.policy.history) == stage.policy.settings.history_max


def test_what_an_optimizer_wants_to_remember_comes_back_in_the_next_snapshot() -> None:
    stage = settled()
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert snapshot.memory == {}
    proposal = msgspec.structs.replace(proposing(snapshot, {"w0": BOTH, "w1": BOTH}), memory={"calm": 3.0})
    assert stage.policy.decide(proposal, snapshot, stage.now_ms) is None
    assert stage.policy.snapshot(stage.now_ms).memory == {"calm": 3.0}


def test_a_plan_whose_optimizer_weighs_loads_itself_is_not_weighed() -> None:
    stage = settled()
    snapshot = stage.policy.snapshot(stage.now_ms)
    narrow = proposing(snapshot, {"w0": ("t/large",), "w1": BOTH})
    assert stage.policy.decide(narrow, snapshot, stage.now_ms) is None
    plan = stage.policy.decide(msgspec.structs.replace(narrow, adopted=WITHOUT_LOADS), snapshot, stage.now_ms)
    assert plan is not None
    assert "it loads nothing" in plan.reason
    stage.run(2)
    again = stage.policy.snapshot(stage.now_ms)
    wide = proposing(again, {"w0": BOTH, "w1": BOTH})
    assert stage.policy.decide(msgspec.structs.replace(wide, adopted=WITHOUT_LOADS), again, stage.now_ms) is None
    plan = stage.policy.decide(msgspec.structs.replace(wide, adopted=ALWAYS), again, stage.now_ms)
    assert plan is not None
    assert "weighs loads itself" in plan.reason
    assert stage.policy.history[-1].loads == 1


def test_what_was_bound_while_nothing_was_asked_gives_way_to_anything_better() -> None:
    stage = ControlStage(("w0", "w1"), ControlSettings(gain_min=0.5))
    stage.rate_rps = 0.0
    stage.run(2)
    for name in stage.incarnations:
        stage.policy.observe_worker(stage.report(name, variants={key: hosted(key) for key in BOTH}), stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    small, large = ({"w0": (key,), "w1": (key,)} for key in ("t/small", "t/large"))
    assert stage.policy.decide(proposing(snapshot, small), snapshot, stage.now_ms) is not None
    stage.second()
    snapshot = stage.policy.snapshot(stage.now_ms)
    assert stage.policy.decide(proposing(snapshot, large), snapshot, stage.now_ms) is None, "still nothing is asked"
    stage.rate_rps = 20.0
    taken: list[bool] = []
    for hosting in (large, small, large):
        stage.now_ms += 1_000.0
        for name in stage.incarnations:
            stage.policy.observe_worker(stage.report(name, variants={key: hosted(key) for key in BOTH}), stage.now_ms)
        stage.policy.observe_dispatcher(stage.counted(), stage.now_ms)
        stage.now_ms += 1_000.0
        stage.policy.observe_dispatcher(stage.counted(), stage.now_ms)
        snapshot = stage.policy.snapshot(stage.now_ms)
        taken.append(stage.policy.decide(proposing(snapshot, hosting), snapshot, stage.now_ms) is not None)
        while stage.policy.next_step(stage.now_ms):
            pass
    assert taken == [True, False, False]


@pytest.mark.parametrize(("rate_rps", "gain", "taken"), [(243.0, "0.20%", False), (250.0, "0.48%", True)])
def test_a_small_gain_in_accuracy_is_worth_loads_that_hardly_lower_it(rate_rps: float, gain: str, taken: bool) -> None:
    """The load costs 0.1 % of the workers' time, and next to nothing of the accuracy."""
    stage = settled()
    stage.rate_rps = rate_rps
    hosting: dict[str, tuple[str, ...]] = {"w0": BOTH, "w1": ("t/small",)}
    snapshot = stage.policy.snapshot(stage.now_ms)
    stage.policy.decide(proposing(snapshot, hosting), snapshot, stage.now_ms, obliged="asked for")
    for _ in range(4):
        stage.now_ms += 1_000.0
        for name, keys in hosting.items():
            stage.policy.observe_worker(stage.report(name, variants={key: hosted(key) for key in keys}), stage.now_ms)
        stage.policy.observe_dispatcher(stage.counted(), stage.now_ms)
        stage.policy.next_step(stage.now_ms)
    snapshot = stage.policy.snapshot(stage.now_ms)
    plan = stage.policy.decide(proposing(snapshot, dict.fromkeys(hosting, BOTH)), snapshot, stage.now_ms)
    assert (plan is not None) == taken, stage.policy.history[-1].reason
    assert taken or stage.policy.history[-1].reason.startswith(f"a gain of {gain} is not worth it")

"""When a plan is due, and what the reason says."""

from __future__ import annotations

import pytest
from control_stage import START_MS, ControlStage, catalog, hosted

from scaler.policy.control_settings import ControlSettings
from schemas.catalog import Catalog
from schemas.telemetry import Departed


def settled(seconds: int = 8) -> ControlStage:
    """Its first plans are made, variants measured, all is quiet."""
    stage = ControlStage()
    stage.run(seconds)
    stage.run(11 if stage.due[-1].startswith("every") else 0)
    return stage


def test_the_first_plan_waits_until_everybody_was_heard() -> None:
    stage = ControlStage()
    assert stage.run(3) == []
    assert stage.run(1) == ["first plan of this leader"]
    assert stage.plans[0].epoch == 1
    assert stage.plans[0].reason.startswith("first plan of this leader: the first plan")


def test_nothing_is_due_without_workers_or_endpoints() -> None:
    stage = ControlStage(workers=())
    assert stage.run(30) == []
    stage = ControlStage()
    stage.policy.observe_catalog(Catalog())
    assert stage.run(30) == []


def test_plans_are_periodic_while_nothing_happens() -> None:
    stage = ControlStage()
    assert stage.run(27) == ["first plan of this leader", "every 10 s", "every 10 s"]


def test_a_demand_shift_makes_a_plan_due_at_once_and_says_by_how_much() -> None:
    stage = settled()
    stage.run(2)
    stage.rate_rps = 200.0
    (reason, *_) = stage.run(3)
    assert reason == "demand of shop shifted: 200/s, planned for 50/s with a margin of 25%"
    assert stage.run(3) == []  # it is what the new plan counts on


def test_what_chance_does_at_a_low_rate_is_no_shift() -> None:
    stage = settled()
    stage.rate_rps = 3.0
    stage.run(25)
    stage.rate_rps = 6.0
    assert [reason for reason in stage.run(5) if "shifted" in reason] == []


def test_a_silent_worker_is_lost_and_one_that_returns_is_planned_at_once() -> None:
    stage = settled()
    del stage.incarnations["w1"]
    (reason,) = stage.run(5)
    assert reason.startswith("worker w1 was lost: silent for ")
    stage.run(3)
    stage.incarnations["w1"] = 1
    assert stage.run(2)[0] == "worker w1 returned"


def test_a_death_that_a_supervisor_saw_counts_once_and_only_for_its_incarnation() -> None:
    stage = settled()
    stage.run(2)
    stage.policy.observe_departed(Departed(role="worker", name="w1", incarnation=7, at_ms=int(stage.now_ms)), stage.now_ms)
    assert stage.policy.due(stage.now_ms) is None
    for _ in range(2):
        stage.policy.observe_departed(Departed(role="worker", name="w1", incarnation=1, at_ms=int(stage.now_ms)), stage.now_ms)
    assert stage.policy.due(stage.now_ms) == "worker w1 was lost: its process ended"


def test_a_change_of_the_catalog_is_a_reason_and_the_same_again_is_none() -> None:
    stage = settled()
    stage.run(2)
    stage.policy.observe_catalog(catalog())
    assert stage.policy.due(stage.now_ms) is None
    stage.policy.observe_catalog(catalog({"small": (0.81, 1.0)}))
    assert stage.policy.due(stage.now_ms) == "the catalog changed"


def test_attainment_below_target_is_a_reason_but_not_again_and_again() -> None:
    stage = settled()
    stage.missed_part = 0.5
    reasons = stage.run(10)
    told = [reason for reason in reasons if "attainment of shop is" in reason]
    assert told[0] == "attainment of shop is 87.5%, the target is 95%"
    assert len(told) == 2


@pytest.mark.parametrize("news", ["lost", "shift"])
def test_no_plan_follows_another_within_the_cool_down(news: str) -> None:
    stage = ControlStage(settings=ControlSettings(cool_down_ms=4_000.0))
    stage.run(4)
    assert len(stage.due) == 1
    if news == "lost":
        stage.policy.observe_departed(Departed(role="worker", name="w1", incarnation=1, at_ms=int(START_MS) * 2), stage.now_ms)
        del stage.incarnations["w1"]
    else:
        stage.rate_rps = 500.0
    assert stage.run(3) == []
    assert len(stage.run(1)) == 1


def test_a_flapping_worker_is_left_out_for_a_while_and_longer_each_time() -> None:
    stage = settled()
    for _ in range(5):
        stage.incarnations["w1"] += 1
        stage.second()
    assert "flapped" in stage.policy.left_out(stage.now_ms)["w1"]
    assert [worker.state for worker in stage.policy.snapshot(stage.now_ms).workers] == ["ready", "lost"]
    assert "w1" in {binding.worker for binding in stage.policy.plan.bindings}  # it keeps its lane
    reasons = stage.run(32)
    assert any("worker w1 may be planned again" in reason for reason in reasons)
    assert stage.policy.left_out(stage.now_ms) == {}


def test_a_variant_that_cannot_be_made_ready_is_refused_there_with_the_reason() -> None:
    stage = settled()
    stage.run(2)
    failed = {"t/large": hosted("t/large", "failed"), "t/small": hosted("t/small")}
    stage.policy.observe_worker(stage.report("w0", variants=failed), stage.now_ms + 10.0)
    assert stage.policy.due(stage.now_ms + 10.0) == "worker w0 cannot host t/large: it failed"
    refused = {worker.name: worker.refused for worker in stage.policy.snapshot(stage.now_ms + 10.0).workers}
    assert refused == {"w0": {"t/large": "it failed"}, "w1": {}}
    # The plan wants it no more, so that the worker says nothing of it: it is not forgotten by that.
    stage.policy.observe_worker(stage.report("w0", variants={"t/small": hosted("t/small")}), stage.now_ms + 20.0)
    assert stage.policy.snapshot(stage.now_ms + 50_000.0).workers[0].refused == {"t/large": "it failed"}
    assert stage.policy.snapshot(stage.now_ms + 70_000.0).workers[0].refused == {}

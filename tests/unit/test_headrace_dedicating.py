"""`headrace` on several tasks: whole workers for each, graphs hosted side by side with shares, settings by name."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from test_headrace_optimizer import LADDER, demand, limits, propose, snapshot, variant, workers

from scaler.optimizers.headrace import HeadraceOptimizer
from scaler.optimizers.headrace.allocation import Model
from scaler.optimizers.optimizer import WITHOUT_LOADS, Limits, Proposal
from scaler.optimizers.registry import create_optimizer
from scaler.optimizers.snapshot import EndpointDemand, StageDemand
from schemas.errors import ConfigurationError

READ = (variant("read", 0, 4.0, 0.7), variant("read", 1, 15.0, 0.9))


def tasks_of(proposal: Proposal) -> list[set[str]]:
    """By worker."""
    return [{key.partition("/")[0] for key in binding.variants} for binding in proposal.bindings]


def graph(rate_rps: float) -> EndpointDemand:
    stages = (StageDemand(name="first", task="look"), StageDemand(name="second", task="read", after="first", rows={"*": 2.0}))
    return replace(demand({0.0: rate_rps}, timeout_ms=2_000.0), stages=stages)


def test_tasks_share_no_worker_where_one_would_make_the_other_late_and_each_has_what_it_needs() -> None:
    asked = (demand({0.0: 60.0}), demand({0.0: 10.0}, "desk", "read", timeout_ms=60.0))
    plan = propose(snapshot(asked, workers(8), LADDER + READ))
    tasks = tasks_of(plan)
    assert len(tasks) == 8
    assert all(len(each) == 1 for each in tasks)
    assert tasks.count({"look"}) > tasks.count({"read"}) >= 1
    assert plan.shares == {}


def test_tasks_share_a_worker_where_there_are_fewer_workers_than_tasks() -> None:
    asked = (demand({0.0: 1.0}), demand({0.0: 1.0}, "desk", "read"))
    assert tasks_of(propose(snapshot(asked, workers(1), LADDER + READ))) == [{"look", "read"}]


def test_an_endpoint_that_few_ask_for_keeps_a_worker() -> None:
    asked = (demand({0.0: 3_000.0}), demand({0.0: 0.2}, "desk", "read"))
    assert any("read" in each for each in tasks_of(propose(snapshot(asked, workers(4), LADDER + READ))))


def test_stages_of_a_graph_are_hosted_side_by_side_and_get_shares() -> None:
    plan = propose(snapshot((graph(20.0),), workers(6), LADDER + READ))
    assert all(each == {"look", "read"} for each in tasks_of(plan))
    assert plan.shares.keys() == {"look", "read"}
    assert all(sum(parts.values()) == pytest.approx(1.0) for parts in plan.shares.values())


def test_stages_of_a_graph_have_workers_of_their_own_where_each_gets_enough_of_them() -> None:
    plan = propose(snapshot((graph(100.0),), workers(12), LADDER + READ))
    tasks = tasks_of(plan)
    assert all(len(each) == 1 for each in tasks)
    assert min(tasks.count({"look"}), tasks.count({"read"})) >= 3
    assert plan.adopted == WITHOUT_LOADS


def test_who_serves_a_task_already_loads_nothing_spare() -> None:
    fleet = tuple(replace(worker, hosted=("look/v2",)) for worker in workers(3))
    plan = HeadraceOptimizer(surge=3.0).propose(snapshot((demand({0.0: 1.0}),), fleet), limits())
    assert {binding.variants for binding in plan.bindings} == {("look/v2",)}


def test_settings_are_options_by_name() -> None:
    assert create_optimizer("headrace", {"surge": 0.0, "spare_variants_max": 2.0}).name == "headrace"
    with pytest.raises(ConfigurationError, match="no setting surges"):
        create_optimizer("headrace", {"surges": 1.0})


@pytest.mark.parametrize("time_s", [0.05, 0.1, 0.2])
def test_no_program_is_begun_that_would_end_too_late(time_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a program takes time, too, which no solver's limit bounds: here 40 ms, and nothing else takes any."""
    now_s = 0.0

    class Slow(Model):
        def __init__(self, *arguments: object) -> None:
            nonlocal now_s
            now_s += 0.04
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("scaler.optimizers.headrace.optimizer.Model", Slow)
    limits = Limits(time_s=time_s, seed=1, clock_s=lambda: now_s)
    plan = HeadraceOptimizer().propose(snapshot((graph(100.0),), workers(12), LADDER + READ), limits)
    assert now_s <= time_s
    assert plan.bindings

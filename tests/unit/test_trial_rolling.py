"""Rolling proposals forward: the snapshot's own state, loads that take time, sides that go on from their own plans."""

from __future__ import annotations

import msgspec
import pytest
from control_stage import catalog, proposing
from trial_stage import asked, proposal_of, rolled, snapshot_of, staged, with_rate

from scaler.optimizers.optimizer import FEASIBLE, Explanation, Proposal
from scaler.optimizers.snapshot import LOST
from scaler.policy.trial_arm import TrialArm, measured_of, planned_of
from scaler.policy.trial_demand import TrialDemand
from scaler.policy.trial_load import IntervalDemand, between, loads_of
from scaler.policy.trial_rolling import REQUESTS_MAX
from schemas.catalog import Catalog, EndpointSpec
from schemas.graph import Case, ForEachNode, GraphSpec, StageNode, SwitchNode
from schemas.plan import Binding
from schemas.telemetry import DispatcherReport, EndpointCounts

SMALL, LARGE = "t/small", "t/large"


def test_the_same_question_has_the_same_answer() -> None:
    snapshot = snapshot_of()
    proposal = proposing(snapshot, {"w0": (SMALL,), "w1": (LARGE,)})
    assert rolled(snapshot, proposal, asked(50.0)) == rolled(snapshot, proposal, asked(50.0))


def test_accurate_plans_are_accurate_and_fast_ones_fast() -> None:
    snapshot = snapshot_of()
    light = {name: rolled(snapshot, proposal_of(name, snapshot), asked(50.0), optimizer=name) for name in ("static-accurate", "static-fast")}
    assert light["static-accurate"].accuracy_sum / light["static-accurate"].completed == pytest.approx(0.9)
    assert light["static-fast"].accuracy_sum / light["static-fast"].completed == pytest.approx(0.8)
    heavy = {name: rolled(snapshot, proposal_of(name, snapshot), asked(1_200.0, 2), optimizer=name) for name in ("static-accurate", "static-fast")}
    assert heavy["static-fast"].attainment["shop"] > heavy["static-accurate"].attainment["shop"] + 0.2
    assert heavy["static-fast"].offered == heavy["static-accurate"].offered


def test_workers_begin_with_what_the_snapshot_says_they_host() -> None:
    """Nothing has to be loaded where all is hosted; where nothing is, the first requests find nobody ready."""
    snapshot = snapshot_of()
    empty = msgspec.structs.replace(snapshot, workers=tuple(msgspec.structs.replace(worker, hosted=()) for worker in snapshot.workers))
    loads_slowly = msgspec.structs.replace(
        empty,
        variants=tuple(
            msgspec.structs.replace(
                variant, costs={name: msgspec.structs.replace(cost, load_ms=2_000.0) for name, cost in variant.costs.items()}
            )
            for variant in empty.variants
        ),
    )  # fmt: skip
    proposal = proposing(snapshot, {"w0": (SMALL, LARGE), "w1": (SMALL, LARGE)})
    assert rolled(snapshot, proposal, asked(50.0)).attainment["shop"] == 1.0
    assert rolled(loads_slowly, proposal, asked(50.0)).attainment["shop"] < 0.9


def test_what_was_chosen_comes_into_force_once_and_then_has_to_be_worth_it() -> None:
    snapshot = snapshot_of()
    worse = proposing(snapshot, {"w0": (SMALL,), "w1": (SMALL,)})
    arm = TrialArm("candidate")
    first = rolled(arm.snapshot(snapshot), worse, asked(20.0), optimizer="candidate")
    assert (first.kind, first.reason.endswith("candidate was chosen")) == ("published", True)
    arm.rolled(first, worse)
    again = arm.snapshot(snapshot)
    assert {worker.name: worker.hosted for worker in again.workers} == {"w0": (SMALL,), "w1": (SMALL,)}
    assert {binding.variants for binding in again.plan.bindings} == {(SMALL,)}
    swapped = proposing(again, {"w0": (SMALL,), "w1": ()})
    assert rolled(again, swapped, asked(20.0), optimizer="candidate").kind == "kept"


def test_sides_see_the_same_demand_and_their_own_bindings_and_memory() -> None:
    snapshot = snapshot_of()
    arms = {name: TrialArm(name) for name in ("one", "other")}
    hosting = {"one": (SMALL,), "other": (LARGE,)}
    for name, arm in arms.items():
        proposal = msgspec.structs.replace(proposing(snapshot, {"w0": hosting[name], "w1": hosting[name]}), memory={"calm": len(name)})
        arm.rolled(rolled(arm.snapshot(snapshot), proposal, asked(20.0), optimizer=name), proposal)
    seen = {name: arm.snapshot(with_rate(snapshot, 70.0, snapshot.at_ms + 10_000.0)) for name, arm in arms.items()}
    assert {name: each.plan.bindings[0].variants for name, each in seen.items()} == hosting
    assert {name: each.memory for name, each in seen.items()} == {"one": {"calm": 3}, "other": {"calm": 5}}
    assert seen["one"].endpoints[0].floors == seen["other"].endpoints[0].floors
    assert seen["one"].endpoints[0].floors[0].rate_rps == 70.0


def test_a_worker_that_was_lost_and_came_back_has_nothing_loaded() -> None:
    snapshot = snapshot_of()
    arm = TrialArm("one")
    proposal = proposing(snapshot, {"w0": (SMALL,), "w1": (SMALL,)})
    arm.rolled(rolled(snapshot, proposal, asked(20.0), optimizer="one"), proposal)
    lost = tuple(msgspec.structs.replace(worker, state=LOST, hosted=()) if worker.name == "w0" else worker for worker in snapshot.workers)
    without = arm.snapshot(msgspec.structs.replace(snapshot, workers=lost))
    assert [worker.hosted for worker in without.workers] == [(), (SMALL,)]
    assert rolled(without, None, asked(20.0)).completed > 0
    assert [worker.hosted for worker in arm.snapshot(snapshot).workers] == [(), (SMALL,)]


def test_without_a_proposal_the_plan_in_force_stays() -> None:
    snapshot = snapshot_of()
    found = rolled(snapshot, None, asked(20.0))
    assert (found.kind, found.plan.bindings) == ("failed", snapshot.plan.bindings)
    assert found.attainment["shop"] == 1.0


def test_a_proposal_that_cannot_be_is_not_rolled_forward() -> None:
    snapshot = snapshot_of()
    ghost = Proposal(bindings=(Binding(worker="w0", accelerator="gpu", lane=0, variants=(SMALL,)),), explanation=Explanation(status=FEASIBLE))
    found = rolled(snapshot, ghost, asked(20.0))
    assert (found.kind, found.plan.bindings) == ("invalid", snapshot.plan.bindings)


def test_planned_figures_are_those_of_the_common_yardstick() -> None:
    snapshot = with_rate(snapshot_of(), 50.0, 0.0)
    found = rolled(snapshot, proposing(snapshot, {"w0": (LARGE,), "w1": (LARGE,)}), asked(20.0), optimizer="candidate")
    planned = planned_of(found, snapshot)
    assert (planned.served, planned.accuracy) == (pytest.approx(1.0), pytest.approx(0.9))
    assert 0.0 < planned.load["cpu/box/1"] < 0.5
    measured = measured_of(found, snapshot, "")
    assert measured.worth == pytest.approx(measured.attainment * (measured.accuracy_served or 0.0))


def test_an_interval_with_too_many_requests_is_rolled_over_its_beginning() -> None:
    many = asked(1_000_000.0, 10)
    assert many.cut(REQUESTS_MAX).duration_s == 1.0
    assert asked(4_000.0, 10).cut(REQUESTS_MAX).duration_s == pytest.approx(5.0)
    assert asked(10.0, 10).cut(REQUESTS_MAX) == asked(10.0, 10)


def test_between_two_snapshots_the_rate_goes_in_a_straight_line() -> None:
    snapshot = with_rate(snapshot_of(), 10.0, 0.0)
    found = between(snapshot, with_rate(snapshot, 50.0, 4_000.0))
    assert found == IntervalDemand(duration_s=4.0, rates={"shop": {0.8: (15.0, 25.0, 35.0, 45.0)}})
    assert between(with_rate(snapshot, 0.0, 0.0), with_rate(snapshot, 0.0, 4_000.0)).requests == 0.0


def test_demand_is_what_dispatchers_count_more() -> None:
    demand = TrialDemand()

    def tell(at_ms: float, count: int, incarnation: int = 1) -> None:
        counts = EndpointCounts(arrived={"0.8": count, "-": 5, "nan": 9})
        demand.observe(DispatcherReport(dispatcher="d", incarnation=incarnation, at_ms=0, shards=(0,), endpoints={"shop": counts}), at_ms)

    for at_ms, count in ((1_000.0, 1_000), (2_000.0, 1_100), (3_000.0, 1_150), (4_000.0, 1_140)):
        tell(at_ms, count)
    tell(5_000.0, 30, incarnation=2)
    tell(6_000.0, 50, incarnation=2)
    tell(6_500.0, 99, incarnation=1)
    assert demand.take(2_500.0, 6_500.0) == IntervalDemand(duration_s=4.0, rates={"shop": {0.8: (50.0, 0.0, 0.0, 20.0)}})
    assert demand.take(6_500.0, 7_500.0).requests == 0.0


def test_loads_of_a_graph_have_its_rows_and_branches() -> None:
    stage = staged()
    graph = GraphSpec(
        nodes={
            "detect": StageNode(task="t", inputs={}),
            "lines": ForEachNode(over={"row": "detect.boxes"}, nodes={"read": StageNode(task="t", inputs={})}, output="read"),
            "sure": SwitchNode(cases=(Case("detect.score > 0.5", "again"),), otherwise="detect"),
            "again": StageNode(task="t", inputs={}),
        },
        output="sure",
    )
    snapshot = stage.policy.snapshot(stage.now_ms)
    (endpoint,) = snapshot.endpoints
    (plain,) = endpoint.stages
    stages = (
        msgspec.structs.replace(plain, name="detect"),
        msgspec.structs.replace(plain, name="lines/read", after="detect", rows={"*": 3.0, LARGE: 4.0}),
        msgspec.structs.replace(plain, name="again", after="detect", rows={"*": 0.3}),
    )
    snapshot = msgspec.structs.replace(snapshot, endpoints=(msgspec.structs.replace(endpoint, stages=stages),))
    known = Catalog(catalog().tasks, {"shop": EndpointSpec(name="shop", graph=graph)})
    (load,) = loads_of(snapshot, asked(20.0), known)
    assert load.fan_out == {"lines": {"*": 3.0, LARGE: 4.0}}
    assert load.branches == {"sure": {"again": 0.3, "detect": pytest.approx(0.7)}}
    assert loads_of(snapshot, asked(20.0, endpoint="gone"), known) == ()
    assert loads_of(snapshot, asked(20.0), Catalog()) == ()

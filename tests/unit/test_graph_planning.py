"""What the rest of a path can still be computed with, checked against counting every combination."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from graph_stage import DEADLINE_MS, Y, compiled, done, new_run, run_stages, stage

from graphs.commands import Finish, RunStage
from graphs.compiled import Graph
from graphs.events import StageFailed, Started
from graphs.planning import Cost, Estimates, Offer, best, best_rest, plan_graph, plan_stage
from graphs.run import Run, advance
from graphs.stage import Stage
from schemas.graph import Case, EnsembleNode, ForEachNode, Node, ShadowNode, SwitchNode

LADDER = [Cost("v0", 0.8, 10.0, 8.0), Cost("v1", 0.9, 30.0, 20.0)]
CHAIN: dict[str, Node] = {"one": stage("a", x="request.x"), "two": stage("b", x="one.y"), "three": stage("c", x="two.y")}
DIAMOND: dict[str, Node] = {
    "one": stage("a", x="request.x"),
    "left": stage("b", x="one.y"),
    "right": stage("c", x="one.y"),
    "both": stage("d", x="left.y", y="right.y", z="one.y"),
}
HOP_MS = 2.0


def estimates(costs: Sequence[Cost] = LADDER, rows: float = 1.0) -> Estimates:
    return Estimates(lambda stage: costs if stage.model else [], HOP_MS, lambda _: rows)


def begun(graph: Graph, floor: float) -> tuple[Run, dict[str, RunStage]]:
    run = new_run(graph, floor=floor)
    return run, run_stages(advance(run, Started({"sure": 0.9}, {}), 0.0))


def every_combination(paths: dict[str, Sequence[str]], costs: Sequence[Cost]) -> list[tuple[float, float]]:
    """(accuracy, time) of each choice of variants for stages with the given predecessors."""
    found: list[tuple[float, float]] = []
    for choice in product(costs, repeat=len(paths)):
        ends: dict[str, float] = {}
        accuracy = 1.0
        for (name, before), cost in zip(paths.items(), choice, strict=True):
            start = max((ends[other] + HOP_MS for other in before), default=0.0)
            ends[name] = start + cost.p95_ms
            accuracy *= cost.accuracy
        found.append((accuracy, max(ends.values())))
    return found


@pytest.mark.parametrize(
    ("nodes", "output", "paths"),
    [
        (CHAIN, "three", {"one": (), "two": ("one",), "three": ("two",)}),
        (DIAMOND, "both", {"one": (), "left": ("one",), "right": ("one",), "both": ("left", "right")}),
    ],
)
@pytest.mark.parametrize("floor", [0.0, 0.5, 0.6, 0.7, 0.72, 0.9])
@pytest.mark.parametrize("left_ms", [20.0, 50.0, 60.0, 75.0, 90.0, 200.0])
def test_a_plan_is_the_best_of_every_combination(
    nodes: dict[str, Node], output: str, paths: dict[str, Sequence[str]], floor: float, left_ms: float
) -> None:
    costs = [Cost("v0", 0.8, 10.0, 8.0), Cost("v1", 0.9, 21.0, 20.0), Cost("v2", 0.95, 34.0, 30.0)]
    graph = compiled(output, nodes)
    every = every_combination(paths, costs)
    keeping = [(accuracy, time) for accuracy, time in every if accuracy >= floor - 1e-9]
    feasible = [(accuracy, time) for accuracy, time in keeping if time <= left_ms]
    plan = plan_graph(graph, floor, estimates(costs), left_ms)
    assert (plan is None) == (not feasible)
    if plan is not None:
        assert plan.total_ms == pytest.approx(min(time for _, time in feasible))
        assert plan.accuracy == pytest.approx(max(accuracy for accuracy, _ in feasible))
    offer = best(graph, floor, estimates(costs), left_ms)
    assert isinstance(offer, Offer)
    assert offer.accuracy == pytest.approx(max(accuracy for accuracy, _ in every))
    assert offer.least_ms == (pytest.approx(min(time for _, time in keeping)) if keeping else None)


def test_a_stage_may_be_as_inaccurate_as_the_rest_can_make_up_for() -> None:
    run, _ = begun(compiled("three", CHAIN), 0.63)
    plan = plan_stage(run, "one", estimates(), 200.0)
    assert plan is not None
    assert (plan.accuracy_min, plan.rest_ms, plan.total_ms) == (0.8, 2 * HOP_MS + 60.0, 2 * HOP_MS + 70.0)
    assert plan.accuracy == pytest.approx(0.8 * 0.9 * 0.9)
    run, _ = begun(compiled("three", CHAIN), 0.7)
    plan = plan_stage(run, "one", estimates(), 200.0)
    assert plan is not None
    assert plan.accuracy_min == 0.9


def test_the_rest_is_planned_again_with_what_was_taken_and_is_left() -> None:
    run, stages = begun(compiled("three", CHAIN), 0.63)
    two = run_stages(advance(run, done(stages["one"], dict(Y), 0.9), 0.0))["two"]
    roomy = plan_stage(run, "two", estimates(), 200.0)
    assert roomy is not None
    assert (roomy.accuracy_min, roomy.rest_ms) == (0.8, HOP_MS + 30.0)
    tight = plan_stage(run, "two", estimates(), 41.0)
    assert tight is None
    assert best_rest(run, "two", estimates(), 41.0) == Offer(pytest.approx(0.729), pytest.approx(0.9 * 0.64), HOP_MS + 40.0)
    advance(run, done(two, dict(Y), 0.8), 0.0)
    last = plan_stage(run, "three", estimates(), 200.0)
    assert last is not None
    assert (last.accuracy_min, last.rest_ms, last.total_ms, last.work_ms) == (0.9, 0.0, 30.0, 20.0)
    assert last.accuracy == pytest.approx(0.648)


def test_stages_side_by_side_count_on_what_was_planned_of_each_other() -> None:
    run, stages = begun(compiled("both", DIAMOND), 0.58)
    advance(run, done(stages["one"], dict(Y), 0.9), 0.0)
    left = plan_stage(run, "left", estimates(), 1_000.0)
    right = plan_stage(run, "right", estimates(), 1_000.0)
    assert left is not None
    assert right is not None
    assert (left.accuracy_min, right.accuracy_min) == (0.8, 0.9)
    run.sent("left", "b/v1", 0.9)
    right = plan_stage(run, "right", estimates(), 1_000.0)
    assert right is not None
    assert right.accuracy_min == 0.8


CASCADE: dict[str, Node] = {
    "quick": stage("a", x="request.x"),
    "large": stage("b", x="request.x"),
    "pick": SwitchNode(cases=(Case("max(quick.y) >= request.parameters.sure", "quick"),), otherwise="large"),
}


def test_a_switch_counts_the_slower_branch_and_the_less_accurate_until_it_is_decided() -> None:
    graph = compiled("pick", CASCADE)
    quick, large = [Cost("v0", 0.8, 5.0, 1.0)], [Cost("v0", 0.9, 50.0, 10.0)]
    by_stage = Estimates(lambda stage: quick if stage.path == "quick" else large, HOP_MS, lambda path: 0.3 if path == "large" else 1.0)
    plan = plan_graph(graph, 0.8, by_stage, 1_000.0)
    assert plan is not None
    # The hop at the end: where quick is taken, the dispatcher writes the answer.
    assert (plan.total_ms, plan.accuracy) == (5.0 + HOP_MS + 50.0 + HOP_MS, 0.8)
    assert plan.work_ms == pytest.approx(1.0 + 0.3 * 10.0)
    assert plan_graph(graph, 0.85, by_stage, 1_000.0) is None
    run, stages = begun(graph, 0.8)
    first = plan_stage(run, "quick", by_stage, 1_000.0)
    assert first is not None
    assert (first.accuracy_min, first.rest_ms) == (0.8, HOP_MS + 50.0 + HOP_MS)
    assert list(run_stages(advance(run, done(stages["quick"], dict(Y)), 0.0))) == ["large"]
    second = plan_stage(run, "large", by_stage, 1_000.0)
    assert second is not None
    assert (second.accuracy_min, second.accuracy) == (0.9, 0.9)


def test_an_ensemble_counts_the_mean_of_those_that_may_answer() -> None:
    members: dict[str, Node] = {name: stage("a", x="request.x") for name in ("m0", "m1")}
    costs = {"m0": [Cost("v0", 0.6, 5.0, 1.0)], "m1": [Cost("v0", 0.8, 9.0, 1.0)]}

    def cost(stage: Stage) -> Sequence[Cost]:
        return costs.get(stage.path, [Cost("c", 1.0, 3.0, 1.0)])

    for wait, by_deadline, accuracy in ((0, False, 0.7), (1, False, 0.6), (0, True, 0.6)):
        graph = compiled("en", members | {"en": EnsembleNode(members=("m0", "m1"), wait=wait, by_deadline=by_deadline)})
        plan = plan_graph(graph, 0.0, Estimates(cost, HOP_MS, lambda _: 1.0), 1_000.0)
        assert plan is not None
        assert (plan.accuracy, plan.total_ms) == (pytest.approx(accuracy), 9.0 + HOP_MS + 3.0)
    run, _ = begun(compiled("en", members | {"en": EnsembleNode(members=("m0", "m1"), wait=1)}), 0.7)
    assert plan_stage(run, "m1", Estimates(cost, HOP_MS, lambda _: 1.0), 1_000.0) is None
    advance(run, StageFailed("m0", "backend_error", "no"), 0.0)
    assert plan_stage(run, "m1", Estimates(cost, HOP_MS, lambda _: 1.0), 1_000.0) is not None


def test_a_for_each_counts_its_rows_as_work_and_one_row_as_time() -> None:
    nodes: dict[str, Node] = {
        "find": stage("a", x="request.x"),
        "each": ForEachNode(over={"r": "find.y"}, nodes={"read": stage("b", x="row.r")}, output="read"),
    }
    plan = plan_graph(compiled("each", nodes), 0.0, estimates(rows=7.0), 1_000.0)
    assert plan is not None
    assert (plan.total_ms, plan.work_ms) == (10.0 + HOP_MS + 10.0 + HOP_MS, 8.0 + 7 * 8.0)
    run, stages = begun(compiled("each", nodes), 0.7)
    find = plan_stage(run, "find", estimates(), 1_000.0)
    assert find is not None
    assert find.accuracy_min == 0.8
    advance(run, done(stages["find"], dict(Y), 0.8), 0.0)
    row = plan_stage(run, "each/read#0", estimates(), 1_000.0)
    assert row is not None
    assert (row.accuracy_min, row.rest_ms) == (0.9, HOP_MS)


def test_a_shadow_has_no_floor_and_nothing_else_runs_without_variants() -> None:
    nodes = CHAIN | {"copy": stage("d", x="one.y"), "out": ShadowNode(primary="three", copy="copy")}
    run, stages = begun(compiled("out", nodes), 0.7)
    advance(run, done(stages["one"], dict(Y), 0.9), 0.0)
    plan = plan_stage(run, "copy", estimates(), 1.0)
    assert plan is not None
    assert (plan.accuracy_min, plan.rest_ms) == (0.0, 0.0)
    assert plan_stage(run, "two", estimates([]), 1_000.0) is None
    assert best(run.graph, 0.0, estimates([]), 1_000.0) is None
    assert plan_stage(run, "nobody", estimates(), 1_000.0) is None


MEASURED = {"large=v0,quick=v0": 0.82, "large=v0,quick=v1": 0.85, "large=v1,quick=v0": 0.91, "large=v1,quick=v1": 0.93}


def test_measured_combinations_count_instead_of_products() -> None:
    graph = compiled("pick", CASCADE, measured=MEASURED)
    assert best(graph, 0.0, estimates(), 1_000.0) == Offer(0.93, 0.93, pytest.approx(10.0 + HOP_MS + 10.0 + HOP_MS))
    run, stages = begun(graph, 0.9)
    plan = plan_stage(run, "quick", estimates(), 1_000.0)
    assert plan is not None
    assert (plan.accuracy_min, plan.accuracy, plan.rest_ms) == (0.8, 0.91, HOP_MS + 30.0 + HOP_MS)
    # Sure enough: large does not run, but the answer is what was planned with it.
    run.fields = {"sure": 0.1}
    (finish,) = advance(run, done(stages["quick"], dict(Y), 0.8, "a/v0"), 0.0)
    assert isinstance(finish, Finish)
    assert finish.accuracy == 0.91
    run, stages = begun(graph, 0.0)
    advance(run, done(stages["quick"], dict(Y), 0.8, "a/v0"), 0.0)
    assert run.path_accuracy("large", 0.9, "b/v1") == 0.91
    assert run.path_accuracy("large", 0.9) == 0.82


def test_the_accuracy_of_a_path_that_nobody_measured_is_the_product() -> None:
    run, stages = begun(compiled("three", CHAIN), 0.0)
    advance(run, done(stages["one"], dict(Y), 0.9), 0.0)
    assert run.path_accuracy("two", 0.5) == pytest.approx(0.45)


def test_what_was_worked_out_is_remembered() -> None:
    asked: list[str] = []

    def cost(stage: Stage) -> Sequence[Cost]:
        asked.append(stage.path)
        return LADDER

    once = Estimates(cost, HOP_MS, lambda _: 1.0)
    graph = compiled("three", CHAIN)
    for _ in range(3):
        run, _ = begun(graph, 0.5)
        assert plan_stage(run, "one", once, DEADLINE_MS)
    assert sorted(asked) == ["one", "three", "two"]

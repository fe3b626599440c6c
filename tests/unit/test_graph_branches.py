"""Of a started request: its plan on the branches that it took, its measured accuracy, and the time kept free behind nodes that give up waiting."""

from __future__ import annotations

import pytest
from graph_stage import Y, compiled, done, new_run, run_stages, stage

from graphs.commands import RunStage
from graphs.compiled import Graph
from graphs.events import Started
from graphs.planning import Cost, Estimates, plan_graph, plan_run, plan_stage
from graphs.reserve import way_to_the_answer_ms
from graphs.run import Run, advance
from graphs.stage import Stage
from schemas.graph import Branch, CanaryNode, EnsembleNode, ForEachNode, Guardrails, Node, SplitterNode

ACCURACIES = {"a": 0.8, "b": 0.9}


def estimates() -> Estimates:
    return Estimates(lambda asked: [Cost("v0", ACCURACIES[asked.task], 10.0, 8.0)] if asked.model else [], 2.0, lambda _: 1.0)


def begun(graph: Graph, request_id: str, floor: float) -> tuple[Run, dict[str, RunStage]]:
    run = new_run(graph, request_id=request_id, floor=floor)
    return run, run_stages(advance(run, Started({}, {}), 0.0))


BRANCHES: dict[str, Node] = {"low": stage("a", x="request.x"), "high": stage("b", x="request.x")}
SPLITTER = SplitterNode(branches=(Branch(1.0, "low"), Branch(1.0, "high")))
CANARY = CanaryNode(stable="high", candidate="low", percent=50.0, guardrails=Guardrails(agreement=None))


@pytest.mark.parametrize("chooses", [SPLITTER, CANARY], ids=["splitter", "canary"])
def test_a_started_request_is_planned_on_the_branch_that_it_took(chooses: Node) -> None:
    graph = compiled("one", BRANCHES | {"one": chooses})
    found: dict[str, float] = {}
    for number in range(20):
        run, stages = begun(graph, f"r{number}", 0.0)
        plan = plan_run(run, estimates(), 1_000.0)
        assert plan is not None
        found |= dict.fromkeys(stages, plan.accuracy)
        assert plan.work_ms == 8.0, "the other branch is no work"
    assert found == {"low": 0.8, "high": 0.9}
    before = plan_graph(graph, 0.75, estimates(), 1_000.0)
    assert before is not None
    assert before.accuracy == 0.8, "the least accurate branch, and not both"


def test_a_splitter_inside_a_for_each_counts_its_least_accurate_branch() -> None:
    inner: dict[str, Node] = {"low": stage("a", x="row.x"), "high": stage("b", x="row.x"), "one": SPLITTER}
    graph = compiled("each", {"each": ForEachNode(over={"x": "request.x"}, nodes=inner, output="one")})
    plan = plan_graph(graph, 0.0, estimates(), 1_000.0)
    assert plan is not None
    assert plan.accuracy == 0.8


def test_measured_combinations_do_not_ask_for_what_is_no_model() -> None:
    """An ensemble's merging runs last, and a transform beside a model: neither is in the table."""
    nodes: dict[str, Node] = BRANCHES | {"vote": EnsembleNode(members=("low", "high"))}
    run, stages = begun(compiled("vote", nodes, measured={"high=v0,low=v0": 0.95}), "r", 0.9)
    for name in ("low", "high"):
        run.sent(name, f"{stages[name].stage.task}/v0", 0.8)
    advance(run, done(stages["low"], dict(Y), 0.8), 0.0)
    (merge,) = [command for command in advance(run, done(stages["high"], dict(Y), 0.9), 0.0) if isinstance(command, RunStage)]
    run.sent(merge.instance, merge.stage.variants[0], 1.0)
    assert run.path_accuracy(merge.instance, 1.0, merge.stage.variants[0]) == 0.95
    transformed: dict[str, Node] = {
        "low": stage("a", x="request.x"),
        "shape": stage("python", x="request.x"),
        "end": stage("b", x="low.y", y="shape.y"),
    }
    run, stages = begun(compiled("end", transformed, measured={"end=v0,low=v0": 0.95}), "r", 0.9)
    assert plan_stage(run, "shape", estimates(), 1_000.0)
    run.sent("shape", "python/call", 1.0)
    plan = plan_stage(run, "low", estimates(), 1_000.0)
    assert plan is not None
    assert plan.accuracy == 0.95


def cost_ms(asked: Stage) -> float:
    return 10.0 if asked.model else 1.0


def test_who_goes_on_by_the_deadline_leaves_time_for_what_comes_after() -> None:
    def way_ms(output: str, **nodes: Node) -> float:
        return way_to_the_answer_ms(compiled(output, BRANCHES | nodes), cost_ms)

    patient = EnsembleNode(members=("low", "high"))
    hasty = EnsembleNode(members=("low", "high"), by_deadline=True)
    assert way_ms("vote", vote=patient) == 0.0
    assert way_ms("vote", vote=hasty) == 1.0, "its own merging"
    assert way_ms("end", vote=hasty, end=stage("a", x="vote.y")) == 11.0
    after: dict[str, Node] = {"next": stage("a", x="vote.y"), "end": stage("b", x="vote.y", y="next.y")}
    assert way_ms("end", vote=hasty, **after) == 21.0, "the longer way"
    rows = ForEachNode(over={"x": "request.x"}, nodes={"in": stage("a", x="row.x")}, output="in", policy="best_by_deadline")
    assert way_to_the_answer_ms(compiled("rows", {"rows": rows}), cost_ms) == 0.0, "the dispatcher joins, and answers"
    assert way_to_the_answer_ms(compiled("end", {"rows": rows, "end": stage("a", x="rows.y")}), cost_ms) == 10.0
    within: dict[str, Node] = {"low": stage("a", x="row.x"), "high": stage("b", x="row.x"), "vote": hasty, "last": stage("a", x="vote.y")}
    each = ForEachNode(over={"x": "request.x"}, nodes=within, output="last")
    assert way_to_the_answer_ms(compiled("end", {"each": each, "end": stage("a", x="each.y")}), cost_ms) == 21.0

"""On a graph whose stages follow one another, a line does what a run does, whatever happens in whatever order."""

from __future__ import annotations

import pytest
from graph_stage import compiled, reals, stage
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.commands import RunStage
from graphs.compiled import Graph
from graphs.events import Abandoned, Answered, Event, StageDone, StageFailed, Started, Woken
from graphs.line import Line
from graphs.planning import Cost, Estimates, plan_run, plan_stage
from graphs.run import Run
from schemas.terminal import PathStep

FLOOR = 0.3
DEADLINE_MS = 1_000.0
COSTS = {"v0": (0.6, 10.0), "v1": (0.8, 20.0), "v2": (0.95, 50.0)}


def chain(length: int, *, renamed: bool) -> Graph:
    nodes = {"s0": stage("a", x="request.x")}
    for at in range(1, length):
        nodes[f"s{at}"] = stage("a", x=f"s{at - 1}.y", **({"z": f"s{at - 1}.y"} if renamed else {}))
    return compiled(f"s{length - 1}", nodes, outputs={"answer": "y"} if renamed else {})


def done(instance: str, accuracy: float, *, empty: bool) -> StageDone:
    step = PathStep(stage=instance, variant="v", accuracy=accuracy, accelerator="cpu", device="c", queued_ms=1.0, computed_ms=2.0, batch_size=1)
    return StageDone(instance, {} if empty else {"y": reals("y", [[1.0]])}, "a/v1", accuracy, step)


INSTANCES = st.sampled_from(["s0", "s1", "s2", "s3", "s1#0", "nothing"])
EVENTS = st.one_of(
    st.builds(done, INSTANCES, st.sampled_from([0.6, 0.8, 1.0]), empty=st.sampled_from([False] * 9 + [True])),
    st.builds(StageFailed, INSTANCES, st.just("backend_error"), st.just("no")),
    st.sampled_from([Started({}, {}), Started({}, {}), Woken(), Answered(), Abandoned()]),
)


def estimates() -> Estimates:
    return Estimates(lambda stage: [Cost(name, accuracy, ms, ms) for name, (accuracy, ms) in COSTS.items()], 5.0, lambda path: 1.0)


@settings(max_examples=300, deadline=None)
@given(length=st.integers(1, 4), renamed=st.booleans(), early=st.lists(EVENTS, max_size=2), happened=st.lists(EVENTS, max_size=9))
def test_a_line_is_a_run(length: int, renamed: bool, early: list[Event], happened: list[Event]) -> None:
    graph = chain(length, renamed=renamed)
    assert graph.line is not None
    run, line = Run(graph, "id", "", FLOOR, DEADLINE_MS), Line(graph, FLOOR)
    for at, event in enumerate([*early, Started({}, {}), *happened]):
        ours, theirs = line.advance(event, float(at)), run.advance(event, float(at))
        assert ours == theirs
        assert (line.finished, line.idle, line.path()) == (run.finished, run.idle, run.path())
        for command in ours:
            if isinstance(command, RunStage):
                for left_ms in (30.0, 120.0, 900.0):
                    assert plan_stage(line, command.instance, estimates(), left_ms) == pytest.approx(
                        plan_stage(run, command.instance, estimates(), left_ms)
                    )
                assert line.path_accuracy(command.instance, 0.7) == pytest.approx(run.path_accuracy(command.instance, 0.7))
        assert plan_run(line, estimates(), 100.0) == plan_run(run, estimates(), 100.0)


def test_only_lines_are_lines() -> None:
    nodes = {"one": stage("a", x="request.x"), "two": stage("a", x="one.y")}
    assert compiled("two", nodes).line is not None
    assert compiled("two", nodes, measured={"one=v0,two=v0": 0.5}).line is None
    joined = nodes | {"other": stage("a", x="request.x"), "two": stage("a", x="one.y", z="other.y")}
    assert compiled("two", joined).line is None
    both = nodes | {"three": stage("a", x="two.y", z="one.y")}
    assert compiled("three", both).line is None

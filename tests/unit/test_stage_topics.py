"""Which stage topics may be deleted: none that a present graph writes, and none while a request still runs on a graph that is gone."""

from __future__ import annotations

import pytest

from scaler.policy.stage_topics import needed_topics, orphans
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, TensorSpec, VariantSpec
from schemas.graph import ForEachNode, GraphSpec, StageNode
from schemas.names import Names

NAMES = Names("p")
IMAGE, PROBS = TensorSpec("image", "UINT8", (-1, 4)), TensorSpec("probs", "FP32", (-1, 2))
TASK = TaskSpec(name="t", variants=(VariantSpec(name="v", file="f", sha256="0" * 64, accuracy=0.9, inputs=(IMAGE,), outputs=(PROBS,)),))
SHOWN = StageNode(task="t", inputs={"image": "request.image"})


def endpoint(name: str, revision: int, stage: str = "", *, over: str = "") -> EndpointSpec:
    """A graph of one stage, inside a for_each where `over` names one; without a stage, an endpoint of one task."""
    if not stage:
        return EndpointSpec(name=name, task="t", revision=revision)
    if not over:
        return EndpointSpec(name=name, graph=GraphSpec(nodes={stage: SHOWN}, output=stage), revision=revision)
    row = StageNode(task="t", inputs={"image": "row.image"})
    each = ForEachNode(over={"image": "request.image"}, nodes={stage: row}, output=stage)
    return EndpointSpec(name=name, graph=GraphSpec(nodes={over: each}, output=over), revision=revision)


def catalog(*endpoints: EndpointSpec, tasks: tuple[TaskSpec, ...] = (TASK,)) -> Catalog:
    return Catalog(tasks={task.name: task for task in tasks}, endpoints={spec.name: spec for spec in endpoints})


def test_the_topics_of_present_graphs_are_needed() -> None:
    present = catalog(endpoint("e", 3, "look"), endpoint("each", 1, "look", over="rows"), endpoint("plain", 0))
    assert needed_topics(present, NAMES) == {"e": {"p.stage.e.look"}, "each": {"p.stage.each.rows.look"}, "plain": set()}


def test_what_no_graph_writes_goes_and_what_one_writes_stays() -> None:
    existing = ["p.stage.e.look", "p.stage.e.old", "p.stage.gone.look"]
    assert orphans(existing, catalog(endpoint("e", 2, "look")), [], NAMES) == ["p.stage.e.old", "p.stage.gone.look"]
    assert orphans(existing, catalog(), [], NAMES) == existing


@pytest.mark.parametrize(
    ("running", "gone"),
    [
        ([], ["p.stage.e.old"]),
        ([{"e@2": 5}], ["p.stage.e.old"]),
        ([{"e@1": 1}], []),
        ([{"e@2": 5}, {"e@1": 1}], []),
        ([{"other@1": 1}], ["p.stage.e.old"]),
    ],
    ids=["nothing runs", "on the present one", "on an earlier one", "of another dispatcher", "of another endpoint"],
)
def test_topics_of_an_earlier_graph_stay_while_something_runs_on_it(running: list[dict[str, int]], gone: list[str]) -> None:
    assert orphans(["p.stage.e.look", "p.stage.e.old"], catalog(endpoint("e", 2, "look")), running, NAMES) == gone


@pytest.mark.parametrize("present", [catalog(), catalog(endpoint("e", 2))], ids=["deleted", "a task now"])
def test_a_deleted_graph_keeps_its_topics_until_its_last_request_has_ended(present: Catalog) -> None:
    assert orphans(["p.stage.e.look"], present, [{"e@1": 1}], NAMES) == []
    assert orphans(["p.stage.e.look"], present, [{}], NAMES) == ["p.stage.e.look"]


def test_names_with_dots_are_not_taken_for_each_other() -> None:
    present = catalog(endpoint("e.one", 1, "look"))
    existing = ["p.stage.e.look", "p.stage.e.one.look", "p.stage.e.one.old", "p.stage.e1.look"]
    assert orphans(existing, present, [], NAMES) == ["p.stage.e.look", "p.stage.e.one.old", "p.stage.e1.look"]
    assert orphans(existing, present, [{"e@7": 1}], NAMES) == ["p.stage.e1.look"], "in doubt, they stay"


def test_a_graph_that_does_not_fit_its_tasks_now_keeps_its_topics() -> None:
    """Somebody may mend the task."""
    assert orphans(["p.stage.e.look", "p.stage.e.old"], catalog(endpoint("e", 1, "look"), tasks=()), [], NAMES) == []

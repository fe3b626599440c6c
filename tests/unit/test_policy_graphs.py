"""Requests on graphs in the dispatcher's policy: stages wait, run, fail, get lost and are replayed; each request ends once and leaves nothing."""

from __future__ import annotations

import msgspec
import pytest
from policy_graph_stage import GraphStage, catalog_of, probs
from policy_stage import report

from broker.policy import events as ev
from broker.policy.graphs import Graphs
from schemas.catalog import Catalog
from schemas.graph import Case, EnsembleNode, ForEachNode, GraphSpec, ShadowNode, StageNode, SwitchNode
from schemas.telemetry import Departed

CHAIN = GraphSpec(
    nodes={
        "first": StageNode(task="fashion", inputs={"image": "request.image"}, variants=("linear", "cnn")),
        "second": StageNode(task="fashion", inputs={"image": "request.image"}),
        "sure": SwitchNode(cases=(Case(when="max(first.probs) >= 0.9", then="first"),), otherwise="second"),
    },
    output="sure",
)
EMPTY = {"live": 0, "waiting": 0, "graphs": 0, "orders": 0, "finals": 0}


def test_a_cascade_stops_at_the_first_stage_where_it_is_sure() -> None:
    stage = GraphStage(CHAIN, lambda send: probs(0.95))
    stage.ask("a")
    stage.run()
    assert [send.entry.instance for send in stage.sends] == ["first"]
    answer = stage.answers[0]
    assert (answer.outcome, answer.tensors[0].name, [step.stage for step in answer.path]) == ("completed", "probs", ["first"])
    assert answer.accuracy is not None
    assert answer.accuracy >= 0.8
    assert stage.left() == EMPTY


def test_a_cascade_asks_the_larger_model_where_it_is_not_and_its_worker_answers() -> None:
    stage = GraphStage(CHAIN, lambda send: probs(0.5))
    stage.ask("a")
    stage.run()
    assert [send.entry.instance for send in stage.sends] == ["first", "second"]
    assert not stage.answers
    assert len(stage.finals) == 1
    assert stage.left() == EMPTY


def test_a_failed_stage_fails_the_request_and_says_where() -> None:
    stage = GraphStage(CHAIN, lambda send: None)
    stage.ask("a")
    stage.run()
    assert [(answer.outcome, answer.code, answer.stage) for answer in stage.answers] == [("failed", "backend_error", "first")]
    assert stage.left() == EMPTY


def test_the_deadline_ends_a_request_between_its_stages() -> None:
    stage = GraphStage(CHAIN, lambda send: probs(0.5))
    stage.ask("a", timeout_ms=200)
    stage.run(1)
    stage.tick(300.0)
    assert [(answer.outcome, answer.code) for answer in stage.answers] == [("expired", "deadline_exceeded")]
    stage.run()
    assert stage.left() == EMPTY


def test_a_restart_goes_on_from_the_stage_records() -> None:
    stage = GraphStage(CHAIN, lambda send: probs(0.5))
    entries = stage.ask("a")
    stage.run(1)
    assert [send.entry.instance for send in stage.sends] == ["first", "second"]
    stage.policy = stage.started(recovered=False)
    stage.sends.clear()
    stage.due.clear()
    fresh = type(entries[0])(entries[0].key, 0, 0, entries[0].received_ms, "garment", 0.8, None, 1_000, 0, "", 1, 100, object())
    stage.step(ev.Arrived(0, [fresh]))
    stage.step(ev.StagesDone(0, list(stage.log)))
    stage.step(ev.ShardRecovered(0))
    assert [send.entry.instance for send in stage.sends] == ["second"]
    stage.run()
    assert stage.left() == EMPTY


def test_a_worker_that_dies_with_a_stage_loses_nothing() -> None:
    stage = GraphStage(CHAIN, lambda send: probs(0.5))
    stage.ask("a")
    stage.due.clear()
    stage.step(ev.TelemetryObserved(Departed(role="worker", name="w0", incarnation=1, at_ms=int(stage.now_ms))))
    stage.now_ms += 100.0
    stage.step(ev.TelemetryObserved(report("w0", incarnation=2, at_ms=int(stage.now_ms))))
    assert [send.attempt for send in stage.due] == [2]
    stage.run()
    assert len(stage.finals) == 1
    assert stage.left() == EMPTY


def test_late_and_repeated_stage_records_change_nothing() -> None:
    stage = GraphStage(CHAIN, lambda send: probs(0.95))
    stage.ask("a")
    stage.run()
    for record in list(stage.log) * 2:
        stage.step(ev.StagesDone(0, [record]))
    assert len(stage.answers) == 1
    assert stage.left() == EMPTY


ENSEMBLE = GraphSpec(
    nodes={
        "a": StageNode(task="fashion", inputs={"image": "request.image"}, variants=("linear",)),
        "b": StageNode(task="fashion", inputs={"image": "request.image"}, variants=("cnn",)),
        "c": StageNode(task="fashion", inputs={"image": "request.image"}, variants=("resnet",)),
        "vote": EnsembleNode(members=("a", "b", "c")),
    },
    output="vote",
)


def test_an_ensemble_runs_its_members_at_once_and_a_worker_combines() -> None:
    stage = GraphStage(ENSEMBLE, lambda send: probs(0.7))
    stage.ask("a")
    assert {send.entry.instance for send in stage.sends} == {"a", "b", "c"}
    stage.run()
    assert stage.sends[-1].variant == "headrace.combine/combine"
    assert len(stage.finals) == 1
    assert stage.left() == EMPTY


SHADOW = GraphSpec(
    nodes={
        "main": StageNode(task="fashion", inputs={"image": "request.image"}, variants=("cnn",)),
        "copy": StageNode(task="fashion", inputs={"image": "request.image"}, variants=("wide",)),
        "watched": ShadowNode(primary="main", copy="copy"),
    },
    output="watched",
)


def test_a_shadow_comes_after_and_its_answer_goes_to_the_taps_only() -> None:
    stage = GraphStage(SHADOW, lambda send: probs(0.7))
    stage.ask("a")
    assert [send.entry.instance for send in stage.sends] == ["main"]
    stage.run()
    assert [send.entry.instance for send in stage.sends] == ["main", "copy"]
    assert len(stage.finals) + len(stage.answers) == 1
    assert [tap.path[-1].variant for tap in stage.taps] == ["fashion/wide"]
    stage.tick(5_000.0)
    assert stage.left() == EMPTY


def test_shadows_are_shed_where_requests_fill_the_lane() -> None:
    stage = GraphStage(SHADOW, lambda send: probs(0.7))
    stage.ask(*(f"r{number}" for number in range(400)))
    assert {send.entry.instance for send in stage.sends} == {"main"}
    stage.tick(1_100.0)
    stage.due.clear()
    stage.tick(3_000.0)
    assert stage.policy.waiting == 0


@pytest.mark.parametrize(("pause_ms", "copied"), [(20.0, True), (0.6, False)])
def test_a_lane_that_is_free_for_a_moment_only_has_nothing_for_shadows(pause_ms: float, copied: bool) -> None:
    """What arrives wants nearly all of it: a copy would be in the way of the next request."""
    graph = msgspec.structs.replace(SHADOW, nodes=SHADOW.nodes | {"main": SHADOW.nodes["copy"]})
    stage = GraphStage(graph, lambda send: probs(0.7))
    sent: list[str] = []
    for turn in range(700):
        if turn % 50 == 0:
            stage.heard(report())
        before = len(stage.sends)
        stage.ask(f"r{turn}")
        stage.run()
        stage.tick(pause_ms)
        stage.run()
        if turn >= 600:
            sent += [send.entry.instance for send in stage.sends[before:]]
    assert sent.count("main") == 100
    assert ("copy" in sent) is copied
    assert stage.policy.waiting < 10, "what would not be computed is not even begun"


EACH = GraphSpec(
    nodes={
        "rows": ForEachNode(
            over={"image": "request.image"},
            nodes={"look": StageNode(task="fashion", inputs={"image": "row.image"})},
            output="look",
        )
    },
    output="rows",
)


def test_rows_fan_out_and_join_in_order() -> None:
    best = {"rows/look#0": 0.5, "rows/look#1": 0.6, "rows/look#2": 0.7}
    stage = GraphStage(EACH, lambda send: probs(best[send.entry.instance]))
    stage.ask("a")
    assert sorted(send.entry.instance for send in stage.sends) == sorted(best)
    stage.due.reverse()
    stage.run()
    joined = stage.answers[0].tensors[0].values()
    assert [round(float(row.max()), 2) for row in joined] == [0.5, 0.6, 0.7]
    assert stage.left() == EMPTY


def test_a_floor_that_no_path_reaches_and_a_deadline_that_none_makes_are_refused() -> None:
    stage = GraphStage(CHAIN, lambda send: probs(0.95))
    stage.ask("floor", floor=0.99)
    stage.ask("hurry", timeout_ms=5)
    assert [(answer.entry.key, answer.outcome, answer.code) for answer in stage.answers] == [
        (b"floor", "rejected", "infeasible_accuracy"),
        (b"hurry", "rejected", "infeasible_deadline"),
    ]
    assert stage.left() == EMPTY


def test_a_graph_is_compiled_anew_only_where_it_or_a_task_has_changed() -> None:
    graphs, catalog = Graphs(), catalog_of(CHAIN)
    graphs.observe(catalog)
    first = graphs.of("garment")
    moved = msgspec.structs.replace(catalog.endpoints["garment"], name="other")
    graphs.observe(Catalog(dict(catalog.tasks), catalog.endpoints | {"other": moved}))
    assert graphs.of("garment") is first
    assert graphs.of("other").graph is not None
    graphs.observe(catalog_of(ENSEMBLE, revision=2))
    assert graphs.of("garment").revision == 2
    second = graphs.of("garment")
    less = msgspec.structs.replace(catalog.tasks["fashion"], variants=catalog.tasks["fashion"].variants[1:])
    graphs.observe(Catalog(catalog_of(ENSEMBLE).tasks | {"fashion": less}, catalog_of(ENSEMBLE, revision=2).endpoints))
    assert graphs.of("garment") is not second
    assert "linear" in graphs.of("garment").problem

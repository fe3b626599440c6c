"""Stages of a line that a worker goes on with: when it may, what becomes of the books, and that nothing is lost where it does not."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from policy_graph_stage import GraphStage, probs
from policy_stage import LADDER, report

from broker.policy import events as ev
from broker.policy.graph_request import StageJob
from broker.policy.work_orders import next_stages
from schemas.graph import GraphSpec, StageNode
from schemas.stage import STAGE_VERSION, StageRecord, TensorHead
from schemas.telemetry import Departed, HostedVariant, Returned
from schemas.work import NextStage, order_name

LINE = GraphSpec(
    nodes={
        "first": StageNode(task="fashion", inputs={"image": "request.image"}),
        "second": StageNode(task="fashion", inputs={"image": "first.probs"}),
        "third": StageNode(task="fashion", inputs={"image": "second.probs"}),
    },
    output="third",
)
EMPTY = {"live": 0, "waiting": 0, "graphs": 0, "orders": 0, "finals": 0}


def started(graph: GraphSpec = LINE, *, workers: tuple[str, ...] = ("w0",), floor: float = 0.4, timeout_ms: int = 1_000) -> GraphStage:
    stage = GraphStage(graph, lambda send: probs(0.5), workers=workers, declared=False)
    stage.ask("a", floor=floor, timeout_ms=timeout_ms)
    return stage


def then(stage: GraphStage) -> tuple[NextStage, ...]:
    """What the last order's worker may go on with."""
    job = stage.sends[-1].entry.payload
    assert isinstance(job, StageJob)
    fused = job.request.fused
    return () if fused is None else next_stages(fused, lambda endpoint, name: f"{endpoint}.{name}")


def record(instance: str, *, fused: bool, worker: str = "w0") -> tuple[bytes, StageRecord, bytes]:
    data = probs(0.5).astype("<f4").tobytes()
    heads = (TensorHead("probs", "FP32", (1, 10), len(data)),)
    said = StageRecord(
        STAGE_VERSION, "garment", 1, instance, 1, "fashion/wide", 0.9338, "cpu", "cpu0", 0.0, 1.0, 1, 0, heads, worker=worker, fused=fused
    )  # fmt: skip
    return b"a", said, data


def gone_on(stage: GraphStage, *instances: str, fused: bool = True, worker: str = "w0") -> None:
    """The worker's records of these stages are read."""
    stage.now_ms += 1.0
    for instance in instances:
        stage.log.append(record(instance, fused=fused, worker=worker))
        stage.step(ev.StagesDone(0, [stage.log[-1]]))


def answered(stage: GraphStage) -> None:
    stage.step(ev.Answered(0, [b"a"]))


def sent(stage: GraphStage) -> list[tuple[str, str]]:
    return [(send.entry.instance, send.worker) for send in stage.sends]


def test_an_order_says_what_its_worker_may_go_on_with() -> None:
    stage = started()
    second, third = then(stage)
    assert (second.instance, second.variant, second.inputs, second.topic) == ("second", "fashion/wide", {"image": "probs"}, "garment.second")
    assert (third.instance, third.topic, third.path_accuracy) == ("third", "", pytest.approx(0.9338**3))
    entry = stage.sends[0].entry
    assert entry.deadline_ms < second.deadline_ms < third.deadline_ms == stage.now_ms + 1_000


def test_what_a_worker_goes_on_with_is_not_sent_and_ends_with_the_request() -> None:
    stage = started()
    gone_on(stage, "first")
    assert stage.left() == {"live": 1, "waiting": 0, "graphs": 1, "orders": 1, "finals": 0}
    gone_on(stage, "second")
    assert stage.left() == {"live": 1, "waiting": 0, "graphs": 1, "orders": 1, "finals": 1}
    answered(stage)
    assert stage.left() == EMPTY
    assert sent(stage) == [("first", "w0")]
    assert all(lane.outstanding_ms == 0.0 and lane.outstanding_rows == 0 for lane in stage.policy.fleet.lanes)


@pytest.mark.parametrize("happened", list(permutations(["first", "second", "answer"])))
def test_topics_may_be_read_in_any_order(happened: tuple[str, ...]) -> None:
    stage = started()
    for what in happened:
        if what == "answer":
            answered(stage)
        else:
            gone_on(stage, what)
    assert sent(stage) == [("first", "w0")]
    assert stage.left() == EMPTY


def test_where_the_worker_does_not_go_on_the_stage_is_sent() -> None:
    stage = started()
    gone_on(stage, "first", fused=False)
    assert sent(stage) == [("first", "w0"), ("second", "w0")]
    gone_on(stage, "second")
    answered(stage)
    assert stage.left() == EMPTY


def test_a_stage_that_fails_where_it_went_on_fails_the_request() -> None:
    stage = started()
    gone_on(stage, "first")
    key, said, _ = record("second", fused=False)
    stage.step(ev.StagesDone(0, [(key, msgspec.structs.replace(said, tensors=(), error_code="backend_error", error_message="no"), b"")]))
    assert [(answer.outcome, answer.code, answer.stage) for answer in stage.answers] == [("failed", "backend_error", "second")]
    assert stage.left() == EMPTY


def test_what_was_late_where_it_went_on_is_planned_again() -> None:
    stage = started()
    gone_on(stage, "first")
    key, said, _ = record("second", fused=False)
    stage.step(ev.StagesDone(0, [(key, msgspec.structs.replace(said, tensors=(), error_code="deadline_exceeded"), b"")]))
    assert sent(stage) == [("first", "w0"), ("second", "w0")]


def test_the_worker_dies_with_what_it_went_on_with() -> None:
    stage = started(workers=("w0", "w1"))
    first = stage.sends[0].worker
    other = "w1" if first == "w0" else "w0"
    gone_on(stage, "first", worker=first)
    stage.step(ev.TelemetryObserved(Departed(role="worker", name=first, incarnation=1, at_ms=int(stage.now_ms))))
    assert sent(stage) == [("first", first), ("second", other)]
    gone_on(stage, "second", worker=first)  # it was in the log, after all
    assert sent(stage)[2:] == [("third", other)]
    answered(stage)
    assert stage.left() == EMPTY


def test_a_worker_that_is_no_more_goes_on_with_nothing() -> None:
    stage = started(workers=("w0", "w1"))
    first = stage.sends[0].worker
    other = "w1" if first == "w0" else "w0"
    stage.step(ev.TelemetryObserved(Departed(role="worker", name=first, incarnation=1, at_ms=int(stage.now_ms))))
    assert sent(stage) == [("first", first), ("first", other)]
    gone_on(stage, "first", worker=first)
    assert sent(stage)[2:] == [("second", other)]


@pytest.mark.parametrize("early", [False, True])
def test_what_a_worker_hands_back_is_sent(early: bool) -> None:
    """Telemetry and stage topics are read in no common order."""
    stage = started()
    back = Returned(worker="w0", incarnation=1, ids=(order_name("a", "second"),), reason="no time", cause="late", at_ms=int(stage.now_ms))
    if early:
        stage.step(ev.TelemetryObserved(back))
        gone_on(stage, "first")
    else:
        gone_on(stage, "first")
        stage.step(ev.TelemetryObserved(back))
    assert sent(stage) == [("first", "w0"), ("second", "w0")]
    assert stage.left()["orders"] == 1


def test_another_dispatcher_goes_on_from_what_the_log_says() -> None:
    stage = started()
    gone_on(stage, "first")
    stage.policy = stage.started(recovered=False)
    stage.step(ev.StagesDone(0, stage.log))
    stage.ask("a", floor=0.4)
    stage.step(ev.ShardRecovered(0))
    assert sent(stage)[1:] == [("second", "w0")]
    gone_on(stage, "second")
    answered(stage)
    assert stage.left() == EMPTY


def with_nodes(**nodes: StageNode) -> GraphSpec:
    return msgspec.structs.replace(LINE, nodes=dict(LINE.nodes) | nodes)


@pytest.mark.parametrize(
    ("graph", "count"),
    [
        (LINE, 2),
        (msgspec.structs.replace(LINE, fuse=False), 0),
        (with_nodes(second=StageNode(task="fashion", inputs={"image": "request.image", "more": "first.probs"})), 0),
        (with_nodes(third=StageNode(task="fashion", inputs={"image": "second.probs", "more": "request.image"})), 1),
        (with_nodes(third=StageNode(task="fashion", inputs={"image": "second.probs", "more": "first.probs"})), 0),
    ],
    ids=["a line", "not fused", "of the request", "later on", "not a line"],
)
def test_only_what_follows_from_the_stage_before_it_is_gone_on_with(graph: GraphSpec, count: int) -> None:
    assert len(then(started(graph))) == count


@pytest.mark.parametrize(("timeout_ms", "ahead"), [(60, 0), (90, 1), (120, 2)])
def test_where_time_bounds_the_accuracy_the_dispatcher_decides_when_the_stage_begins(timeout_ms: int, ahead: int) -> None:
    stage = GraphStage(LINE, lambda send: probs(0.5), declared=False)
    stage.heard(report("w0", LADDER | {"wide": (0.9338, 20.0)}))
    stage.ask("a", floor=0.4, timeout_ms=timeout_ms)
    assert [step.variant for step in then(stage)] == ["fashion/wide"] * ahead


def test_a_better_variant_elsewhere_is_worth_a_hand_over() -> None:
    stage = GraphStage(LINE, lambda send: probs(0.5), workers=("w0", "w1"), declared=False)
    said = report("w0")
    hosted: dict[str, HostedVariant] = {key: value for key, value in said.variants.items() if key != "fashion/wide"}
    stage.heard(msgspec.structs.replace(said, variants=hosted))
    stage.ask("a", floor=0.4)
    assert len(then(stage)) == (2 if stage.sends[-1].worker == "w1" else 0)
    stage.ask("b", floor=0.4)
    assert {send.worker: len(then_of(send.entry.payload)) for send in stage.sends} == {"w0": 0, "w1": 2}


def then_of(job: object) -> list[object]:
    assert isinstance(job, StageJob)
    return [] if job.request.fused is None else list(job.request.fused.ahead)


def test_a_plan_that_shares_variants_out_holds_for_what_is_gone_on_with() -> None:
    stage = GraphStage(LINE, lambda send: probs(0.5), declared=False)
    plan = msgspec.structs.replace(stage.policy.fleet.plan, epoch=2, shares={"fashion": {"fashion/cnn": 0.5, "fashion/wide": 0.5}})
    stage.step(ev.PlanObserved(plan))
    stage.heard(report("w0"))
    stage.ask(*(f"r{at}" for at in range(20)), floor=0.4)
    variants = [step.option.key for send in stage.sends for step in then_of(send.entry.payload)]  # type: ignore[attr-defined]
    assert len(variants) == 40
    assert 15 <= variants.count("fashion/cnn") <= 25

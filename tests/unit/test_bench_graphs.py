"""The benchmark's rows about graphs: their graphs compile and stay within the limits, the null worker answers stages, and rows are found by name."""

from __future__ import annotations

import pytest

from deploy.bench import graph_chain, graph_join, graph_shadow, mix
from deploy.bench.exchange import Answered
from deploy.bench.graph_catalog import ROWS_MAX, chain, for_each
from deploy.bench.null_worker import COLUMNS, OUTPUT, NullWorker, NullWorkerSettings, terminal_message
from deploy.bench.prefilled import ACCURACY, ENDPOINT, FLOOR, TASKS, VARIANT_KEY
from deploy.commands.bench import GRAPH_ROWS, ROWS, chosen_rows
from graphs.compiled import Graph, compile_graph
from schemas.catalog import EndpointSpec
from schemas.limits import Limits
from schemas.request import read_routing
from schemas.stage import TensorHead, decode_stage
from schemas.terminal import MSGPACK_TYPE, PathStep, decode_terminal_head
from schemas.work import CONTENT_TYPE_HEADER, WORK_HEADER, WORK_VERSION, NextStage, StagePart, WorkOrder


def compiled(endpoint: EndpointSpec) -> Graph:
    assert endpoint.graph is not None
    return compile_graph(endpoint.graph, TASKS if endpoint.name == ENDPOINT else {mix.TASK: mix.fashion_task()})


@pytest.mark.parametrize("length", [1, 4])
def test_a_chain_has_its_stages_one_behind_the_other_and_keeps_the_floor(length: int) -> None:
    graph = compiled(chain(length))
    assert list(graph.stages) == [f"stage-{at}" for at in range(1, length + 1)]
    assert graph.final == f"stage-{length}"
    assert [list(stage.inputs.values()) for stage in graph.stages.values()][1:] == [[f"stage-{at}.{OUTPUT}"] for at in range(1, length)]
    assert ACCURACY**length >= FLOOR
    assert not graph.request_tensors, "nothing of the request is decoded"


def test_a_request_of_all_rows_is_within_the_limits() -> None:
    body, limits = graph_join.rows_body(), Limits()
    routing = read_routing(body, ((CONTENT_TYPE_HEADER, MSGPACK_TYPE.encode()),), limits)
    assert (routing.endpoint, routing.min_accuracy) == (ENDPOINT, FLOOR)
    assert len(body) <= limits.payload_bytes_max
    assert limits.rows_max >= ROWS_MAX
    (stage,) = compiled(for_each()).stages.values()
    assert stage.over == ("lines",)


def test_the_shadow_copies_every_request_and_is_no_part_of_the_answer() -> None:
    alone, shadowed = (compiled(endpoint) for endpoint in graph_shadow.endpoints())
    assert {path: stage.shadow for path, stage in shadowed.stages.items()} == {"primary": False, "copy": True}
    assert (alone.final, shadowed.final) == ("primary", "primary")
    assert shadowed.stages["copy"].variants == (f"{mix.TASK}/{graph_shadow.COPY}",)


def order(part: StagePart | None) -> WorkOrder:
    return WorkOrder(WORK_VERSION, ENDPOINT, "stage-2", VARIANT_KEY, 0.99, "null-0", 1, 3, 1_000, 9_000, 2, 1, 7, 5, None, part)


def test_the_null_worker_answers_a_stage_with_the_tensors_that_are_wanted() -> None:
    said = order(StagePart("stage-2", 4, topic="p.stage.bench.stage-2", outputs=("a", "b")))
    worker = NullWorker(NullWorkerSettings(kafka="", prefix="p", variant=VARIANT_KEY, ready=""))
    (key, value, headers), following = worker.answered(b"id", said)
    assert following is None
    record = decode_stage(dict(headers)[WORK_HEADER])
    assert (key, record.instance, record.revision, record.variant, record.error_code) == (b"id", "stage-2", 4, VARIANT_KEY, "")
    size = 2 * 4 * COLUMNS
    assert record.tensors == (TensorHead("a", "FP32", (2, COLUMNS), size), TensorHead("b", "FP32", (2, COLUMNS), size))
    assert len(value or b"") == 2 * size


def test_the_null_worker_goes_on_where_it_may() -> None:
    then = (NextStage("stage-3", VARIANT_KEY, 0.99, 9_500, {"image": "probs"}, model=True, path_accuracy=0.9),)
    said = order(StagePart("stage-2", 4, topic="p.stage.bench.stage-2", outputs=("probs",), then=then))
    settings = NullWorkerSettings(kafka="", prefix="p", variant=VARIANT_KEY, ready="")
    (_, _, headers), following = NullWorker(settings).answered(b"id", said)
    assert decode_stage(dict(headers)[WORK_HEADER]).fused
    assert following is not None
    (_, value, _), last = NullWorker(settings).answered(b"id", following)
    assert last is None
    assert [step.stage for step in decode_terminal_head(value or b"").path] == ["stage-2", "stage-3"]


def test_the_null_worker_ends_a_path_with_its_accuracy() -> None:
    before = PathStep(stage="stage-1", variant="v", accuracy=0.9, accelerator="cpu", device="d", queued_ms=0.0, computed_ms=1.0, batch_size=1)
    _, value, _ = terminal_message(b"id", order(StagePart("stage-2", 4, path=(before,), path_accuracy=0.5)))
    terminal = decode_terminal_head(value or b"")
    assert ([step.stage for step in terminal.path], terminal.accuracy) == (["stage-1", "stage-2"], 0.5)
    _, value, _ = terminal_message(b"id", order(None))
    assert decode_terminal_head(value or b"").accuracy == 0.99


def test_a_further_step_costs_its_part_of_the_difference() -> None:
    assert graph_chain.further(2.0, 8.0, 3) == 2.0
    assert graph_chain.latencies([1.0] * 50 + [3.0] * 50).p50 == 2.0


def test_rows_are_chosen_by_name_each_once_and_graphs_only_when_asked_for() -> None:
    assert chosen_rows(()) == list(ROWS)
    assert chosen_rows(("graphs",)) == list(GRAPH_ROWS)
    assert [row.name for row in chosen_rows(("graph-join", "graphs", "expiry"))] == [
        "graph-join",
        "graph-cpu",
        "graph-chain",
        "graph-shadow",
        "expiry",
    ]


def test_schedules_of_one_seed_differ_in_their_ids_only() -> None:
    first, second = mix.schedule(100.0, 0.5, seed=1), mix.schedule(100.0, 0.5, seed=1, endpoint=graph_shadow.ALONE)
    assert [request.at_s for request in first.requests] == [request.at_s for request in second.requests]
    assert list(first.asks.values()) == list(second.asks.values())
    assert not first.asks.keys() & second.asks.keys()


def test_a_side_counts_what_came_back() -> None:
    schedule = mix.schedule(100.0, 0.1, seed=1)
    keys = list(schedule.asks)

    answers = {key: Answered(1.0 + at / 1000, 0, b"") for at, key in enumerate(keys[:-1], start=1)}
    waits_ms = graph_shadow.waits_ms(schedule, answers, dict.fromkeys(keys, 1.0))
    assert waits_ms == pytest.approx([1.0 + at for at in range(len(keys) - 1)])
    side = graph_shadow.Side()
    for _ in range(2):
        side.note(waits_ms, graph_shadow.Played(len(keys), 4, 0.4, 1.0, 0.9, 0.9, {}, {}, {}), 3)
    assert (side.attainment, side.copied, side.p99_ms) == (4 / len(keys), 6, pytest.approx(max(waits_ms), rel=0.05))

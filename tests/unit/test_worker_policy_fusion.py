"""The order of a next stage, made by the worker that computed the one before it."""

from __future__ import annotations

import msgspec
import pytest

from schemas.stage import TensorHead
from schemas.terminal import PathStep
from schemas.work import NextStage, StagePart, WorkOrder
from workers.policy.batcher import QueuedOrder
from workers.policy.fusion import next_order

STEP = PathStep(stage="one", variant="a/x", accuracy=0.9, accelerator="cpu", device="c", queued_ms=0.5, computed_ms=4.0, batch_size=2)
TWO = NextStage("two", "b/y", 0.8, 900, {"image": "crops"}, model=True, topic="p.stage.e.two", outputs=("text",))
THREE = NextStage("three", "c/z", 0.7, 950, {"words": "text"}, model=False, answers={"said": "text"}, parameters=b"\x80", path_accuracy=0.5)
HEADS = (TensorHead("scores", "FP32", (2,), 8), TensorHead("crops", "UINT8", (2, 3), 6))
DATA = b"ssssssss" + b"cccccc"


def queued(*then: NextStage, **part: object) -> QueuedOrder:
    said = StagePart("one", 7, topic="p.stage.e.one", request_bytes=3, request_inputs={"image": "image"}, then=then)
    said = msgspec.structs.replace(said, **part)
    order = WorkOrder(1, "e", "one", "a/x", 0.9, "w0", 5, 3, 100, 800, 4, 2, 11, 6, "00-trace", said)
    return QueuedOrder("id\x1fone", "id", order, b"body", "application/json", 9, 42)


def test_the_next_order_is_the_dispatchers_own_with_the_outputs_as_its_body() -> None:
    following = next_order(queued(TWO, THREE), HEADS, DATA, STEP, 777)
    assert following is not None
    assert (following.id, following.request_id, following.body) == ("id\x1ftwo", "id", b"cccccc")
    assert (following.lane, following.offset, following.content_type) == (-1, -1, "application/json")
    assert following.order == WorkOrder(
        1, "e", "two", "b/y", 0.8, "w0", 5, 3, 100, 900, 2, 1, 11, 6, "00-trace",
        StagePart(
            "two", 7, "p.stage.e.two", tensors=(TensorHead("image", "UINT8", (2, 3), 6),), outputs=("text",), path=(STEP,), ready_ms=777,
            then=(THREE,),
        ),
    )  # fmt: skip


def test_the_last_one_answers_the_request_with_the_whole_path() -> None:
    second = next_order(queued(TWO, THREE), HEADS, DATA, STEP, 777)
    assert second is not None
    step = msgspec.structs.replace(STEP, stage="two")
    third = next_order(second, (TensorHead("text", "BYTES", (5,), 20),), bytes(20), step, 790)
    assert third is not None
    part = third.order.part
    assert part is not None
    assert (part.topic, part.path, part.path_accuracy, part.answers, part.parameters) == ("", (STEP, step), 0.5, {"said": "text"}, b"\x80")
    assert (third.order.rows, part.then, third.body) == (1, (), bytes(20))
    assert next_order(third, (), b"", step, 800) is None


@pytest.mark.parametrize(
    ("heads", "data"), [((), b""), ((TensorHead("other", "FP32", (1,), 4),), bytes(4)), (HEADS[:1] * 2, b"s" * 16)], ids=["none", "other", "others"]
)
def test_without_what_the_next_stage_takes_the_dispatcher_decides(heads: tuple[TensorHead, ...], data: bytes) -> None:
    assert next_order(queued(TWO), heads, data, STEP, 777) is None


def test_several_tensors_stand_in_the_order_of_the_inputs() -> None:
    both = msgspec.structs.replace(TWO, inputs={"b": "crops", "a": "scores"})
    following = next_order(queued(both), HEADS, DATA, STEP, 777)
    assert following is not None
    assert following.body == b"ccccccssssssss"
    part = following.order.part
    assert part is not None
    assert [(head.name, head.size) for head in part.tensors] == [("b", 6), ("a", 8)]


@pytest.mark.parametrize(("shape", "rows"), [((), 1), ((0, 4), 1), ((17, 4), 17)])
def test_a_models_rows_are_those_of_its_input(shape: tuple[int, ...], rows: int) -> None:
    following = next_order(queued(TWO), (TensorHead("crops", "UINT8", shape, 0),), b"", STEP, 777)
    assert following is not None
    assert following.order.rows == rows

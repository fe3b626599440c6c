"""The next stage of a line, computed where the one before it was: its order, made here instead of by a dispatcher."""

from __future__ import annotations

from msgspec.structs import replace

from schemas.stage import TensorHead
from schemas.terminal import PathStep
from schemas.work import NextStage, StagePart, order_name
from workers.policy.batcher import QueuedOrder

NO_LANE = -1
"""It was read from none."""


def next_order(queued: QueuedOrder, heads: tuple[TensorHead, ...], data: bytes, step: PathStep, finished_ms: int) -> QueuedOrder | None:
    """After a stage with these outputs; None where its order ends here, or lacks what the next stage takes: the dispatcher then says so.

    `step`: what the answer's path says of the computed stage; `finished_ms`: Unix ms, from when the next one counts as queued.
    """
    order, part = queued.order, queued.order.part
    if part is None or not part.then:
        return None
    following, *rest = part.then
    given = _inputs(following, heads, data)
    if given is None:
        return None
    tensors, body = given
    shape = tensors[0].shape
    rows = max(shape[0], 1) if following.model and shape else 1
    next_part = StagePart(
        instance=following.instance,
        revision=part.revision,
        topic=following.topic,
        tensors=tensors,
        outputs=following.outputs,
        answers=following.answers,
        path=(*part.path, step),
        path_accuracy=following.path_accuracy,
        parameters=following.parameters,
        ready_ms=finished_ms,
        then=tuple(rest),
    )
    next_order = replace(
        order,
        stage=following.instance,
        variant=following.variant,
        accuracy=following.accuracy,
        deadline_ms=following.deadline_ms,
        rows=rows,
        attempt=1,
        part=next_part,
    )
    return QueuedOrder(order_name(queued.request_id, following.instance), queued.request_id, next_order, body, queued.content_type, NO_LANE, NO_LANE)


def _inputs(following: NextStage, heads: tuple[TensorHead, ...], data: bytes) -> tuple[tuple[TensorHead, ...], bytes] | None:
    """The outputs that the next stage takes, under its names, in its order."""
    if len(heads) == len(following.inputs) == 1:
        ((name, output),) = following.inputs.items()
        head = heads[0]
        return ((TensorHead(name, head.datatype, head.shape, head.size),), data) if head.name == output else None
    found: dict[str, tuple[TensorHead, memoryview]] = {}
    view, at = memoryview(data), 0
    for head in heads:
        found[head.name] = head, view[at : at + head.size]
        at += head.size
    if not all(output in found for output in following.inputs.values()):
        return None
    taken = [(name, *found[output]) for name, output in following.inputs.items()]
    tensors = tuple([TensorHead(name, head.datatype, head.shape, head.size) for name, head, _ in taken])
    return tensors, b"".join([part for _, _, part in taken])

"""Stage records: what a worker hands back of one stage of a graph, to the dispatcher that owns the request's shard."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from broker.log import Message
from schemas.datatypes import Array
from schemas.errors import BackendError
from schemas.raw_tensors import encode_raw
from schemas.stage import STAGE_VERSION, StageRecord, TensorHead, encode_stage
from schemas.work import WORK_HEADER
from workers.policy.batcher import QueuedOrder
from workers.said import Said, missing_output, queued_ms


class RawOutputs(msgspec.Struct, frozen=True):
    """Heads, and the bytes that they describe."""

    heads: tuple[TensorHead, ...]
    data: bytes


NOTHING = RawOutputs((), b"")


def stage_outputs(queued: QueuedOrder, outputs: Mapping[str, Array]) -> RawOutputs:
    """Those that somebody downstream uses. Raises BackendError for one that is missing, or that has no datatype."""
    order, part = queued.order, queued.order.part
    wanted = None if part is None else part.outputs
    if wanted is not None:
        missing = [name for name in wanted if name not in outputs]
        if missing:
            raise missing_output(order.stage, missing[0], list(outputs))
        outputs = {name: outputs[name] for name in wanted}
    try:
        heads, parts = encode_raw(outputs)
    except ValueError as error:
        raise BackendError(f"stage {order.stage!r}: {error}") from None
    return RawOutputs(heads, parts[0] if len(parts) == 1 else b"".join(parts))


def stage_message(said: Said, worker: str, *, fused: bool = False) -> Message:
    """The record: key request id, what happened in the header, the tensors (from stage_outputs) as its value.

    `fused`: the next stage is queued here.
    """
    queued, order, result, origin = said.queued, said.queued.order, said.result, said.origin
    outputs: RawOutputs = said.outputs or NOTHING
    part = order.part
    assert part is not None
    record = StageRecord(
        version=STAGE_VERSION,
        endpoint=order.endpoint,
        revision=part.revision,
        instance=part.instance,
        attempt=order.attempt,
        variant=order.variant,
        accuracy=order.accuracy,
        accelerator=origin.accelerator if origin else "",
        device=origin.device if origin else "",
        queued_ms=queued_ms(order, origin) if origin else 0.0,
        computed_ms=round(result.computed_ms, 3) if result else 0.0,
        batch_size=result.rows if result else 0,
        finished_ms=said.finished_ms,
        tensors=outputs.heads,
        error_code=said.error_code,
        error_message=said.error_message,
        worker=worker,
        fused=fused,
    )
    return queued.request_id.encode(), outputs.data, ((WORK_HEADER, encode_stage(record)),)

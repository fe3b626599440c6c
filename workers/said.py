"""What is to be said of an order, before it becomes a record of one kind or the other."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.errors import BackendError
from schemas.terminal import PathStep
from schemas.work import WorkOrder
from workers.computation import Computed
from workers.policy.batcher import QueuedOrder


class Origin(msgspec.Struct, frozen=True):
    """Where a batch was computed, as its answers' path says it."""

    device: str
    accelerator: str
    started_ms: float


class Said(msgspec.Struct, eq=False, gc=False):
    """The outcome of one order."""

    queued: QueuedOrder
    outcome: str
    finished_ms: int
    outputs: Any = None
    """As the record's kind carries them; None where it is not completed."""
    result: Computed | None = None
    origin: Origin | None = None
    """Both where it was computed."""
    error_code: str = ""
    error_message: str = ""


def queued_ms(order: WorkOrder, origin: Origin) -> float:
    """Of the stage: from when its inputs were there, for the first one from the request's receipt, to the start of the computation."""
    part = order.part
    ready_ms = order.received_ms if part is None else part.ready_ms or order.received_ms
    return round(max(origin.started_ms - ready_ms, 0.0), 3)


def missing_output(stage: str, name: str, given: list[str]) -> BackendError:
    """A graph wants an output that the variant did not give."""
    return BackendError(f"stage {stage!r}: output {name!r} is missing; {', '.join(map(repr, given)) or 'nothing'} came")


def path_step(said: Said) -> PathStep:
    """What the path of an answer says of a stage that was computed here."""
    order, result, origin = said.queued.order, said.result, said.origin
    assert result is not None
    assert origin is not None
    return PathStep(
        stage=order.stage,
        variant=order.variant,
        accuracy=order.accuracy,
        accelerator=origin.accelerator,
        device=origin.device,
        queued_ms=queued_ms(order, origin),
        computed_ms=round(result.computed_ms, 3),
        batch_size=result.rows,
    )

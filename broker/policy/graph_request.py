"""One request on its graph, and the jobs that its stages are."""

from __future__ import annotations

import msgspec

from broker.policy.entry import Entry
from graphs.commands import RunStage
from graphs.compiled import Graph
from graphs.events import Event, StageDone, StageFailed
from graphs.line import Line
from graphs.run import Run
from graphs.second_opinion import SecondOpinion
from graphs.tensor import Tensor
from schemas.stage import StageRecord
from schemas.terminal import PathStep


class StageJob(msgspec.Struct, eq=False):
    """The payload of a stage's entry: what its order has to say beside the entry."""

    request: GraphRequest
    command: RunStage
    record: object
    """The payload of the request."""
    ready_ms: float
    """When everything that the stage needs was there."""


class GraphRequest(msgspec.Struct, eq=False):
    """One request on its graph."""

    entry: Entry
    graph: Graph
    revision: int
    run: Run | Line | SecondOpinion
    stages: dict[str, Entry] = {}
    """Stages that wait or run, by instance."""
    held_bytes: int = 0
    """What its stages gave."""
    task: str = ""
    """Whose pool its promised work stands in."""
    promised_ms: float = 0.0
    """Work of the stages that are still to come."""
    dropped: bool = False
    """No path can make it any more: nothing further is run, its deadline answers it."""

    @property
    def endpoint(self) -> str:
        return self.entry.endpoint


def job_of(stage: Entry) -> StageJob:
    """What the entry of a stage carries."""
    return stage.payload  # pyright: ignore[reportReturnType]


def rows_of(command: RunStage, root: Entry) -> int:
    """Rows that the stage computes: the first axis of its first tensor, or the request's."""
    if not command.stage.model:
        return 1
    if command.request_inputs or not command.tensors:
        return root.rows
    shape = next(iter(command.tensors.values())).shape
    return max(shape[0], 1) if shape else 1


def event_of(record: StageRecord, value: bytes) -> Event:
    """What a stage record says to the run; its tensors are views of the value."""
    if record.error_code:
        return StageFailed(record.instance, record.error_code, record.error_message)
    view, at = memoryview(value), 0
    tensors: list[Tensor] = []
    for head in record.tensors:
        tensors.append(Tensor(head.name, head.datatype, head.shape, view[at : at + head.size]))
        at += head.size
    step = PathStep(
        stage=record.instance,
        variant=record.variant,
        accuracy=record.accuracy,
        accelerator=record.accelerator,
        device=record.device,
        queued_ms=record.queued_ms,
        computed_ms=record.computed_ms,
        batch_size=record.batch_size,
    )
    return StageDone(record.instance, {tensor.name: tensor for tensor in tensors}, record.variant, record.accuracy, step, record.finished_ms)

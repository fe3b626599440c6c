"""One request on its graph, and the jobs that its stages are."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from broker.policy.entry import Entry
from broker.policy.lanes import Lane, Option
from graphs.commands import RunStage
from graphs.compiled import Graph
from graphs.events import Event, StageDone, StageFailed
from graphs.line import Line
from graphs.line_steps import LineStep
from graphs.run import Run
from graphs.second_opinion import SecondOpinion
from graphs.tensor import Tensor
from schemas.stage import StageRecord
from schemas.terminal import PathStep
from schemas.work import order_name


class StageJob(msgspec.Struct, eq=False):
    """The payload of a stage's entry: what its order has to say beside the entry."""

    request: GraphRequest
    command: RunStage
    record: object
    """The payload of the request."""
    ready_ms: float
    """When everything that the stage needs was there."""


class Ahead(msgspec.Struct, eq=False):
    """A stage that a worker was told to go on with."""

    entry: Entry
    option: Option
    step: LineStep
    accuracy: float
    """Of the path up to it, itself included."""


class Fused(msgspec.Struct, eq=False):
    """What a worker was told with the order of one stage of a request."""

    instance: str
    """Of that stage."""
    lane: Lane
    ahead: list[Ahead]
    gone: int = 0
    """With so many of them the worker has gone on."""
    heard: set[str] = set()
    """Instances after which it has, in whatever order their records came."""

    def on_after(self, instance: str) -> None:
        """A stage record of this worker says that it has gone on after `instance`."""
        self.heard.add(instance)
        while self.gone < len(self.ahead) and (self.ahead[self.gone - 1].entry.instance if self.gone else self.instance) in self.heard:
            self.gone += 1

    def under_way(self, instance: str) -> Ahead | None:
        """The stage that the worker has without having been sent it, where `instance` is one."""
        return next((ahead for ahead in self.ahead[: self.gone] if ahead.entry.instance == instance), None)

    def cut(self, instance: str) -> None:
        """The worker hands this one back: nor does it go on after it."""
        at = next((at for at, ahead in enumerate(self.ahead) if ahead.entry.instance == instance), len(self.ahead))
        del self.ahead[at:]
        self.gone = min(self.gone, at)


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
    planned_ms: Mapping[str, float] = {}
    """Work of the whole path, by task."""
    promised_ms: dict[str, float] = {}
    """What is expected of the stages that are still to come, by task."""
    placed_ms: dict[str, float] = {}
    """Of the stages that have come, by task."""
    whole: bool = False
    """All that the answer needed has come."""
    dropped: bool = False
    """No path can make it any more: nothing further is run, its deadline answers it."""
    fused: Fused | None = None
    """What the worker that has its stage may go on with."""

    @property
    def endpoint(self) -> str:
        return self.entry.endpoint


def stage_entry(request: GraphRequest, instance: str, rows: int, task: str) -> Entry:
    """An entry for a stage of the request, with nothing planned and nothing to compute it on yet."""
    root = request.entry
    return Entry(
        order_name(root.key.decode(), instance).encode(), root.shard, -1, root.received_ms, root.endpoint, root.floor, None, None, root.priority,
        root.tenant, rows, 0, None, traceparent=root.traceparent, task=task, root=root, instance=instance,
    )  # fmt: skip


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

"""From a dispatcher's send to the order that its worker reads, as broker/messages.py and workers/orders.py write and read it."""

from __future__ import annotations

from collections.abc import Iterable

from broker.policy.entry import Send
from broker.policy.graph_request import StageJob
from broker.policy.work_orders import SINGLE_STAGE, next_stages, order_of
from graphs.second_opinion import SecondOpinion
from schemas.stage import TensorHead
from schemas.work import StagePart, order_name
from workers.policy.batcher import QueuedOrder


def orders_of(sends: Iterable[Send], epoch: int, blind_ms: int) -> list[QueuedOrder]:
    """What the worker queues; bodies are not simulated. `blind_ms`: by which dispatchers see deadlines too late."""
    orders: list[QueuedOrder] = []
    for send in sends:
        entry = send.entry
        root = entry.root
        request_id = (entry.key if root is None else root.key).decode()
        stage, part, name = SINGLE_STAGE, None, request_id
        if root is not None and isinstance(entry.payload, StageJob):
            stage, part = entry.payload.command.instance, _part(send, entry.payload)
            name = order_name(request_id, part.instance)
        order = order_of(send, stage, epoch, part, blind_ms=blind_ms)
        orders.append(QueuedOrder(name, request_id, order, b"", "", send.lane, 0))
    return orders


def _part(send: Send, job: StageJob) -> StagePart:
    """The endpoint stands for the name of the topic."""
    request, command, stage = job.request, job.command, job.command.stage
    final, fused = command.final, request.fused
    # A second opinion says nothing of the answer: none of its stages is the last one.
    run = None if isinstance(request.run, SecondOpinion) else request.run
    return StagePart(
        instance=command.instance,
        revision=request.revision,
        topic="" if final else stage.topic,
        request_inputs=command.request_inputs,
        tensors=tuple([TensorHead(name, tensor.datatype, tensor.shape, len(tensor.data)) for name, tensor in command.tensors.items()]),
        outputs=None if final else stage.outputs,
        answers=stage.answers if final else {},
        path=tuple(run.path()) if run is not None and (final or fused is not None) else (),
        path_accuracy=run.path_accuracy(command.instance, send.accuracy, send.variant) if run is not None and final else None,
        parameters=stage.parameters,
        ready_ms=int(job.ready_ms),
        then=() if fused is None else next_stages(fused, lambda _, stage: stage),
    )

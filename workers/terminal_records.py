"""Terminal records: what a worker writes to {p}.responses where its stage is the last of the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.log import Message
from schemas.datatypes import Array
from schemas.tensors import encode_output
from schemas.terminal import COMPLETED, MSGPACK_TYPE, TERMINAL_VERSION, ErrorDetail, OutputTensor, Terminal, encode_terminal
from schemas.work import CONTENT_TYPE_HEADER, StagePart
from workers.policy.batcher import QueuedOrder
from workers.said import Said, missing_output, path_step

Outputs = list[OutputTensor]


def terminal_outputs(queued: QueuedOrder, outputs: Mapping[str, Array]) -> Outputs:
    """In the request's content type, by the names that the graph gives them. Raises RequestError for what that cannot carry."""
    raw = queued.content_type == MSGPACK_TYPE
    part = queued.order.part
    if part is None:
        return [encode_output(name, values, raw=raw) for name, values in outputs.items()]
    return [encode_output(answer, values, raw=raw) for answer, values in _named(queued.order.stage, part, outputs)]


def _named(stage: str, part: StagePart, outputs: Mapping[str, Array]) -> Sequence[tuple[str, Array]]:
    names = part.answers or {name: name for name in (outputs if part.outputs is None else part.outputs)}
    for name in names.values():
        if name not in outputs:
            raise missing_output(stage, name, list(outputs))
    return [(answer, outputs[name]) for answer, name in names.items()]


def terminal_message(said: Said) -> Message:
    """The record, with `outputs` from terminal_outputs."""
    queued, order = said.queued, said.queued.order
    part = order.part
    completed = said.outcome == COMPLETED
    path = [] if part is None else list(part.path)
    accuracy = None
    if completed:
        path.append(path_step(said))
        accuracy = order.accuracy if part is None or part.path_accuracy is None else part.path_accuracy
    terminal = Terminal(
        id=queued.request_id,
        outcome=said.outcome,
        endpoint=order.endpoint,
        error=None if completed else ErrorDetail(said.error_code, said.error_message, order.stage),
        outputs=said.outputs,
        path=path,
        accuracy=accuracy,
        received_ms=order.received_ms,
        finished_ms=said.finished_ms,
        deadline_ms=order.deadline_ms,
        attempts=order.attempt,
        epoch=order.epoch,
        traceparent=order.traceparent,
        version=TERMINAL_VERSION,
    )
    content_type = queued.content_type
    return queued.request_id.encode(), encode_terminal(terminal, content_type), ((CONTENT_TYPE_HEADER, content_type.encode()),)

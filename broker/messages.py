"""From the policy's commands to records: orders for workers, terminal records, shadows' answers, dead letters."""

from __future__ import annotations

import msgspec

from broker.log import Message, Record
from broker.policy.entry import Answer, Send, Tap
from broker.policy.graph_request import StageJob
from broker.policy.tap_events import EventSource, shadow_event
from broker.policy.work_orders import SINGLE_STAGE, next_stages, order_of
from graphs.second_opinion import SecondOpinion
from graphs.tensor import Tensor
from schemas.cloud_event import kafka_binary
from schemas.names import Names
from schemas.request import answer_type_of
from schemas.stage import TensorHead
from schemas.tap import SHADOW_HEADER
from schemas.tensors import encode_output
from schemas.terminal import COMPLETED, JSON_TYPE, MSGPACK_TYPE, TERMINAL_VERSION, ErrorDetail, OutputTensor, Terminal, encode_terminal
from schemas.work import CONTENT_TYPE_HEADER, WORK_HEADER, StagePart, encode_order

_NO_ANSWERS: dict[str, str] = {}


def work_message(send: Send, epoch: int, names: Names) -> Message:
    """The order for a worker: the request's own bytes, untouched, with the work header beside them."""
    entry = send.entry
    job = entry.payload
    if isinstance(job, StageJob):
        return _stage_message(send, job, epoch, names)
    record: Record = job  # pyright: ignore[reportAssignmentType]
    headers = [(WORK_HEADER, encode_order(order_of(send, SINGLE_STAGE, epoch)))]
    if record.headers:
        headers.extend((name, value) for name, value in record.headers if name.lower() == CONTENT_TYPE_HEADER)
    return entry.key, record.value, headers


def _stage_message(send: Send, job: StageJob, epoch: int, names: Names) -> Message:
    """The order for a stage of a graph: the request's body where the stage wants some of it, then the tensors that come from other stages."""
    request, command = job.request, job.command
    stage, tensors = command.stage, command.tensors
    record: Record = job.record  # pyright: ignore[reportAssignmentType]
    body = (record.value or b"") if command.request_inputs else b""
    # By position, in the order of the fields: this runs for every stage of every request.
    fused = request.fused
    then = () if fused is None else next_stages(fused, names.stage)
    heads = tuple([TensorHead(name, tensor.datatype, tensor.shape, len(tensor.data)) for name, tensor in tensors.items()])
    if command.final:
        run = request.run
        assert not isinstance(run, SecondOpinion)
        accuracy = run.path_accuracy(command.instance, send.accuracy, send.variant)
        kept = (None, stage.answers, tuple(run.path()), accuracy)
        topic = ""
    else:
        path = tuple(request.run.path()) if then and not isinstance(request.run, SecondOpinion) else ()
        kept = (stage.outputs, _NO_ANSWERS, path, None)
        topic = names.stage(send.entry.endpoint, stage.topic)
    part = StagePart(
        command.instance, request.revision, topic, len(body), command.request_inputs, heads, *kept, stage.parameters, int(job.ready_ms), then
    )  # fmt: skip
    headers = [(WORK_HEADER, encode_order(order_of(send, command.instance, epoch, part)))]
    if record.headers:
        headers += [header for header in record.headers if header[0].lower() == CONTENT_TYPE_HEADER]
    key = request.entry.key
    if not tensors:
        return key, record.value if body else b"", headers
    return key, b"".join([body, *[tensor.data for tensor in tensors.values()]]), headers


def answer_message(answer: Answer, epoch: int, now_ms: float) -> Message:
    """The terminal record of a request that no worker answers, in the content type of the request."""
    entry = answer.entry
    record: Record = entry.payload  # pyright: ignore[reportAssignmentType]
    content_type = answer_type_of(record.headers) if record.headers else JSON_TYPE
    terminal = _terminal(answer, content_type, epoch, now_ms)
    return entry.key, encode_terminal(terminal, content_type), [(CONTENT_TYPE_HEADER, content_type.encode())]


def tap_message(tap: Tap, epoch: int, now_ms: float, names: Names) -> Message:
    """A shadow's answer, marked as such: a CloudEvent like those of the taps, written by the dispatcher itself."""
    terminal = _terminal(Answer(tap.entry, COMPLETED, tensors=tap.tensors, accuracy=tap.accuracy, path=tap.path), JSON_TYPE, epoch, now_ms)
    # A shadow may run where the request itself was never handed out.
    terminal = msgspec.structs.replace(terminal, attempts=max(terminal.attempts, 1))
    event = shadow_event(terminal, encode_terminal(terminal, JSON_TYPE), tap.node, tap.revision, EventSource(names.prefix))
    key, value, headers = kafka_binary(event)
    return key, value, [*headers, (SHADOW_HEADER, b"true")]


def is_shadow(record: Record) -> bool:
    """Whether a record of {p}.tap.responses is a shadow's answer, and not a tapped answer."""
    return any(name == SHADOW_HEADER for name, _ in record.headers or ())


def _terminal(answer: Answer, content_type: str, epoch: int, now_ms: float) -> Terminal:
    entry = answer.entry
    if answer.outcome == COMPLETED:
        error, outputs = None, [_output(tensor, content_type) for tensor in answer.tensors]
    else:
        stage = answer.stage or (SINGLE_STAGE if entry.attempts and entry.task else None)
        error, outputs = ErrorDetail(answer.code, answer.message, stage), None
    return Terminal(
        id=entry.key.decode(),
        outcome=answer.outcome,
        endpoint=entry.endpoint,
        error=error,
        outputs=outputs,
        path=list(answer.path),
        accuracy=answer.accuracy,
        received_ms=entry.received_ms,
        finished_ms=int(now_ms),
        deadline_ms=entry.deadline_ms or None,
        attempts=entry.attempts,
        epoch=epoch,
        traceparent=entry.traceparent,
        version=TERMINAL_VERSION,
    )


def _output(tensor: Tensor, content_type: str) -> OutputTensor:
    """Raw bytes stay raw in msgpack; JSON needs a list."""
    if content_type == MSGPACK_TYPE:
        return OutputTensor(tensor.name, list(tensor.shape), tensor.datatype, tensor.data)
    return encode_output(tensor.name, tensor.values(), raw=False)


def dead_letter_message(record: Record, reason: str, *, whole: bool = True) -> Message:
    """The original key, value and headers (not `whole`: none of them), with why and from where."""
    added = (
        ("headrace-reason", reason.encode()),
        ("headrace-topic", record.topic.encode()),
        ("headrace-partition", str(record.partition).encode()),
        ("headrace-offset", str(record.offset).encode()),
    )
    return (record.key, record.value, [*record.headers, *added]) if whole else (None, None, list(added))

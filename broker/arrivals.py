"""From a record of {p}.requests to what the policy knows of a request, and from the policy's answers to records: the dispatcher's codec."""

from __future__ import annotations

from broker.log import Message, Record
from broker.policy.entry import Answer, Entry, Send
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.request import answer_type_of, read_routing, request_id_of
from schemas.terminal import JSON_TYPE, TERMINAL_VERSION, ErrorDetail, Terminal, encode_terminal
from schemas.work import CONTENT_TYPE_HEADER, WORK_HEADER, WORK_VERSION, WorkOrder, encode_order

SINGLE_STAGE = "main"
"""The name of the one stage of an endpoint without a graph."""


def read_entry(record: Record, limits: Limits) -> Entry:
    """The request of a record; one whose routing fields cannot be read carries the refusal. Raises Unattributable without a usable id."""
    key, value, headers = record.key, record.value, record.headers
    if key is None or not key.isascii() or not 0 < len(key) <= limits.request_id_bytes_max:
        key = request_id_of(key, value, headers, limits).encode()
    try:
        routing = read_routing(value, headers, limits)
    except (BadRequest, TooLarge) as error:
        size = len(value) if value else 0
        return Entry(key, record.partition, record.offset, record.timestamp, "", None, None, None, 0, "", 0, size, record, (error.code, str(error)))
    return Entry(
        key,
        record.partition,
        record.offset,
        record.timestamp,
        routing.endpoint,
        routing.min_accuracy,
        routing.deadline_ms,
        routing.timeout_ms,
        routing.priority,
        routing.tenant,
        routing.rows or 1,
        len(value or b""),
        record,
        traceparent=routing.traceparent,
    )


def work_message(send: Send, epoch: int) -> Message:
    """The order for a worker: the request's own bytes, untouched, with the work header beside them."""
    entry = send.entry
    record: Record = entry.payload  # pyright: ignore[reportAssignmentType]
    order = WorkOrder(
        WORK_VERSION,
        entry.endpoint,
        SINGLE_STAGE,
        send.variant,
        send.accuracy,
        send.worker,
        send.incarnation,
        entry.shard,
        entry.received_ms,
        entry.deadline_ms,
        entry.rows,
        send.attempt,
        epoch,
        entry.priority,
        entry.traceparent,
    )
    headers = [(WORK_HEADER, encode_order(order))]
    if record.headers:
        headers.extend((name, value) for name, value in record.headers if name.lower() == CONTENT_TYPE_HEADER)
    return entry.key, record.value, headers


def answer_message(answer: Answer, epoch: int, now_ms: float) -> Message:
    """The terminal record of a request that no worker answers, in the content type of the request."""
    entry = answer.entry
    record: Record = entry.payload  # pyright: ignore[reportAssignmentType]
    content_type = answer_type_of(record.headers) if record.headers else JSON_TYPE
    terminal = Terminal(
        id=entry.key.decode(),
        outcome=answer.outcome,
        endpoint=entry.endpoint,
        error=ErrorDetail(answer.code, answer.message, SINGLE_STAGE if entry.attempts else None),
        path=[],
        received_ms=entry.received_ms,
        finished_ms=int(now_ms),
        deadline_ms=entry.deadline_ms or None,
        attempts=entry.attempts,
        epoch=epoch,
        traceparent=entry.traceparent,
        version=TERMINAL_VERSION,
    )
    return entry.key, encode_terminal(terminal, content_type), [(CONTENT_TYPE_HEADER, content_type.encode())]


def dead_letter_message(record: Record, reason: str, *, whole: bool = True) -> Message:
    """The original key, value and headers (not `whole`: none of them), with why and from where."""
    added = (
        ("headrace-reason", reason.encode()),
        ("headrace-topic", record.topic.encode()),
        ("headrace-partition", str(record.partition).encode()),
        ("headrace-offset", str(record.offset).encode()),
    )
    return (record.key, record.value, [*record.headers, *added]) if whole else (None, None, list(added))

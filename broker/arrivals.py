"""From records to what the policy knows: requests, what a graph looks at in them, and stage records."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.log import Record
from broker.policy.entry import Entry
from graphs.compiled import Graph
from graphs.tensor import Tensor
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.request import answer_type_of, read_routing, request_id_of
from schemas.stage import StageRecord, decode_stage
from schemas.tensors import decode_inputs
from schemas.terminal import JSON_TYPE
from schemas.work import WORK_HEADER


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


def read_stage(record: Record) -> StageRecord | None:
    """The stage record that a record of a stage topic carries; None for what is none."""
    for name, value in record.headers or ():
        if name == WORK_HEADER:
            try:
                found = decode_stage(value)
            except msgspec.DecodeError:
                return None
            return found if record.key and sum(head.size for head in found.tensors) == len(record.value or b"") else None
    return None


def open_request(payload: object, graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The parameters and tensors of a request that its graph looks at; nothing is decoded where it looks at none. Raises RequestError."""
    if not graph.fields and not graph.request_tensors:
        return {}, {}
    record: Record = payload  # pyright: ignore[reportAssignmentType]
    decoded = decode_inputs(record.value or b"", answer_type_of(record.headers) if record.headers else JSON_TYPE, (), Limits())
    tensors = {name: Tensor.of(name, array) for name, array in decoded.inputs.items() if name in graph.request_tensors}
    missing = graph.request_tensors - tensors.keys()
    if missing:
        raise BadRequest(f"input {min(missing)!r} is missing; the endpoint's graph looks at it")
    return {name: value for name, value in decoded.parameters.items() if name in graph.fields}, tensors

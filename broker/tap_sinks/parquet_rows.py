"""One row of the Parquet files for each exchange: tensors decoded into raw bytes, what cannot be decoded kept as it was, with the reason."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.policy.tap_events import answer_type, floor_of, request_payload
from broker.policy.tap_join import Exchange, routing_of
from broker.policy.tap_payload import Payload, shaped
from schemas.datatypes import Array, datatype_of, to_raw
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.request import Routing
from schemas.tap import TapSpec
from schemas.tensors import decode_inputs, decode_output
from schemas.terminal import decode_terminal

Row = dict[str, Any]
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequest, TooLarge, ValueError)
_encode = msgspec.json.Encoder().encode
INSTANT_MS_MAX = 253_402_300_799_999
_NO_STEP = {"stage": None, "variant": None, "accelerator": None}


def row_of(exchange: Exchange, limits: Limits) -> Row:
    """The columns of parquet_layout.py, by name: tensors as tuples, times in Unix milliseconds."""
    head, asked, endpoint = exchange.head, exchange.asked, exchange.endpoint
    taps = endpoint.taps or TapSpec()
    routing = routing_of(asked, limits)
    step = head.path[-1] if head.path else None
    return {
        "id": head.id,
        "endpoint": endpoint.name,
        "graph_version": endpoint.revision,
        "outcome": head.outcome,
        "error_code": None if head.error is None else head.error.code,
        "error_message": None if head.error is None else head.error.message,
        "min_accuracy": floor_of(routing, endpoint),
        "accuracy": head.accuracy,
        **(_NO_STEP if step is None else {"stage": step.stage, "variant": step.variant, "accelerator": step.accelerator}),
        "attempts": head.attempts,
        **_stated(routing),
        # Whatever others have written: readers' calendars end with the year 9999.
        "received_at": _instant(asked.received_ms) or 0,
        "finished_at": _instant(head.finished_ms) or _instant(exchange.answered_ms) or 0,
        "deadline_at": _instant(head.deadline_ms),
        "path": head.path,
        **_request(exchange, taps, limits),
        **_response(exchange, taps),
        "sample_rate": exchange.rate,
        "shard": exchange.shard,
        "offset": exchange.offset,
    }


def _stated(routing: Routing | None) -> Row:
    if routing is None:
        return {"tenant": None, "priority": None, "traceparent": None}
    return {"tenant": routing.tenant or None, "priority": routing.priority, "traceparent": routing.traceparent}


def _request(exchange: Exchange, taps: TapSpec, limits: Limits) -> Row:
    asked = exchange.asked
    whole = _decides_alone(taps)
    payload = request_payload(asked, whole)
    row: Row = {"parameters": None, "inputs": None, "request": None, "request_bytes": payload.size_bytes, "request_problem": payload.problem or None}
    if payload.data is None or payload.cut:
        return row | {"request": payload.data}
    try:
        decoded = decode_inputs(payload.data, payload.content_type, (), limits)
        inputs = [_tensor(name, values, taps) for name, values in decoded.inputs.items()]
        parameters = _encode(decoded.parameters).decode() if decoded.parameters else None
    except UNREADABLE as error:
        return row | _undecoded("request", payload, taps, error)
    return row | {"inputs": inputs, "parameters": parameters}


def _response(exchange: Exchange, taps: TapSpec) -> Row:
    body = exchange.answer
    payload = shaped(body, answer_type(body), "outputs", _decides_alone(taps))
    row: Row = {"outputs": None, "response": None, "response_bytes": payload.size_bytes, "response_problem": payload.problem or None}
    if payload.data is None or payload.cut:
        return row | {"response": payload.data}
    if exchange.head.outputs is None:
        return row
    try:
        outputs = [_tensor(output.name, decode_output(output), taps) for output in decode_terminal(body).outputs or ()]
    except UNREADABLE as error:
        return row | _undecoded("response", payload, taps, error)
    return row | {"outputs": outputs}


def _decides_alone(taps: TapSpec) -> TapSpec:
    """Tensors are redacted here when they are decoded: there is no need to rewrite the body for it."""
    return msgspec.structs.replace(taps, redact=()) if taps.redact else taps


def _undecoded(column: str, payload: Payload, taps: TapSpec, error: Exception) -> Row:
    if taps.redact:
        return {f"{column}_problem": f"left out, as its tensors cannot be redacted: {error}"}
    return {column: payload.data, f"{column}_problem": str(error)}


def _tensor(name: str, values: Array, taps: TapSpec) -> tuple[str, str, tuple[int, ...], bytes | None]:
    """The fields of a tensor in the order of the layout."""
    datatype = datatype_of(values)
    return name, datatype.name, values.shape, None if name in taps.redact else to_raw(values, datatype)


def _instant(unix_ms: int | None) -> int | None:
    return unix_ms if unix_ms is not None and 0 <= unix_ms <= INSTANT_MS_MAX else None

"""The request record: how its id and its routing fields are read from key, headers and body; tensors stay undecoded."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import msgspec

from schemas.errors import BadRequest, TooLarge, Unattributable
from schemas.limits import Limits
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE
from schemas.work import CONTENT_TYPE_HEADER

Headers = Sequence[tuple[str, bytes]]
CONTENT_TYPES = (JSON_TYPE, MSGPACK_TYPE)
DEADLINE_MS_MAX = (1 << 53) - 1
"""Every client and every encoding can carry integers up to here."""
TRACEPARENT_CHARACTERS_MAX = 256
QUOTED_MAX = 64
"""Characters of what the client sent that a message repeats."""


class TensorHead(msgspec.Struct):
    """What routing needs to know of an input tensor; its data is skipped, not decoded."""

    shape: list[int] = []


class Routing(msgspec.Struct):
    """The fields by which a request is admitted and routed, as far as the request states them."""

    endpoint: str = ""
    id: str | None = None
    min_accuracy: float | None = None
    deadline_ms: int | None = None
    timeout_ms: int | None = None
    priority: int = 0
    tenant: str = ""
    traceparent: str | None = None
    rows: int | None = None
    inputs: list[TensorHead] = []


_json = msgspec.json.Decoder(Routing)
_msgpack = msgspec.msgpack.Decoder(Routing)
_json_id = msgspec.json.Decoder(msgspec.defstruct("_Id", [("id", str | None, None)]))
_msgpack_id = msgspec.msgpack.Decoder(msgspec.defstruct("_Id", [("id", str | None, None)]))


def content_type_of(headers: Headers) -> str:
    """JSON where nothing is said. Raises BadRequest for a content type that is neither JSON nor msgpack."""
    for name, value in headers:
        if name.lower() == CONTENT_TYPE_HEADER:
            # Kafka allows a header without a value, which clients hand out as None.
            kind = (value or b"").decode("latin-1").partition(";")[0].strip().lower()
            if kind in CONTENT_TYPES:
                return kind
            raise BadRequest(f"content-type {kind[:QUOTED_MAX]!r} is not supported: send {JSON_TYPE} or {MSGPACK_TYPE}")
    return JSON_TYPE


def answer_type_of(headers: Headers) -> str:
    """The content type to answer in: the request's, or JSON where the request's cannot be used."""
    try:
        return content_type_of(headers)
    except BadRequest:
        return JSON_TYPE


def request_id_of(key: bytes | None, value: bytes | None, headers: Headers, limits: Limits) -> str:
    """The record's key as UTF-8; without a key the body's `id`. Raises Unattributable where neither can be used."""
    if key is not None:
        if not 0 < len(key) <= limits.request_id_bytes_max:
            raise Unattributable(f"the key has {len(key)} bytes: a request id has 1 to {limits.request_id_bytes_max}")
        try:
            return key.decode()
        except UnicodeDecodeError:
            raise Unattributable("the key is not UTF-8 text") from None
    if not value:
        raise Unattributable("the record has neither a key nor a body")
    decoder = _msgpack_id if answer_type_of(headers) == MSGPACK_TYPE else _json_id
    try:
        found = decoder.decode(value).id  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unattributable(f"the record has no key, and its body cannot be read for an id: {error}") from None
    if not isinstance(found, str) or not 0 < len(found.encode(errors="replace")) <= limits.request_id_bytes_max:
        raise Unattributable(f"the record has no key and no body `id` of 1 to {limits.request_id_bytes_max} bytes")
    return found


def read_routing(value: bytes | None, headers: Headers, limits: Limits) -> Routing:
    """Routing fields of a request, headers before body.

    A record with `endpoint`, `min_accuracy` and a `deadline_ms` or `timeout_ms` in its headers is routed without its body being decoded.
    Raises BadRequest (saying which field, and what would be right) or TooLarge.
    """
    if not value:
        raise BadRequest("the body is empty: send an Open Inference Protocol v2 request with an `endpoint`")
    if len(value) > limits.payload_bytes_max:
        raise TooLarge(f"the body has {len(value)} bytes, the limit is {limits.payload_bytes_max}")
    if not headers:
        routing = _decode(value, JSON_TYPE)
    else:
        if len(headers) > limits.headers_max:
            raise BadRequest(f"{len(headers)} headers, the limit is {limits.headers_max}")
        size = sum(len(name) + len(header or b"") for name, header in headers)
        if size > limits.headers_bytes_max:
            raise BadRequest(f"the headers have {size} bytes, the limit is {limits.headers_bytes_max}")
        content_type = content_type_of(headers)
        stated = _from_headers(headers)
        routed = "endpoint" in stated and "min_accuracy" in stated and ("deadline_ms" in stated or "timeout_ms" in stated)
        routing = Routing() if routed else _decode(value, content_type)
        for name, field in stated.items():
            setattr(routing, name, field)
    _check(routing, limits)
    return routing


def _decode(value: bytes, content_type: str) -> Routing:
    try:
        return (_msgpack if content_type == MSGPACK_TYPE else _json).decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a valid {content_type} request: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


_READ_HEADER = {
    "endpoint": str,
    "min_accuracy": float,
    "deadline_ms": int,
    "timeout_ms": int,
    "priority": int,
    "tenant": str,
    "traceparent": str,
    "rows": int,
}


def _from_headers(headers: Headers) -> dict[str, str | float | int]:
    stated: dict[str, str | float | int] = {}
    for name, value in headers:
        read = _READ_HEADER.get(name)
        if read is None:
            continue
        try:
            stated[name] = read(value.decode())
        except (ValueError, AttributeError):
            raise BadRequest(f"header {name}: {(value or b'')[:QUOTED_MAX]!r} is not a valid {read.__name__}") from None
    return stated


def _check(routing: Routing, limits: Limits) -> None:
    _check_texts(routing, limits)
    floor = routing.min_accuracy
    if floor is not None and not (isfinite(floor) and 0.0 <= floor <= 1.0):
        raise BadRequest(f"min_accuracy {floor} is not in 0..1")
    _check_range("deadline_ms (Unix time in milliseconds)", routing.deadline_ms, 0, DEADLINE_MS_MAX)
    _check_range("timeout_ms", routing.timeout_ms, 0, limits.timeout_ms_max)
    _check_range("priority (1 is the highest, 0 the default)", routing.priority, 0, limits.priority_max)
    if len(routing.inputs) > limits.tensors_max:
        raise BadRequest(f"{len(routing.inputs)} input tensors, the limit is {limits.tensors_max}")
    if routing.rows is None:
        shape = routing.inputs[0].shape if routing.inputs else None
        routing.rows = shape[0] if shape else 1
    _check_range("rows (first axis of the first input)", routing.rows, 1, limits.rows_max)


def _check_texts(routing: Routing, limits: Limits) -> None:
    if not routing.endpoint:
        raise BadRequest("the field `endpoint` is missing: name the endpoint in a header or in the body")
    for name, text in (("endpoint", routing.endpoint), ("tenant", routing.tenant)):
        if len(text) > limits.name_bytes_max:
            raise BadRequest(f"{name} has {len(text)} characters, the limit is {limits.name_bytes_max}")
    if routing.traceparent is not None and len(routing.traceparent) > TRACEPARENT_CHARACTERS_MAX:
        # Tracing can never fail a request, and what is no trace context is not carried along.
        routing.traceparent = None


def _check_range(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        # A number may have thousands of digits: it is shown only where a person could have meant it.
        shown = value if -(1 << 63) <= value < 1 << 64 else "(a very long number)"
        raise BadRequest(f"{name}: {shown} is not in {least}..{most}")

"""A request as a client states it, and the record that it becomes; checked by the same code as the dispatcher's."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypedDict
from zlib import crc32

import msgspec
import numpy as np

from broker.log import Message
from schemas.datatypes import Array
from schemas.errors import BadRequest, Unattributable
from schemas.limits import Limits
from schemas.request import read_routing, request_id_of
from schemas.tensors import encode_tensor
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE
from schemas.work import CONTENT_TYPE_HEADER

Encoding = Literal["json", "msgpack"]
_to_json = msgspec.json.Encoder()
_to_msgpack = msgspec.msgpack.Encoder()


class RequestOptions(TypedDict, total=False):
    """What a request may say beside its endpoint and its inputs; what is not said, the endpoint's defaults say."""

    min_accuracy: float | None
    """Floor in [0, 1]."""
    timeout_ms: int | None
    """From the log's receipt of the request."""
    deadline: datetime | int | None
    """Aware datetime, or Unix time in milliseconds. With `timeout_ms` too, the earlier one holds."""
    priority: int
    """1 is the highest, 0 the default."""
    tenant: str
    request_id: str | None
    """1 to 128 bytes of UTF-8; a random one where none is given. Submitting one again is ignored while the first is known."""
    parameters: Mapping[str, Any] | None
    traceparent: str | None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request of `submit_many`; see RequestOptions for the fields."""

    endpoint: str
    inputs: Mapping[str, Any]
    """Arrays by tensor name, each with rows on its first axis; whatever numpy makes an array of is taken."""
    min_accuracy: float | None = None
    timeout_ms: int | None = None
    deadline: datetime | int | None = None
    priority: int = 0
    tenant: str = ""
    request_id: str | None = None
    parameters: Mapping[str, Any] | None = None
    traceparent: str | None = None


class Published(NamedTuple):
    """A record for {p}.requests."""

    request_id: str
    message: Message
    size_bytes: int


def publish(request: Request, encoding: Encoding, limits: Limits) -> Published:
    """The record of a request: routing fields in headers, so that no dispatcher decodes the body where they are all given.

    Raises BadRequest or TooLarge, saying what is wrong, for what the dispatcher would refuse.
    """
    request_id = uuid.uuid4().hex if request.request_id is None else request.request_id
    packed = encoding == "msgpack"
    arrays = {name: _array(name, values) for name, values in request.inputs.items()}
    if not arrays:
        raise BadRequest("inputs is empty: a request has at least one tensor", request_id=request_id)
    if len(arrays) > limits.tensors_max:
        raise BadRequest(f"{len(arrays)} input tensors, the limit is {limits.tensors_max}", request_id=request_id)
    body: dict[str, object] = {"id": request_id, "inputs": [_tensor(name, array, raw=packed) for name, array in arrays.items()]}
    if request.parameters:
        body["parameters"] = request.parameters
    try:
        value = _to_msgpack.encode(body) if packed else _to_json.encode(body)
        key = request_id.encode()
    except (TypeError, UnicodeEncodeError, AttributeError) as error:
        raise BadRequest(f"the request cannot be written as {encoding}: {error}") from None
    headers = [(CONTENT_TYPE_HEADER, (MSGPACK_TYPE if packed else JSON_TYPE).encode()), *_fields(request, next(iter(arrays.values())))]
    try:
        request_id_of(key, value, headers, limits)
    except Unattributable as error:
        raise BadRequest(str(error)) from None
    read_routing(value, headers, limits)
    return Published(request_id, (key, value, headers), len(key) + len(value))


def shard_of(request_id: str, shards: int) -> int:
    """The partition of a new request. Any would do, as whatever belongs to it stays on the same; the same id must always find the same."""
    return crc32(request_id.encode()) % shards


def deadline_ms_of(deadline: datetime | int | None) -> int | None:
    """Unix time in milliseconds. Raises BadRequest for a datetime without a time zone, and for what is neither."""
    if deadline is None:
        return None
    if isinstance(deadline, datetime):
        if deadline.utcoffset() is None:
            raise BadRequest(f"deadline {deadline.isoformat()} has no time zone: give an aware datetime, such as datetime.now(UTC) + timedelta(...)")
        return int(deadline.timestamp() * 1000)
    if isinstance(deadline, bool) or not hasattr(deadline, "__index__"):
        raise BadRequest(f"deadline {deadline!r} is neither an aware datetime nor Unix time in whole milliseconds")
    return int(deadline)


def _array(name: str, values: Any) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise BadRequest(f"input {name!r} is no array: {error}") from None
    if array.ndim == 0:
        raise BadRequest(f"input {name!r} has no axis: the first axis counts rows, for one row give shape [1, ...]")
    if array.shape[0] == 0:
        raise BadRequest(f"input {name!r} has shape {list(array.shape)}: the batch is empty")
    return array


def _tensor(name: str, array: Array, *, raw: bool) -> dict[str, object]:
    try:
        return encode_tensor(name, array, raw=raw)
    except (BadRequest, ValueError, TypeError) as error:
        raise BadRequest(f"input {name!r} (dtype {array.dtype}, shape {list(array.shape)}): {error}") from None


def _fields(request: Request, first: Array) -> list[tuple[str, bytes]]:
    stated: dict[str, object] = {
        "endpoint": request.endpoint,
        "min_accuracy": request.min_accuracy,
        "deadline_ms": deadline_ms_of(request.deadline),
        "timeout_ms": request.timeout_ms,
        "priority": request.priority or None,
        "tenant": request.tenant or None,
        "traceparent": request.traceparent,
        "rows": first.shape[0],
    }
    return [(name, str(field).encode(errors="replace")) for name, field in stated.items() if field is not None]

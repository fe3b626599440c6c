"""The work order: what a dispatcher tells a worker about a request, in one header beside the untouched body."""

from __future__ import annotations

import msgspec

from schemas.decoding import strict

WORK_HEADER = "headrace"
CONTENT_TYPE_HEADER = "content-type"


class WorkOrder(msgspec.Struct, frozen=True, array_like=True):
    """Positional on the wire (msgpack array): append fields with defaults, never reorder.

    The record's key is the request id, its value the request's own bytes, its `content-type` header the request's.
    """

    version: int
    endpoint: str
    stage: str
    variant: str
    """Variant key, `task/variant`."""
    accuracy: float
    worker: str
    incarnation: int
    """A worker ignores orders for another incarnation: their leases have moved on."""
    shard: int
    """The partition of {p}.responses that the answer goes to."""
    received_ms: int
    deadline_ms: int
    rows: int
    attempt: int
    epoch: int
    priority: int
    traceparent: str | None = None


WORK_VERSION = 1
_encode = msgspec.msgpack.Encoder().encode
_decode = strict(msgspec.msgpack.Decoder(WorkOrder).decode)


def encode_order(order: WorkOrder) -> bytes:
    """The value of the work header."""
    return _encode(order)


def decode_order(value: bytes) -> WorkOrder:
    """Raises msgspec.DecodeError (or ValidationError) for what is not a work order."""
    return _decode(value)

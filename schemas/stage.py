"""The stage record: what a worker hands back of one stage of a graph, on {p}.stage.<endpoint>.<stage>."""

from __future__ import annotations

import msgspec

from schemas.decoding import strict

STAGE_VERSION = 1


class TensorHead(msgspec.Struct, frozen=True, array_like=True):
    """A tensor whose data stands in the record's value: raw little-endian bytes (BYTES: each element behind its 4-byte length)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    """Bytes. The tensors stand one after the other in the order of their heads."""


class StageRecord(msgspec.Struct, frozen=True, array_like=True):
    """Positional on the wire (msgpack array) in the header `headrace`: append fields with defaults, never reorder.

    The record's key is the request id; its value the tensors' bytes, empty where the stage failed.
    """

    version: int
    endpoint: str
    revision: int
    """Of the graph that the request runs on."""
    instance: str
    """The node's path, with `#row` inside a for_each: `lines/recognise#12`."""
    attempt: int
    variant: str
    accuracy: float
    accelerator: str
    device: str
    queued_ms: float
    computed_ms: float
    batch_size: int
    finished_ms: int
    tensors: tuple[TensorHead, ...] = ()
    error_code: str = ""
    """Empty where the stage was computed."""
    error_message: str = ""
    worker: str = ""
    fused: bool = False
    """The worker has gone on with the next stage, as its order allowed."""


_encode = msgspec.msgpack.Encoder().encode
_decode = strict(msgspec.msgpack.Decoder(StageRecord).decode)


def encode_stage(record: StageRecord) -> bytes:
    """The value of the header."""
    return _encode(record)


def decode_stage(value: bytes) -> StageRecord:
    """Raises msgspec.DecodeError (or ValidationError) for what is not a stage record."""
    return _decode(value)

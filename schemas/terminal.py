"""The terminal record: the one outcome of a request, as it stands in {p}.responses and in the store."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

TERMINAL_VERSION = 1
JSON_TYPE = "application/json"
MSGPACK_TYPE = "application/msgpack"
COMPLETED, EXPIRED, REJECTED, FAILED = "completed", "expired", "rejected", "failed"
OUTCOMES = (COMPLETED, EXPIRED, REJECTED, FAILED)


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was not completed: a code of schemas/errors.py, a sentence, and the stage where there is one."""

    code: str
    message: str
    stage: str | None = None


class PathStep(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of the way that the request took, with the device that really computed."""

    stage: str
    variant: str
    accuracy: float
    accelerator: str
    device: str
    queued_ms: float
    """From the log's receipt of the request to the start of the computation."""
    computed_ms: float
    batch_size: int
    """Rows that were computed together."""


class OutputTensor(msgspec.Struct, frozen=True):
    """An Open Inference Protocol v2 output; `data` is a flat list in JSON and raw little-endian bytes in msgpack."""

    name: str
    shape: list[int]
    datatype: str
    data: Any


class Terminal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of these per request becomes visible; the first record of a key in {p}.responses is the answer."""

    id: str
    outcome: str
    endpoint: str = ""
    error: ErrorDetail | None = None
    outputs: list[OutputTensor] | None = None
    path: list[PathStep]
    accuracy: float | None = None
    received_ms: int
    finished_ms: int
    deadline_ms: int | None = None
    attempts: int
    epoch: int
    traceparent: str | None = None
    version: int
    """TERMINAL_VERSION of the writer; required, so that it is always written."""


class OutputHead(msgspec.Struct, frozen=True):
    """An output whose data is skipped."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw


class TerminalHead(msgspec.Struct, frozen=True):
    """A terminal record without its tensors' data: enough to know that it is one, whose it is and how it ended."""

    id: str
    outcome: Literal["completed", "expired", "rejected", "failed"]
    path: list[PathStep]
    received_ms: int
    finished_ms: int
    attempts: int
    epoch: int
    version: int
    endpoint: str = ""
    error: ErrorDetail | None = None
    outputs: list[OutputHead] | None = None
    accuracy: float | None = None
    deadline_ms: int | None = None


_JSON_END = b'"version":%d}' % TERMINAL_VERSION
_to_json = msgspec.json.Encoder()
_to_msgpack = msgspec.msgpack.Encoder()
_from_json = msgspec.json.Decoder(Terminal)
_from_msgpack = msgspec.msgpack.Decoder(Terminal)
_head_from_json = msgspec.json.Decoder(TerminalHead)
_head_from_msgpack = msgspec.msgpack.Decoder(TerminalHead)


def encode_terminal(terminal: Terminal, content_type: str) -> bytes:
    """In the content type of the request: JSON, or msgpack with raw bytes."""
    return (_to_msgpack if content_type == MSGPACK_TYPE else _to_json).encode(terminal)


def decode_terminal(value: bytes) -> Terminal:
    """Reads both encodings: JSON objects start with `{`, msgpack maps never do. Raises msgspec.DecodeError for anything else."""
    if value[:1] == b"{":
        return _from_json.decode(value)
    return _from_msgpack.decode(value)


def answers(value: bytes | None, key: bytes) -> bool:
    """Whether this is the terminal record of the id that is its key: what anybody else writes to {p}.responses is no answer.

    What a Headrace of this version wrote is told by its first and last bytes; everything else is decoded.
    """
    return outcome_of(value, key) is not None


def outcome_of(value: bytes | None, key: bytes) -> str | None:
    """The outcome that it says; None where `answers` is false."""
    if not value:
        return None
    head = b'{"id":"%b","outcome":"' % key
    if value.startswith(head) and value.endswith(_JSON_END):
        return value[len(head) : value.index(b'"', len(head))].decode()
    try:
        found = decode_terminal_head(value)
        return found.outcome if found.id.encode() == key else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def decode_terminal_head(value: bytes) -> TerminalHead:
    """Reads both encodings without decoding tensors. Raises msgspec.DecodeError (UnicodeDecodeError for bad text) for anything else."""
    if value[:1] == b"{":
        return _head_from_json.decode(value)
    return _head_from_msgpack.decode(value)

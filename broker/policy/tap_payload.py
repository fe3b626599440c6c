"""How much of a payload is tapped: named tensors are emptied, what is too large is cut, and both are said. Nothing is decoded that need not be."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import msgspec

from schemas.cloud_event import BYTES_TYPE
from schemas.tap import TapSpec
from schemas.terminal import MSGPACK_TYPE

Part = Literal["inputs", "outputs"]
REDACTED = "redacted"
"""Stands in the `parameters` of a tensor whose data was left out."""


class Payload(msgspec.Struct, gc=False):
    """What may be shown of a body of `size_bytes`; `data` None where that is nothing."""

    data: bytes | None
    content_type: str
    size_bytes: int
    cut: bool = False
    redacted: tuple[str, ...] = ()
    problem: str = ""
    """Why it is not there, or not as it was."""


class _Json:
    outer = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    tensors = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
    text = msgspec.json.Decoder(str).decode
    encode = msgspec.json.Encoder().encode


class _Msgpack:
    outer = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
    tensors = msgspec.msgpack.Decoder(list[dict[str, msgspec.Raw]]).decode
    text = msgspec.msgpack.Decoder(str).decode
    encode = msgspec.msgpack.Encoder().encode


def shaped(body: bytes, content_type: str, part: Part, taps: TapSpec) -> Payload:
    """The payload that the endpoint's taps let through; `part` is where its tensors are."""
    size = len(body)
    if taps.payload == "metadata":
        return Payload(None, content_type, size)
    redacted: tuple[str, ...] = ()
    if taps.redact:
        try:
            body, redacted = redact(body, content_type, part, taps.redact)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # What cannot be read may hold what must not be seen.
            return Payload(None, content_type, size, problem=f"left out, as its tensors cannot be redacted: {error}")
    if len(body) > taps.max_bytes:
        return Payload(body[: taps.max_bytes], BYTES_TYPE, size, cut=True, redacted=redacted, problem=f"cut to {taps.max_bytes} of {size} bytes")
    return Payload(body, content_type, size, redacted=redacted)


def redact(body: bytes, content_type: str, part: Part, names: Collection[str]) -> tuple[bytes, tuple[str, ...]]:
    """The body with the data of these tensors emptied, all else byte for byte, and which of them were there. Raises msgspec.DecodeError."""
    codec: Any = _Msgpack if content_type == MSGPACK_TYPE else _Json
    outer: dict[str, Any] = codec.outer(body)
    if part not in outer:
        return body, ()
    tensors: list[dict[str, Any]] | None = codec.tensors(outer[part]) if bytes(outer[part]) not in (b"null", b"\xc0") else None
    found: list[str] = []
    for tensor in tensors or ():
        name = codec.text(tensor["name"]) if "name" in tensor else ""
        if name in names:
            tensor["data"], tensor["parameters"] = [], {REDACTED: True}
            found.append(name)
    if not found:
        return body, ()
    outer[part] = tensors
    return codec.encode(outer), tuple(found)

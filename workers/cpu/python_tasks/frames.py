"""What a worker and the process of a Python task say to each other: a msgpack head, then raw tensors, over a socket pair."""

from __future__ import annotations

import socket
import struct
import time

import msgspec

from schemas.stage import TensorHead

HEAD_BYTES_MAX = 1 << 20
DATA_BYTES_MAX = 256 << 20
_LENGTHS = struct.Struct("<IQ")
_JOINED_BYTES_MAX = 1 << 16
"""Up to here one write is cheaper than one for each part."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One message: a request (with `parameters`), or its answer (`error` where the call raised)."""

    tensors: tuple[TensorHead, ...] = ()
    parameters: bytes = b""
    error: str = ""


class Closed(Exception):
    """The other side is gone."""


class Oversized(Exception):
    """A frame is larger than the other side takes."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def send(connection: socket.socket, frame: Frame, parts: list[bytes], until_s: float | None = None) -> None:
    """Raises Closed; Oversized before anything is sent; TimeoutError where it is not through at `until_s` (monotonic)."""
    head = _encode(frame)
    size = sum(map(len, parts))
    if len(head) > HEAD_BYTES_MAX or size > DATA_BYTES_MAX:
        raise Oversized(f"{size} bytes of tensors, the limit is {DATA_BYTES_MAX}")
    pieces = [_LENGTHS.pack(len(head), size), head, *parts]
    if size <= _JOINED_BYTES_MAX:
        pieces = [b"".join(pieces)]
    try:
        for piece in pieces:
            _limit(connection, until_s)
            connection.sendall(piece)
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed(str(error)) from error


def receive(connection: socket.socket, until_s: float | None = None) -> tuple[Frame, bytearray]:
    """The next frame and its tensors' bytes. Raises Closed, TimeoutError, Oversized; msgspec.DecodeError for what is no frame."""
    head_bytes, size = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size, until_s))
    if head_bytes > HEAD_BYTES_MAX or size > DATA_BYTES_MAX:
        raise Oversized(f"a frame of {head_bytes} and {size} bytes")
    frame = _decode(_exactly(connection, head_bytes, until_s))
    return frame, _exactly(connection, size, until_s)


def _exactly(connection: socket.socket, size: int, until_s: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        _limit(connection, until_s)
        try:
            count = connection.recv_into(view[at:])
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(str(error)) from error
        if not count:
            raise Closed("end of stream")
        at += count
    return data


def _limit(connection: socket.socket, until_s: float | None) -> None:
    if until_s is None:
        return
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    connection.settimeout(left_s)

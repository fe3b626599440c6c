"""What a worker and the process that drives its board say to each other: small messages over a socket; tensors lie in memory that both see."""

from __future__ import annotations

import contextlib
import socket
import time

import msgspec

from workers.fpga.packing import Bytes

MESSAGE_BYTES_MAX = 60_000
AREA_BYTES = 16 << 20
"""Of the shared memory, for packed input of one batch, and the same for packed output."""
SLOTS = 2
"""Batches that lie in the shared memory at once: one that the board computes, and one that the worker packs or reads."""
SHARED_BYTES = 2 * SLOTS * AREA_BYTES


class Open(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first message."""

    target: str
    """An address of a PYNQ.remote board, `emulated` (with settings in `board`), or empty: the board that this process runs on."""
    board: bytes = b""
    cache_folder: str


class Opened(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Which board that is."""

    name: str
    kind: str
    """`real`, or `emulated`."""
    fabric: str
    reached: str
    """`here`, or the address."""
    part: str
    runtime: str

    @property
    def device(self) -> str:
        """As telemetry names it: an emulated board says so first."""
        fabric = f"emulated board, {self.fabric} fabric" if self.kind == "emulated" else "real board"
        remote = "" if self.reached == "here" else f" at {self.reached}"
        return f"{self.name}{remote} ({fabric})"


class Load(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Allocate for this variant, and configure the board with it."""

    key: str
    bitfile: str
    flow: str
    ips: dict[str, str]
    source_row_bytes: int
    sink_row_bytes: int
    rows_max: int
    clock_mhz: float
    weights: tuple[tuple[str, str], ...] = ()
    """(IP, file of words)."""


class Loaded(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """It is on the board."""

    reconfigured_ms: float
    clock_mhz: float
    memory_bytes: int


class Run(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Compute the rows that lie in the shared memory."""

    key: str
    rows: int
    slot: int = 0
    """Where in the shared memory."""
    expected_ms: float
    """What it is thought to take: no look at the board before that."""
    deadline_ms: float
    """From when it started, for the accelerator alone; beyond that it hangs."""
    clock_mhz: float = 0.0
    """The plan's wish; 0: as the design says, which is also the most."""
    twice: bool = False
    """Compute it again and compare: for boards that are suspected of wrong results."""


class Ran(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The results lie in the shared memory."""

    accelerator_ms: float
    polls: int
    clock_mhz: float
    temperature_celsius: float
    """As it was a few seconds ago at most; 0: there is no sensor."""
    power_watts: float = 0.0
    """Likewise."""
    switched_ms: float = 0.0
    """What the change to this overlay took, where another one was loaded."""


class Unload(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Free the variant's buffers."""

    key: str


class Tell(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Say how the board is."""


class Told(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """How it is; also the answer to Unload. Zero: there is no such sensor, or no overlay."""

    clock_mhz: float = 0.0
    temperature_celsius: float = 0.0
    power_watts: float = 0.0
    bitfile: str = ""


class Refused(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """It cannot be done, and the process goes on."""

    reason: str


class Lost(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The board hangs, or is gone; the process ends after this."""

    reason: str


Request = Open | Load | Run | Unload | Tell
Reply = Opened | Loaded | Ran | Told | Refused | Lost
_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode


def send(connection: socket.socket, message: Request | Reply) -> None:
    """Raises OSError where the other side is gone."""
    connection.send(_encode(message))


def receive_request(connection: socket.socket, linger_s: float = 0.0) -> Request | None:
    """None where the worker hung up. For `linger_s` it looks without going to sleep: to be woken takes longer than many a batch has."""
    until_s = time.monotonic() + linger_s
    while time.monotonic() < until_s:
        with contextlib.suppress(BlockingIOError):
            return _decoded(connection.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT))
    return _decoded(connection.recv(MESSAGE_BYTES_MAX))


def _decoded(data: bytes) -> Request | None:
    return _decode_request(data) if data else None


def receive_reply(connection: socket.socket, until_s: float) -> Reply | None:
    """None where the process ended. Raises TimeoutError at `until_s` (monotonic)."""
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    connection.settimeout(left_s)
    try:
        data = connection.recv(MESSAGE_BYTES_MAX)
    except ConnectionError:
        return None
    return _decode_reply(data) if data else None


def areas(shared: Bytes) -> tuple[tuple[Bytes, Bytes], ...]:
    """By slot: packed input, packed output."""
    halves = [shared[at : at + AREA_BYTES] for at in range(0, SHARED_BYTES, AREA_BYTES)]
    return tuple(zip(halves[::2], halves[1::2], strict=True))

"""Between the log and a sink that may be slow or dead: a buffer of a fixed size, retries with back-off, and drops that are counted. Nothing waits.

Delivery is at least once within the buffer: what was sent and not acknowledged is sent again, and so is what a killed tap had not settled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec
import structlog

from broker.policy.tap_join import Exchange, TapPosition
from broker.tap_metrics import TapMetrics
from broker.tap_sinks.tap_sink import SinkUnavailable, TapBatch
from schemas.errors import HeadraceError

_log = structlog.get_logger(__name__)


class SinkRefused(HeadraceError):
    """The other side will never take this: to send it again is of no use."""

    code = "tap_sink_refused"


class Parcel(msgspec.Struct, frozen=True, gc=False):
    """One thing to deliver."""

    content: Any
    size_bytes: int


class Carrier(Protocol):
    """Delivers; one call at a time."""

    kind: str
    """What is counted as stored: event, span."""

    async def start(self) -> None: ...

    def parcels(self, exchange: Exchange) -> Iterable[Parcel]:
        """What an exchange becomes."""
        ...

    async def deliver(self, parcels: Sequence[Parcel]) -> None:
        """Raises SinkUnavailable (try again) or SinkRefused (do not)."""
        ...

    async def close(self) -> None: ...


class BufferSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the buffer, and how it is emptied."""

    bytes_max: int = 16 << 20
    parcels_max: int = 50_000
    batch_bytes: int = 1 << 20
    batch_parcels: int = 500
    retry_ms_min: float = 100.0
    retry_ms_max: float = 10_000.0
    drain_ms: float = 2_000.0
    """For what is left, at the end and when shards go."""


class _Buffer:
    """Parcels in order, numbered; the oldest go first, and are dropped first."""

    def __init__(self, settings: BufferSettings) -> None:
        self._settings = settings
        self._parcels: deque[Parcel] = deque()
        self._sending: list[Parcel] = []
        self.bytes = 0
        self.next_number = 0

    @property
    def first_number(self) -> int:
        """All below were delivered or dropped."""
        return self.next_number - len(self)

    def __len__(self) -> int:
        return len(self._parcels) + len(self._sending)

    def add(self, parcel: Parcel) -> int:
        """Returns how many had to be dropped for it."""
        self._parcels.append(parcel)
        self.bytes += parcel.size_bytes
        self.next_number += 1
        dropped = 0
        while self._parcels and (self.bytes > self._settings.bytes_max or len(self) > self._settings.parcels_max):
            self.bytes -= self._parcels.popleft().size_bytes
            dropped += 1
        return dropped

    def take(self) -> list[Parcel]:
        """What to send now; the same again until `taken` is called."""
        size = sum(parcel.size_bytes for parcel in self._sending)
        while not self._sending and self._parcels:
            while self._parcels and len(self._sending) < self._settings.batch_parcels:
                if self._sending and size + self._parcels[0].size_bytes > self._settings.batch_bytes:
                    break
                size += self._parcels[0].size_bytes
                self._sending.append(self._parcels.popleft())
        return self._sending

    def taken(self) -> int:
        """What was sent is done with; how many those were."""
        count = len(self._sending)
        self.bytes -= sum(parcel.size_bytes for parcel in self._sending)
        self._sending = []
        return count


class BufferedTapSink:
    """The TapSink protocol over a Carrier."""

    def __init__(self, carrier: Carrier, metrics: TapMetrics, *, now_ms: Callable[[], float], settings: BufferSettings | None = None) -> None:
        self._carrier = carrier
        self._metrics = metrics
        self._now_ms = now_ms
        self._settings = settings or BufferSettings()
        self._buffer = _Buffer(self._settings)
        self._pending: deque[tuple[int, dict[int, TapPosition]]] = deque()
        """(number of the first parcel behind it, positions): settled when all before it is gone."""
        self._wake = asyncio.Event()
        self._delivering: asyncio.Task[None] | None = None
        self._problem = ""

    async def start(self) -> None:
        await self._carrier.start()
        self._delivering = asyncio.create_task(self._deliver(), name="tap-deliver")

    async def open(self, shard: int) -> TapPosition | None:
        return None

    async def write(self, batches: Mapping[int, TapBatch]) -> set[int]:
        for batch in batches.values():
            for exchange in batch.exchanges:
                for parcel in self._carrier.parcels(exchange):
                    self._metrics.dropped("buffer_full", self._buffer.add(parcel))
        self._pending.append((self._buffer.next_number, {shard: batch.position for shard, batch in batches.items()}))
        self._wake.set()
        return set()

    async def settle(self) -> Mapping[int, TapPosition]:
        if self._delivering is not None and self._delivering.done():
            self._delivering.result()  # a defect: it ends the process
        settled: dict[int, TapPosition] = {}
        while self._pending and self._pending[0][0] <= self._buffer.first_number:
            settled |= self._pending.popleft()[1]
        return settled

    async def _deliver(self) -> None:
        delay_ms = self._settings.retry_ms_min
        while True:
            parcels = self._buffer.take()
            if not parcels:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._carrier.deliver(parcels)
            except SinkUnavailable as error:
                if not self._problem:
                    _log.warning("tap_sink_away", problem=str(error))
                self._problem = str(error)
                await asyncio.sleep(delay_ms / 1000)
                delay_ms = min(delay_ms * 2, self._settings.retry_ms_max)
                continue
            except SinkRefused as error:
                _log.warning("tap_sink_refused", problem=str(error), count=len(parcels))
                self._metrics.dropped("refused", self._buffer.taken())
            else:
                self._metrics.stored(self._carrier.kind, self._buffer.taken())
            self._problem, delay_ms = "", self._settings.retry_ms_min

    async def release(self, shards: Sequence[int]) -> None:
        await self._drain()
        # What is still pending of these is the next owner's to say: it sends them again.
        self._pending = deque((number, {s: p for s, p in positions.items() if s not in shards}) for number, positions in self._pending)

    async def _drain(self) -> None:
        end_ms = self._now_ms() + self._settings.drain_ms
        while len(self._buffer) and self._now_ms() < end_ms and not self._problem:  # noqa: ASYNC110 - it also ends by time and by failure
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self._drain()
        if self._delivering is not None:
            self._delivering.cancel()
            with suppress(asyncio.CancelledError):
                await self._delivering
        await self._carrier.close()

    def buffered_bytes(self) -> int:
        """What was not delivered, dropped or refused yet."""
        return self._buffer.bytes

    def unready(self) -> str:
        return self._problem

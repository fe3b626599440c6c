"""Where the control loop hears of telemetry and of leadership; and the feed over the log's own reader, for where Faust cannot run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import structlog

from broker.log import Committed, Log, TopicPartition
from schemas.errors import LogUnavailable
from schemas.names import Names

logger = structlog.get_logger()
FETCH_WAIT_MS = 100
RETRY_S = 0.5


class Told(NamedTuple):
    """One record of {p}.telemetry."""

    offset: int
    timestamp_ms: int
    value: bytes | None


class Listener(Protocol):
    """Who is told, always from the loop that runs the feed; none of these may raise."""

    def assigned(self) -> None:
        """The one partition of {p}.telemetry is ours: we lead."""
        ...

    def revoked(self) -> None:
        """It is ours no longer, or nobody knows."""
        ...

    def told(self, records: Sequence[Told]) -> None:
        """Records were read, in order."""
        ...


class Feed(Protocol):
    """Takes part in the group of scalers."""

    async def run(self, listener: Listener) -> None:
        """Until stopped; leaves the group in bounded time, also where it is cancelled."""
        ...

    def stop(self) -> None: ...


class LogFeed:
    """The feed over a Reader: embedded mode, and tests without Kafka."""

    def __init__(self, log: Log, names: Names, *, name: str) -> None:
        self._telemetry = TopicPartition(names.telemetry, 0)
        self._reader = log.reader(name, group=names.planners_group, fetch_wait_ms=FETCH_WAIT_MS)
        self._stopping = False

    async def run(self, listener: Listener) -> None:
        """See Feed."""

        async def assigned(partitions: Sequence[TopicPartition]) -> None:
            if self._telemetry in partitions:
                listener.assigned()

        async def revoked(_partitions: Sequence[TopicPartition]) -> None:
            listener.revoked()

        await self._reader.start()
        await self._reader.subscribe([self._telemetry.topic], assigned=assigned, revoked=revoked)
        try:
            while not self._stopping:
                await self._read(listener)
        finally:
            listener.revoked()
            await self._reader.close()

    def stop(self) -> None:
        """See Feed."""
        self._stopping = True

    async def _read(self, listener: Listener) -> None:
        try:
            for records in (await self._reader.read(timeout_ms=FETCH_WAIT_MS, records_max=1_000)).values():
                listener.told([Told(record.offset, record.timestamp, record.value) for record in records])
                await self._reader.commit({self._telemetry: Committed(records[-1].offset + 1, "")})
        except LogUnavailable as error:
            logger.warning("telemetry cannot be read", error=str(error))
            await asyncio.sleep(RETRY_S)

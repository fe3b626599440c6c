"""Writes what a worker says of itself and of orders: telemetry and dead letters, without waiting for either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from broker.log import Ack, Message, Record, Writer
from schemas.errors import LogUnavailable, TooLarge
from schemas.names import Names
from schemas.telemetry import Telemetry, encode_telemetry

logger = structlog.get_logger()


class Reporting:
    """Nothing is retried: what gets lost here is said again in a second, or found by its lease."""

    def __init__(self, writer: Writer, names: Names, worker: str, *, broke: Callable[[BaseException], None]) -> None:
        self._writer, self._names, self._worker, self._broke = writer, names, worker, broke
        self._writes: set[asyncio.Future[Ack]] = set()

    def tell(self, telemetry: Telemetry) -> None:
        """On {p}.telemetry."""
        self._write(self._names.telemetry, (self._worker.encode(), encode_telemetry(telemetry), ()))

    def dead_letter(self, record: Record, reason: str) -> None:
        """The record as it was, with why and from where."""
        logger.warning("order moved to the dead letters", topic=record.topic, partition=record.partition, offset=record.offset, reason=reason)
        added: Sequence[tuple[str, object]] = (
            ("headrace-reason", reason),
            ("headrace-topic", record.topic),
            ("headrace-partition", record.partition),
            ("headrace-offset", record.offset),
        )
        headers = [*record.headers, *((name, str(value).encode()) for name, value in added)]
        self._write(self._names.dead_letters, (record.key, record.value, headers))

    def _write(self, topic: str, message: Message) -> None:
        write = asyncio.ensure_future(self._writer.write(topic, 0, (message,)))
        self._writes.add(write)
        write.add_done_callback(partial(self._written, topic))

    def _written(self, topic: str, write: asyncio.Future[Ack]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and (error := write.exception()) is not None:
            logger.warning("not written", topic=topic, error=str(error))
            # Somebody's record that does not fit with its reason beside it is no fault of this worker.
            if not isinstance(error, LogUnavailable | TooLarge):
                self._broke(error)

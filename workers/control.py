"""Reads what a worker is told: the catalog and the plan, from their beginnings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from broker.log import Log, Record, Start, TopicPartition
from broker.reading import is_behind
from schemas.catalog import Catalog
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.plan import Plan, decode_plan

logger = structlog.get_logger()
READ_WAIT_MS = 500
RETRY_SECONDS = 0.2


class Directions:
    """Follows {p}.catalog and {p}.plan; `on_change` runs after records were taken in."""

    def __init__(self, log: Log, names: Names, client_id: str, on_change: Callable[[], None]) -> None:
        self._reader = log.reader(f"{client_id}-control", fetch_wait_ms=100)
        self._catalog_partition = TopicPartition(names.catalog, 0)
        self._plan_partition = TopicPartition(names.plan, 0)
        self._on_change = on_change
        self.catalog = Catalog(tasks={}, endpoints={})
        self.plan: Plan | None = None
        """The one with the highest epoch that was seen."""

    async def start(self) -> None:
        """Read both up to their present ends, so that the first decision knows them. Raises LogUnavailable."""
        await self._reader.start()
        both = [self._catalog_partition, self._plan_partition]
        positions: dict[TopicPartition, Start] = dict.fromkeys(both, "earliest")
        await self._reader.assign(positions)
        ends = await self._reader.end_offsets(both)
        while await is_behind(self._reader, ends):
            await self._read(READ_WAIT_MS)
        self._on_change()

    async def run(self) -> None:
        """Follow both for ever."""
        while True:
            try:
                if await self._read(READ_WAIT_MS):
                    self._on_change()
            except LogUnavailable as error:
                logger.warning("catalog and plan cannot be read", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        await self._reader.close()

    async def _read(self, timeout_ms: int) -> bool:
        read = await self._reader.read(timeout_ms=timeout_ms, records_max=500)
        for partition, records in read.items():
            for record in records:
                try:
                    self._take(partition, record)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    logger.warning("record skipped", topic=partition.topic, offset=record.offset, error=str(error))
        return bool(read)

    def _take(self, partition: TopicPartition, record: Record) -> None:
        if partition == self._catalog_partition:
            self.catalog.apply(record.key or b"", record.value)
        elif record.value is not None:
            plan = decode_plan(record.value)
            if self.plan is None or plan.epoch >= self.plan.epoch:
                self.plan = plan

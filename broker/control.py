"""Reading the control topics: catalog and plan from their beginning, telemetry from a moment ago."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from broker.log import Log, Reader, Record, TopicPartition
from broker.reading import is_behind
from schemas.catalog import Catalog
from schemas.names import Names
from schemas.plan import Plan, decode_plan
from schemas.telemetry import ScalerReport, Telemetry, decode_reported

logger = structlog.get_logger()
FETCH_WAIT_MS = 100
"""Control records are rare: a long wait at the broker costs nothing and returns as soon as one is there."""


class Control:
    """Folds what it reads into calls of `on_catalog`, `on_plan` and `on_telemetry`; a record that is none of these is logged and skipped."""

    def __init__(
        self,
        log: Log,
        names: Names,
        client_id: str,
        *,
        on_catalog: Callable[[Catalog], None],
        on_plan: Callable[[Plan], None],
        on_telemetry: Callable[[Telemetry], None] | None = None,
    ) -> None:
        self._names = names
        self._reader: Reader = log.reader(f"{client_id}-control", fetch_wait_ms=FETCH_WAIT_MS)
        self._catalog = Catalog()
        self._on_catalog, self._on_plan, self._on_telemetry = on_catalog, on_plan, on_telemetry

    async def start(self, telemetry_since_ms: float) -> None:
        """Read catalog and plan up to their present ends, so that the first decision knows them."""
        catalog, plan = TopicPartition(self._names.catalog, 0), TopicPartition(self._names.plan, 0)
        await self._reader.start()
        positions: dict[TopicPartition, int | str] = {catalog: "earliest", plan: "earliest"}
        if self._on_telemetry is not None:
            telemetry = TopicPartition(self._names.telemetry, 0)
            positions[telemetry] = await self._reader.offset_at(telemetry, int(telemetry_since_ms))
        await self._reader.assign(positions)  # pyright: ignore[reportArgumentType]
        ends = await self._reader.end_offsets([catalog, plan])
        while await is_behind(self._reader, ends):
            await self.read(timeout_ms=200)

    async def read(self, *, timeout_ms: int) -> None:
        """Take in what has been written since. Raises LogUnavailable."""
        catalog_changed = False
        for partition, records in (await self._reader.read(timeout_ms=timeout_ms, records_max=500)).items():
            for record in records:
                catalog_changed |= self._take(partition.topic, record)
        if catalog_changed:
            self._on_catalog(msgspec.structs.replace(self._catalog, tasks=dict(self._catalog.tasks), endpoints=dict(self._catalog.endpoints)))

    def _take(self, topic: str, record: Record) -> bool:
        try:
            if topic == self._names.catalog:
                return self._catalog.apply(record.key or b"", record.value)
            if record.value is None:
                return False
            if topic == self._names.plan:
                self._on_plan(decode_plan(record.value))
            elif self._on_telemetry is not None:
                report = decode_reported(record.value)
                if not isinstance(report, ScalerReport):
                    self._on_telemetry(report)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("control record skipped", topic=topic, offset=record.offset, error=str(error))
        return False

    async def close(self) -> None:
        """Stop reading."""
        await self._reader.close()

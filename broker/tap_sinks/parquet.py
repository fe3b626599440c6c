"""Parquet files of tapped requests: one row each, in files that are rotated by size and time and can be read while they grow.

Rows are durable together with how far they go: the positions stand in the metadata of the file that holds the rows, and one rename makes
both visible. So a killed writer's successor goes on exactly where the files end, and what was half-written is under no name that anybody reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from broker.policy.tap_join import Exchange, TapPosition
from broker.tap_metrics import TapMetrics
from broker.tap_sinks.parquet_files import Positions, ShardLock, Stored, new_paths, read_positions, sweep, write_file
from broker.tap_sinks.parquet_rows import Row, row_of
from broker.tap_sinks.parquet_table import Table, joined, table_of
from broker.tap_sinks.tap_sink import SinkUnavailable, TapBatch
from schemas.errors import ConfigurationError
from schemas.limits import Limits

_log = structlog.get_logger(__name__)


class ParquetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a file is written, and when a new one begins."""

    flush_ms: float = 2_000.0
    """Rows are in a file, for anybody to read, after this time."""
    rotate_ms: float = 60_000.0
    rotate_bytes: int = 64 << 20
    """Of decoded rows in memory; the file is a part of that."""
    flush_bytes: int = 16 << 20
    """Decoded rows that are not in a file yet: more are not taken before they are."""
    writing_share: float = 0.5
    """Of the time, that writing a growing file again may take: a slow disk is written to less often."""


class _Growing:
    """The file that is being written: its tables so far, and how far it goes."""

    def __init__(self, path: Path, now_ms: float) -> None:
        self.path = path
        self.begun_ms = now_ms
        self.tables: list[Table] = []
        self.bytes = 0
        self.positions: Positions = {}


class ParquetTapSink:
    """The TapSink protocol."""

    def __init__(
        self,
        folder: Path,
        prefix: str,
        metrics: TapMetrics,
        *,
        stem: str,
        now_ms: Callable[[], float],
        settings: ParquetSettings | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`stem` begins the names of its files, unlike any other writer's; `now_ms` measures time, it need not tell it."""
        self._folder = folder
        self._metrics = metrics
        self._now_ms = now_ms
        self._settings = settings or ParquetSettings()
        self._limits = limits or Limits()
        self._prefix = prefix
        self._paths = new_paths(folder, stem)
        self._locks: dict[int, ShardLock] = {}
        self._tables: list[tuple[int, Table]] = []
        """Rows in memory, by shard: as Python objects they would take several times the room."""
        self._row_bytes = 0
        self._misfits = 0
        self._ahead: Positions = {}
        """How far the rows in memory go."""
        self._settled: Positions = {}
        self._growing: _Growing | None = None
        self._flush_at_ms = now_ms()
        self._problem = ""

    async def start(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(sweep, self._folder)
            # The first conversion loads libraries for some tenths of a second: not in the middle of a turn.
            await asyncio.to_thread(table_of, [])
        except OSError as error:
            raise ConfigurationError(f"{self._folder}: Parquet files cannot be written there: {error.strerror or error}") from None

    async def open(self, shard: int) -> TapPosition | None:
        try:
            if shard not in self._locks:
                self._locks[shard] = ShardLock(self._folder, shard)
            return (await asyncio.to_thread(read_positions, self._folder, self._prefix)).get(shard)
        except BlockingIOError:
            raise SinkUnavailable(f"another process still writes shard {shard} into {self._folder}") from None
        except OSError as error:
            raise SinkUnavailable(f"{self._folder}: {error.strerror or error}") from None

    async def write(self, batches: Mapping[int, TapBatch]) -> set[int]:
        if self._row_bytes >= self._settings.flush_bytes:
            await self._flush()
        for shard, batch in batches.items():
            if batch.exchanges:
                await self._convert(shard, [self._row(exchange) for exchange in batch.exchanges])
            self._ahead[shard] = batch.position
        return set()

    def _row(self, exchange: Exchange) -> Row:
        row = row_of(exchange, self._limits)
        if exchange.asked.value is not None and "cut to" in f"{row['request_problem']}{row['response_problem']}":
            self._metrics.truncated.inc()
        return row

    async def _convert(self, shard: int, rows: list[Row]) -> None:
        table, misfits = await asyncio.to_thread(table_of, rows)
        self._tables.append((shard, table))
        self._misfits += misfits
        self._row_bytes += sum((row["request_bytes"] or 0) + (row["response_bytes"] or 0) for row in rows)

    async def settle(self) -> Mapping[int, TapPosition]:
        """Where it is time, the rows go into a file. A full disk is waited for: nothing more is taken than memory may hold."""
        if self._ahead and self._now_ms() >= self._flush_at_ms:
            try:
                await self._flush()
            except SinkUnavailable as error:
                _log.warning("tap_file_not_written", problem=str(error))
        settled, self._settled = self._settled, {}
        return settled

    async def _flush(self) -> None:
        """Put what is in memory into the growing file, at once and for good. Raises SinkUnavailable: it is still in memory."""
        settings, now_ms = self._settings, self._now_ms()
        growing = self._growing or _Growing(next(self._paths), now_ms)
        tables, misfits, ahead = self._tables, self._misfits, self._ahead
        positions = growing.positions | ahead
        table = None
        try:
            if tables:
                table = await asyncio.to_thread(joined, [each for _, each in tables])
                await asyncio.to_thread(write_file, growing.path, [*growing.tables, table], Stored(self._prefix, positions))
        except OSError as error:
            self._problem = f"{self._folder}: {error.strerror or error}"
            self._flush_at_ms = self._now_ms() + settings.flush_ms
            raise SinkUnavailable(self._problem) from None
        self._problem = ""
        self._tables, self._row_bytes, self._misfits, self._ahead = [], 0, 0, {}
        self._settled |= ahead
        took_ms = self._now_ms() - now_ms
        self._flush_at_ms = self._now_ms() + max(settings.flush_ms, took_ms / settings.writing_share)
        if table is not None:
            self._metrics.stored("row", table.num_rows)
            self._metrics.dropped("refused", misfits)
            self._grow(growing, table, positions)

    def _grow(self, growing: _Growing, table: Table, positions: Positions) -> None:
        growing.tables.append(table)
        growing.bytes += table.nbytes
        growing.positions = positions
        old = self._now_ms() - growing.begun_ms >= self._settings.rotate_ms
        self._growing = None if old or growing.bytes >= self._settings.rotate_bytes else growing

    async def release(self, shards: Sequence[int]) -> None:
        if any(shard in self._ahead for shard in shards):
            try:
                await self._flush()
            except SinkUnavailable as error:
                _log.warning("tap_rows_given_up", problem=str(error), shards=sorted(shards))
                self._forget(shards)
        # What others take over is theirs: a file that goes on growing must not speak of it.
        self._growing = None
        for shard in shards:
            lock = self._locks.pop(shard, None)
            if lock is not None:
                lock.release()

    def _forget(self, shards: Sequence[int]) -> None:
        self._tables = [(shard, table) for shard, table in self._tables if shard not in shards]
        for shard in shards:
            self._ahead.pop(shard, None)

    async def close(self) -> None:
        await self.release(list(self._locks))

    def buffered_bytes(self) -> int:
        """Rows that are in no file yet."""
        return self._row_bytes

    def unready(self) -> str:
        return self._problem

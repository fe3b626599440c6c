"""The sink: moves terminal records from the log to the response store, first of each id wins, and fills the store again after a loss.

Per partition the store holds a *watermark*: the offset up to which it has what the log has. It is set with each batch, only if it still
exists, and compared with what was set before: gone means that the store came back empty, lower that it came back with an older state.
Either way the sink reads again from there (at most one TTL back). Kafka's committed offset follows the watermark, never leads it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from broker.log import Committed, Log, Record, TopicPartition
from broker.sink_batch import SinkBatch, slices
from broker.sink_metrics import SinkMetrics
from broker.store import Store
from schemas.errors import LogUnavailable, StoreUnavailable
from schemas.limits import Limits
from schemas.names import Names

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the sink batches, commits and waits."""

    response_ttl_ms: int = 3_600_000
    batch_records_max: int = 500
    batch_bytes_max: int = 4 << 20
    """Of one pipeline; a single larger record goes alone."""
    read_wait_ms: int = 100
    commit_interval_ms: int = 200
    check_interval_ms: int = 1_000
    """How often the store is asked whether it still has what it was given."""
    retry_ms_min: int = 50
    retry_ms_max: int = 1_000
    stalled_ms: int = 30_000
    """With records waiting and none read for so long, the process asks to be restarted."""
    limits: Limits = Limits()


class _Stopped(Exception):
    """Asked to stop while the store was away: what was not stored is not committed, and is read again by the next sink."""


class _Shard:
    """One partition of requests or responses: how far it is stored, and below which offset everything was stored once before."""

    __slots__ = ("committed", "name", "next", "seen_before", "trusted")

    def __init__(self, name: str) -> None:
        self.name = name
        self.next: int | None = None
        """The next offset to store; the watermark that the store should show."""
        self.seen_before = 0
        self.committed: int | None = None
        self.trusted = False
        """The store's watermark was compared since this partition was assigned, and since it was last found wrong."""

    def due(self) -> bool:
        """Never below what was committed before: while filling again, the watermark alone tells how far it is."""
        return self.next is not None and self.trusted and self.next >= self.seen_before and self.next != self.committed


class Sink:
    """Role. Any number may run: the group shares the partitions, and each fills its own again."""

    def __init__(
        self,
        log: Log,
        store: Store,
        names: Names,
        *,
        instance_id: str | None = None,
        settings: SinkSettings | None = None,
        registry: CollectorRegistry | None = None,
        now_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._store = store
        self._names = names
        self._settings = settings or SinkSettings()
        self._metrics = SinkMetrics(registry or CollectorRegistry())
        self._now_ms = now_ms
        self._open = lambda: log.reader(f"{names.prefix}-sink", group=names.sink_group, instance_id=instance_id)
        self._reader = self._open()
        self._shards: dict[TopicPartition, _Shard] = {}
        self._stopping = asyncio.Event()
        self._log_problem = "not connected to the log yet"
        self._commit_problem = ""
        self._committing: asyncio.Task[None] | None = None
        self._store_problem = ""
        self._store_failures = 0
        self._checked_ms = self._commit_at_ms = 0.0
        self._moved_ms = now_ms()

    def stop(self) -> None:
        self._stopping.set()

    def unready(self) -> str:
        return self._store_problem or self._log_problem or self._commit_problem

    def unhealthy(self) -> str:
        still_ms = self._now_ms() - self._moved_ms
        if still_ms < self._settings.stalled_ms or self.unready():
            return ""
        return f"nothing was read for {still_ms / 1000:.0f} s, though the log has more"

    async def run(self) -> None:
        """Serve until stopped: finish the batch at hand, commit, leave the group."""
        try:
            await self._serve()
            if self._committing is not None:
                await self._committing
            await self._commit()
        finally:
            if self._committing is not None:
                self._committing.cancel()
            await self._reader.close()

    async def _serve(self) -> None:
        try:
            await self._join()
            while not self._stopping.is_set():
                await self._bear(self._turn)
        except _Stopped:
            _log.warning("sink_stopped_without_store", problem=self._store_problem)

    async def _join(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._reader.start()
                await self._reader.subscribe([self._names.responses, self._names.requests], assigned=self._assigned, revoked=self._revoked)
            except LogUnavailable as error:
                self._log_problem = str(error)
                _log.warning("sink_log_away", problem=self._log_problem)
                await self._reader.close()
                await self._wait(self._settings.retry_ms_max)
                self._reader = self._open()
            else:
                return

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._shards[partition] = _Shard(f"{partition.topic.removeprefix(self._names.prefix + '.')}:{partition.partition}")
        self._moved_ms = self._now_ms()
        _log.info("sink_assigned", partitions=[f"{partition.topic}:{partition.partition}" for partition in partitions])

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        await self._commit()
        for partition in partitions:
            self._shards.pop(partition, None)

    async def _turn(self) -> None:
        now_ms = self._now_ms()
        if now_ms - self._checked_ms >= self._settings.check_interval_ms:
            self._checked_ms = now_ms
            await self._check()
        for partition, shard in list(self._shards.items()):
            if not shard.trusted:
                await self._verify(partition, shard, shard.next)
        records = await self._reader.read(timeout_ms=self._settings.read_wait_ms, records_max=self._settings.limits.read_records_max)
        if records:
            self._moved_ms = self._now_ms()
            await self._take(records)
        if self._now_ms() >= self._commit_at_ms and (self._committing is None or self._committing.done()):
            # Beside the reading: with no group coordinator to be found, answers still get through.
            self._committing = asyncio.create_task(self._commit(), name="sink-commit")

    # The store: nothing is dropped and nothing further is read until it has acknowledged.

    async def _take(self, records: Mapping[TopicPartition, Sequence[Record]]) -> None:
        ready: list[tuple[TopicPartition, _Shard, Sequence[Record]]] = []
        for partition, found in records.items():
            shard = self._shards.get(partition)
            # The second case is a partition that came with this very read; where it is rewound, its records come again.
            if shard is not None and (shard.trusted or await self._verify(partition, shard, found[0].offset)):
                ready.append((partition, shard, found))
        batch = SinkBatch(self._settings.response_ttl_ms, self._settings.limits, self._now_ms())
        for partition, shard, found in ready:
            if partition.topic == self._names.requests:
                batch.add_requests(found)
            else:
                batch.add_responses(found, shard.seen_before)
        await self._store_batch(batch)
        # What was revoked meanwhile is the next owner's to account for.
        stored = [(shard, found[-1].offset + 1) for partition, shard, found in ready if self._shards.get(partition) is shard]
        before = await self._persist(lambda: self._store.advance_watermarks({shard.name: following for shard, following in stored}))
        for shard, following in stored:
            await self._compare(shard, before[shard.name])
            shard.next = following
        self._report(batch)

    async def _store_batch(self, batch: SinkBatch) -> None:
        settings = self._settings
        for start in range(0, len(batch.marks), settings.batch_records_max):
            marks = batch.marks[start : start + settings.batch_records_max]
            await self._persist(lambda marks=marks: self._store.mark_pending(marks))
        self._metrics.pending.inc(len(batch.marks))
        for part in slices(batch.answers, records_max=settings.batch_records_max, bytes_max=settings.batch_bytes_max):
            answers = batch.answers[part]
            failures = self._store_failures
            kept = await self._persist(lambda answers=answers: self._store.put_responses(answers))
            # After a failure it is unknown which of them an earlier attempt kept.
            repeated = self._store_failures != failures
            for outcome, fresh, first in zip(batch.outcomes[part], batch.fresh[part], kept, strict=True):
                if not fresh:
                    self._metrics.refilled.inc(first)
                elif first or repeated:
                    self._metrics.responses[outcome].inc()
                else:
                    self._metrics.duplicates.inc()

    def _report(self, batch: SinkBatch) -> None:
        if batch.newest_ms:
            self._metrics.lag_seconds.set(max(self._now_ms() - batch.newest_ms, 0.0) / 1000)
        for reason, _ in batch.skipped:
            self._metrics.bad_records.labels(reason).inc()
        if batch.skipped:
            # One line a batch: whoever writes garbage must not fill the logs as well.
            reason, first = batch.skipped[0]
            _log.warning("sink_skipped_records", count=len(batch.skipped), reason=reason, partition=first.partition, offset=first.offset)

    async def _verify(self, partition: TopicPartition, shard: _Shard, position: int | None) -> bool:
        """Compare the store with the log up to `position`; False where the partition was rewound, to be filled again."""
        try:
            if position is None:
                position = await self._reader.position(partition)
            watermark, start = await self._refill_start(partition, shard, position)
            if start != position:
                await self._reader.seek(partition, start)
        except ValueError:
            # Not assigned any more: should it come back, it comes through _assigned, and is looked at then.
            self._shards.pop(partition, None)
            return False
        shard.seen_before = max(shard.seen_before, position, watermark or 0)
        await self._persist(lambda: self._store.set_watermark(shard.name, start))
        shard.next, shard.trusted = start, True
        if start != position:
            self._metrics.losses.inc()
            _log.warning("sink_refills", partition=shard.name, watermark=watermark, start=start, position=position)
        return start == position

    async def _refill_start(self, partition: TopicPartition, shard: _Shard, position: int) -> tuple[int | None, int]:
        """The store's watermark where it can be believed, and where to read from."""
        (watermark,) = await self._persist(lambda: self._store.watermarks([shard.name]))
        if watermark is not None and watermark > position:
            end = (await self._reader.end_offsets([partition])).get(partition, position)
            # Above the end: of a topic that was deleted since; below, stored but not committed by the last owner.
            watermark = watermark if watermark <= end else None
        if watermark is not None and watermark >= position:
            return watermark, position
        since = await self._reader.offset_at(partition, int(self._now_ms()) - self._settings.response_ttl_ms)
        return watermark, min(position, since if watermark is None else max(watermark, since))

    async def _check(self) -> None:
        """Each second: does the store still hold what it was given, and does reading keep up with the log?"""
        shards = {partition: shard for partition, shard in self._shards.items() if shard.trusted}
        if not shards:
            self._moved_ms = self._now_ms()
            await self._persist(self._store.ping)
            return
        watermarks = await self._persist(lambda: self._store.watermarks([shard.name for shard in shards.values()]))
        for shard, watermark in zip(shards.values(), watermarks, strict=True):
            await self._compare(shard, watermark)
        ends = await self._reader.end_offsets(list(shards))
        waiting = sum(max(end - (shards[partition].next or 0), 0) for partition, end in ends.items())
        self._metrics.lag_messages.set(waiting)
        if waiting == 0:
            self._moved_ms = self._now_ms()

    async def _compare(self, shard: _Shard, watermark: int | None) -> None:
        if shard.next is None or (watermark is not None and watermark >= shard.next):
            return
        shard.trusted = False
        if watermark is not None:
            # Advancing has just hidden that the store went back: say it again, in case this process dies before it is filled.
            await self._persist(lambda: self._store.set_watermark(shard.name, watermark))

    async def _persist(self, action: Callable[[], Awaitable[T]]) -> T:
        """Until the store has acknowledged. Raises _Stopped where that does not happen before the process must end."""
        delay_ms = self._settings.retry_ms_min
        while True:
            try:
                done = await action()
            except StoreUnavailable as error:
                self._metrics.store_errors.inc()
                self._store_failures += 1
                if not self._store_problem:
                    _log.warning("sink_store_away", problem=str(error))
                self._store_problem = str(error)
            else:
                if self._store_problem:
                    _log.info("sink_store_back")
                    self._store_problem, self._moved_ms = "", self._now_ms()
                return done
            if await self._wait(delay_ms):
                raise _Stopped
            delay_ms = min(delay_ms * 2, self._settings.retry_ms_max)

    # The log.

    async def _commit(self) -> None:
        """What fails is tried again later: nothing is lost, as what is not committed is stored again, and the store keeps the first."""
        self._commit_at_ms = self._now_ms() + self._settings.commit_interval_ms
        due = [(partition, shard, shard.next) for partition, shard in self._shards.items() if shard.next is not None and shard.due()]
        if not due:
            return
        try:
            await self._reader.commit({partition: Committed(following, "") for partition, _, following in due})
        except LogUnavailable as error:
            self._commit_problem = str(error)
            self._commit_at_ms = self._now_ms() + self._settings.retry_ms_max
            _log.warning("sink_commit_failed", problem=self._commit_problem)
            return
        self._commit_problem = ""
        for _, shard, following in due:
            shard.committed = following

    async def _bear(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except LogUnavailable as error:
            if not self._log_problem:
                _log.warning("sink_log_away", problem=str(error))
            self._log_problem = str(error)
            await self._wait(self._settings.retry_ms_max)
        else:
            if self._log_problem:
                self._log_problem, self._moved_ms = "", self._now_ms()

    async def _wait(self, delay_ms: float) -> bool:
        """True where the process was asked to stop meanwhile."""
        try:
            async with asyncio.timeout(delay_ms / 1000):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

"""The taps: a role that reads requests and answers like anybody else, joins them, and hands those that are sampled to one sink.

It only reads the log and writes where nothing of the data plane reads, so it can neither delay nor fail a request. The consumer group of its sink
shares out the shards of {p}.responses; a shard's requests and stage records are read by whoever has its answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from broker.log import Committed, Log, Reader, Record, TopicPartition
from broker.policy.tap_join import Exchange, TapJoin, TapJoinLimits, TapPosition
from broker.tap_metrics import TapMetrics
from broker.tap_positions import committed_position, offsets_of
from broker.tap_sinks.tap_sink import SinkUnavailable, TapBatch, TapSink
from broker.tap_sources import TapSources
from schemas.errors import LogUnavailable
from schemas.limits import Limits
from schemas.names import Names

_log = structlog.get_logger(__name__)
FETCH_WAIT_MS = 500
READ_MS = 100
EMPTY_READS_MAX = 5
"""What the log has and nobody hands out (a partition that has just gone) is left to the next turn."""


class TapSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the taps read and wait."""

    turn_ms: int = 500
    """Between turns, unless there is more than one can take: each costs a transaction for each shard, or a look at the disk."""
    turn_records_max: int = 4_000
    commit_ms: float = 5_000.0
    """A shard of which nothing was sampled says how far it is no more often than this."""
    retry_ms_min: int = 50
    retry_ms_max: int = 2_000
    reopen_ms: float = 1_000.0
    """Before a shard whose write is in doubt is taken up again; the group may give it to somebody else meanwhile."""
    stalled_ms: float = 60_000.0
    report_ms: float = 1_000.0
    joining: TapJoinLimits = TapJoinLimits()
    limits: Limits = Limits()


class _Shard:
    """A shard of ours; without a join it waits to be opened."""

    __slots__ = ("committed_ms", "join", "next", "open_at_ms")

    def __init__(self) -> None:
        self.join: TapJoin | None = None
        self.next = 0
        """The next answer to take."""
        self.open_at_ms = 0.0
        self.committed_ms = 0.0


class Taps:
    """Role. Any number may run: the group of the sink shares out the shards."""

    def __init__(
        self,
        log: Log,
        names: Names,
        sink: TapSink,
        *,
        group: str,
        metrics: TapMetrics | None = None,
        instance_id: str | None = None,
        settings: TapSettings | None = None,
        now_ms: Callable[[], float] = lambda: time.monotonic() * 1000,
    ) -> None:
        """`now_ms` measures time, it need not tell it: a clock that is set must not stop the taps."""
        client_id = f"{names.prefix}-taps"
        self._names = names
        self._sink = sink
        self._settings = settings or TapSettings()
        self._metrics = metrics or TapMetrics(CollectorRegistry())
        self._now_ms = now_ms
        self._make_reader = lambda: log.reader(client_id, group=group, instance_id=instance_id, fetch_wait_ms=FETCH_WAIT_MS)
        self._make_sources = lambda: TapSources(log, names, client_id, self._settings.limits)
        self._reader: Reader = self._make_reader()
        self._sources = self._make_sources()
        self._shards: dict[int, _Shard] = {}
        self._turning = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._problem = "not connected to the log yet"
        self._moved_ms = now_ms()
        self._reported_ms = 0.0
        self._lag_messages = 0
        self._behind = False

    def stop(self) -> None:
        self._stopping.set()

    def unready(self) -> str:
        return self._problem or self._sink.unready()

    def unhealthy(self) -> str:
        still_ms = self._now_ms() - self._moved_ms
        if not self._lag_messages or still_ms < self._settings.stalled_ms or self.unready():
            return ""
        return f"nothing was tapped for {still_ms / 1000:.0f} s, though the log has more"

    async def run(self) -> None:
        """Serve until stopped: what was taken is stored, then the group is left."""
        try:
            await self._sink.start()
            await self._join_group()
            while not self._stopping.is_set():
                await self._bear(self._turn)
            await self._bear(self._settle)
        finally:
            await self._sink.close()
            await self._reader.close()
            await self._sources.close()

    async def _join_group(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._sources.start()
                await self._reader.start()
                await self._reader.subscribe([self._names.responses], assigned=self._assigned, revoked=self._revoked)
            except LogUnavailable as error:
                self._away(error)
                await self._reader.close()
                await self._sources.close()
                await self._wait(self._settings.retry_ms_max)
                self._reader, self._sources = self._make_reader(), self._make_sources()
            else:
                return

    async def _bear(self, action: Callable[[], Coroutine[None, None, None]]) -> None:
        """Outages of the log are waited out."""
        try:
            await action()
        except LogUnavailable as error:
            self._away(error)
            await self._wait(self._settings.retry_ms_max)
        else:
            self._problem = "" if self._shards_open() else "the shards are not taken up yet"

    def _away(self, error: LogUnavailable) -> None:
        _log.warning("tap_log_away", problem=str(error))
        self._problem = str(error)

    def _shards_open(self) -> bool:
        return all(state.join is not None for state in self._shards.values())

    # The group.

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._shards = {partition.partition: _Shard() for partition in partitions}
        self._moved_ms = self._now_ms()
        _log.info("tap_assigned", shards=sorted(self._shards))

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        # Gone at once, so that a write that is tried again and again ends; then the turn under way may come to its end.
        gone, self._shards = list(self._shards), {}
        async with self._turning:
            await self._sink.release(gone)
            await self._settle()
            await self._sources.drop(gone)

    async def _open_due(self) -> None:
        """Take up shards that are ours and not open: the sink all at once, for what it has to wait for each."""
        now_ms = self._now_ms()
        due = {shard: state for shard, state in self._shards.items() if state.join is None and now_ms >= state.open_at_ms}
        opened = await asyncio.gather(*(self._opened(shard) for shard in due))
        for (shard, state), (stored, refused) in zip(due.items(), opened, strict=True):
            try:
                problem = refused or await self._take_up(shard, state, stored)
            except ValueError:
                return  # revoked meanwhile
            if problem:
                _log.warning("tap_shard_not_open", shard=shard, reason=problem)
                state.open_at_ms = now_ms + self._settings.reopen_ms

    async def _opened(self, shard: int) -> tuple[TapPosition | None, str]:
        """How far the sink knows that a shard is stored; or why it cannot have it yet."""
        try:
            return await self._sink.open(shard), ""
        except (SinkUnavailable, LogUnavailable) as error:
            return None, str(error)

    async def _take_up(self, shard: int, state: _Shard, stored: TapPosition | None) -> str:
        """Why a shard could not be taken up; else empty. Raises ValueError where it is not ours any more."""
        try:
            await self._go_on(shard, state, stored)
        except LogUnavailable as error:
            state.join = None
            return str(error)
        return ""

    async def _go_on(self, shard: int, state: _Shard, stored: TapPosition | None) -> None:
        """Go on where a shard is known to be stored."""
        at = TopicPartition(self._names.responses, shard)
        # After the sink: whoever had the shard before may still have committed until then.
        others = (self._names.requests, *self._sources.stage_topics)
        position = await committed_position(self._reader, shard, self._names.responses, others)
        if stored is not None and (position is None or stored.answers >= position.answers):
            position = stored
        end = (await self._sources.ends([at])).get(at, 0)
        if position is not None and position.answers > end:
            _log.warning("tap_log_is_another", shard=shard, stored=position.answers, end=end)
            position = None
        await self._reader.seek(at, "earliest" if position is None else position.answers_low)
        start = await self._reader.position(at)
        if position is None:
            position = TapPosition(start, start)
        state.join = TapJoin(shard, position, self._settings.joining)
        state.next = start
        await self._sources.take_up(shard, state.join, position.low)
        _log.info("tap_shard_open", shard=shard, answers=position.answers, again_from=start)

    # A turn.

    async def _turn(self) -> None:
        async with self._turning:
            await self._open_due()
        # Outside: the group's hooks run while it is read.
        answers = await self._collect()
        async with self._turning:
            if answers:
                await self._take(answers)
            await self._settle()
        await self._report()

    async def _collect(self) -> dict[int, list[Record]]:
        """Answers of open shards, up to what the log has now: once in a turn, for whoever reads each record as it comes keeps Kafka busy."""
        if not self._behind:
            await self._wait(self._settings.turn_ms)
        states = {TopicPartition(self._names.responses, shard): state for shard, state in self._shards.items() if state.join is not None}
        ends = await self._sources.ends(list(states))
        left = {partition: end for partition, end in ends.items() if end > states[partition].next}
        found: dict[int, list[Record]] = {}
        count, empty = 0, 0
        while count < self._settings.turn_records_max and empty < EMPTY_READS_MAX:
            # Also with nothing to be had: a rebalance is noticed here.
            wait_ms = READ_MS if left else 1
            read = await self._reader.read(timeout_ms=wait_ms, records_max=self._settings.turn_records_max - count)
            for partition, records in read.items():
                found.setdefault(partition.partition, []).extend(records)
                count += len(records)
                if records[-1].offset + 1 >= left.get(partition, 0):
                    left.pop(partition, None)
            if not left:
                break
            empty = 0 if read else empty + 1
        if not found:
            await self._skip_gone(left, states)
        self._behind = count >= self._settings.turn_records_max
        return found

    async def _skip_gone(self, behind: Iterable[TopicPartition], states: Mapping[TopicPartition, _Shard]) -> None:
        """Where the log has dropped answers before they were read, the reader goes on behind them by itself."""
        for partition in behind:
            try:
                at = await self._reader.position(partition)
            except ValueError:
                continue  # revoked meanwhile
            if at > states[partition].next:
                _log.warning("tap_answers_are_gone", partition=partition, next=states[partition].next, earliest=at)
                states[partition].next = at

    async def _take(self, answers: Mapping[int, Sequence[Record]]) -> None:
        joins: dict[int, TapJoin] = {}
        for shard, records in answers.items():
            state = self._shards.get(shard)
            # What does not go on where the shard stands was read under an assignment that is over.
            if state is not None and state.join is not None and records[0].offset >= state.next:
                joins[shard] = state.join
                state.join.begin(state.next, self._sources.positions(shard))

        def missing() -> bool:
            return any(join.misses(record.key, record.offset) for shard, join in joins.items() for record in answers[shard])

        try:
            await self._sources.read_for(list(joins), missing)
        except LogUnavailable:
            # The answers at hand were read and will not come again by themselves.
            self._reopen(set(joins))
            raise
        now_ms = self._moved_ms = self._now_ms()
        batches = {shard: self._batch(shard, join, answers[shard], now_ms) for shard, join in joins.items()}
        await self._store({shard: batch for shard, batch in batches.items() if batch is not None})

    def _batch(self, shard: int, join: TapJoin, records: Sequence[Record], now_ms: float) -> TapBatch | None:
        """What is to be stored of a shard; None where nothing is, and nothing need be said yet."""
        exchanges: list[Exchange] = []
        for record in records:
            exchange = join.answer(record.key, record.value, record.timestamp, record.offset)
            if exchange is not None:
                exchanges.append(exchange)
        join.forget_overdue(records[-1].timestamp, now_ms, self._settings.limits)
        state = self._shards.get(shard)
        if state is None:
            return None
        state.next = records[-1].offset + 1
        if not exchanges and now_ms - state.committed_ms < self._settings.commit_ms:
            return None
        state.committed_ms = now_ms
        return TapBatch(exchanges, join.position(state.next))

    async def _store(self, batches: dict[int, TapBatch]) -> None:
        """Until the sink has taken them: nothing further is read meanwhile, so that nothing piles up but in the log."""
        delay_ms = self._settings.retry_ms_min
        newest_ms = max((exchange.answered_ms for batch in batches.values() for exchange in batch.exchanges[-1:]), default=0)
        while batches:
            try:
                doubtful = await self._sink.write(batches)
            except SinkUnavailable as error:
                _log.warning("tap_sink_away", problem=str(error))
                if await self._wait(delay_ms):
                    return  # they were not committed: the next tap reads them again
                delay_ms = min(delay_ms * 2, self._settings.retry_ms_max)
                batches = {shard: batch for shard, batch in batches.items() if shard in self._shards}
            else:
                self._moved_ms = self._now_ms()
                if newest_ms:
                    self._metrics.newest(newest_ms)
                self._reopen(doubtful)
                return

    def _reopen(self, shards: set[int]) -> None:
        """Begin again where the log, or the sink, says that they are."""
        for shard in shards & self._shards.keys():
            self._shards[shard] = state = _Shard()
            state.open_at_ms = self._now_ms() + self._settings.reopen_ms
            self._metrics.reopened.inc()

    async def _settle(self) -> None:
        offsets: dict[TopicPartition, Committed] = {}
        for shard, position in (await self._sink.settle()).items():
            offsets |= offsets_of(shard, position, self._names.responses)
        if offsets:
            await self._reader.commit(offsets)

    async def _report(self) -> None:
        now_ms = self._now_ms()
        if now_ms - self._reported_ms < self._settings.report_ms:
            return
        self._reported_ms = now_ms
        joins = [state.join for state in self._shards.values() if state.join is not None]
        self._metrics.waiting.set(sum(join.waiting for join in joins))
        self._metrics.buffered_bytes.set(sum(join.waiting_bytes for join in joins) + self._sink.buffered_bytes())
        for join in joins:
            counts = join.counts
            for reason in counts.__struct_fields__:
                self._metrics.dropped(reason, getattr(counts, reason))
            join.counts = type(counts)()
        open_shards = {TopicPartition(self._names.responses, shard): state for shard, state in self._shards.items() if state.join is not None}
        ends = await self._sources.ends(list(open_shards))
        self._lag_messages = sum(max(end - open_shards[partition].next, 0) for partition, end in ends.items())
        self._metrics.lag_messages.set(self._lag_messages)
        if not self._lag_messages:
            self._moved_ms = now_ms

    async def _wait(self, timeout_ms: float) -> bool:
        """True as soon as the role is asked to stop."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

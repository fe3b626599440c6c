"""What the taps read beside the answers: requests, stage records and the catalog, as far as the answers at hand need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import structlog

from broker.arrivals import read_stage
from broker.log import Log, Reader, Record, Start, TopicPartition
from broker.policy.tap_join import TapJoin, TappedStage
from broker.policy.tap_sampling import ceiling
from schemas.catalog import Catalog
from schemas.errors import Unattributable
from schemas.limits import Limits
from schemas.names import Names
from schemas.request import request_id_of
from schemas.tap import EVERY_STAGE

_log = structlog.get_logger(__name__)
READ_MS, CATALOG_WAIT_MS = 100, 500
READ_RECORDS_MAX = 5_000


class TapSources:
    """Reads without a group: the shards of the answers decide what is read. No clock tells what belongs together, only offsets do."""

    def __init__(self, log: Log, names: Names, client_id: str, limits: Limits) -> None:
        self._log = log
        self._names = names
        self._limits = limits
        self._reader: Reader = log.reader(f"{client_id}-sources", fetch_wait_ms=READ_MS)
        self._control: Reader = log.reader(f"{client_id}-catalog", fetch_wait_ms=CATALOG_WAIT_MS)
        # A broker answers one request of a connection at a time: where a fetch waits for records, a question waits for that fetch.
        self._asking: Reader = log.reader(f"{client_id}-ends")
        self._catalog_at = TopicPartition(names.catalog, 0)
        self._catalog = Catalog()
        self._joins: dict[int, TapJoin] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._begun: dict[TopicPartition, int] = {}
        """Positions at the beginning of the last reading."""
        self._early: list[tuple[TapJoin, bytes, TappedStage]] = []
        """Stage records whose requests were not read yet; in the next reading they are."""
        self.stage_topics: tuple[str, ...] = ()
        self.ceiling = 0.0

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    async def start(self) -> None:
        """Read the catalog up to its present end. Raises LogUnavailable."""
        await self._reader.start()
        await self._asking.start()
        await self._control.start()
        await self._control.assign({self._catalog_at: "earliest"})
        await self.follow_catalog()

    async def close(self) -> None:
        """Stop reading."""
        await self._reader.close()
        await self._control.close()
        await self._asking.close()

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Ends of the log as they are now. Raises LogUnavailable."""
        return await self._asking.end_offsets(partitions)

    async def follow_catalog(self) -> None:
        """Up to its end as it is now. Whatever was read before this call was written under a catalog no newer than that."""
        end = (await self.ends([self._catalog_at]))[self._catalog_at]
        changed = False
        while await self._control.position(self._catalog_at) < end:
            for records in (await self._control.read(timeout_ms=READ_MS, records_max=READ_RECORDS_MAX)).values():
                for record in records:
                    changed = self._take_catalog(record) or changed
        if changed:
            await self._catalog_changed()

    def _take_catalog(self, record: Record) -> bool:
        try:
            return self._catalog.apply(record.key or b"", record.value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("tap_catalog_record_skipped", offset=record.offset, error=str(error))
            return False

    async def _catalog_changed(self) -> None:
        self.ceiling = ceiling(self._catalog.endpoints)
        for join in self._joins.values():
            self._equip(join)
        topics = await self._wanted_stages()
        if topics != self.stage_topics:
            self.stage_topics = topics
            if self._joins:
                await self._assign({})

    def _equip(self, join: TapJoin) -> None:
        join.endpoints, join.ceiling = self._catalog.endpoints, self.ceiling

    async def _wanted_stages(self) -> tuple[str, ...]:
        wanted: list[str] = []
        for endpoint in self._catalog.endpoints.values():
            if endpoint.taps is None or not endpoint.taps.stages or endpoint.graph is None:
                continue
            beginning = self._names.stage(endpoint.name, "")
            there = await self._log.topics(beginning)
            asked = {beginning + stage.replace("/", ".") for stage in endpoint.taps.stages}
            every = EVERY_STAGE in endpoint.taps.stages
            wanted += [topic for topic in there if every or topic in asked]
        return tuple(sorted(wanted))

    async def take_up(self, shard: int, join: TapJoin, low: Mapping[str, int]) -> None:
        """Read a shard from these offsets, by topic; from the beginning where none is stated."""
        self._equip(join)
        self._joins[shard] = join
        for partition in self._partitions(shard):
            self._positions.pop(partition, None)
            self._begun.pop(partition, None)
        await self._assign({TopicPartition(topic, shard): offset for topic, offset in low.items()})

    async def drop(self, shards: Sequence[int]) -> None:
        """Read these no more."""
        for shard in shards:
            self._joins.pop(shard, None)
        await self._assign({})

    def _partitions(self, shard: int) -> list[TopicPartition]:
        return [TopicPartition(topic, shard) for topic in (self._names.requests, *self.stage_topics)]

    async def _assign(self, stated: Mapping[TopicPartition, int]) -> None:
        wanted = [partition for shard in self._joins for partition in self._partitions(shard)]
        known = {partition: stated.get(partition, self._positions.get(partition)) for partition in wanted}
        starts: dict[TopicPartition, Start] = {partition: "earliest" if offset is None else offset for partition, offset in known.items()}
        await self._reader.assign(starts)
        for partition, start in starts.items():
            if start == "earliest":  # said again: what the reader has read before, it would go on from
                await self._reader.seek(partition, start)
        self._positions = {partition: await self._reader.position(partition) for partition in wanted}

    def positions(self, shard: int) -> dict[str, int]:
        """From where a restart reads for requests that come now, by topic: stage records may have been read one reading before their requests."""
        found = {partition.topic: self._positions[partition] for partition in self._partitions(shard) if partition in self._positions}
        return {topic: at if topic == self._names.requests else self._begun.get(TopicPartition(topic, shard), at) for topic, at in found.items()}

    async def read_for(self, shards: Sequence[int], missing: Callable[[], bool]) -> None:
        """Read until nothing is missing, or until the ends as they are now: an answer's request was written before the answer was.

        With stage topics, all is read to the ends: no answer says which stage records it comes after. Raises LogUnavailable.
        """
        await self.follow_catalog()
        self._begun = dict(self._positions)
        wanted = [partition for shard in shards if shard in self._joins for partition in self._partitions(shard)]
        ends = await self.ends(wanted)
        stages: list[tuple[TapJoin, bytes, TappedStage]] = []
        while (self.stage_topics or missing()) and self._behind(ends):
            found = await self._reader.read(timeout_ms=READ_MS, records_max=READ_RECORDS_MAX)
            if not found:
                await self._follow_reader(ends)
            # What was just read may have come under a newer catalog.
            await self.follow_catalog()
            for partition, records in found.items():
                join = self._joins.get(partition.partition)
                if join is not None and partition in self._positions:
                    self._take(join, partition, records, stages)
                    self._positions[partition] = records[-1].offset + 1
        for join, key, stage in self._early:
            join.stage(key, stage)
        self._early = [each for each in stages if not each[0].stage(*each[1:])]

    async def _follow_reader(self, partitions: Iterable[TopicPartition]) -> None:
        """Where the log has dropped what was to be read, the reader goes on behind that by itself."""
        for partition in partitions:
            if partition in self._positions:
                self._positions[partition] = max(self._positions[partition], await self._reader.position(partition))

    def _behind(self, ends: Mapping[TopicPartition, int]) -> bool:
        # A partition that has left the assignment meanwhile is nobody's to wait for here.
        return any(self._positions.get(partition, end) < end for partition, end in ends.items())

    def _take(self, join: TapJoin, partition: TopicPartition, records: Sequence[Record], stages: list[tuple[TapJoin, bytes, TappedStage]]) -> None:
        if partition.topic != self._names.requests:
            for record in records:
                stage = read_stage(record)
                if stage is not None and record.key is not None:
                    stages.append((join, record.key, TappedStage(stage, record.value or b"", record.timestamp)))
            return
        for record in records:
            key = record.key
            if key is None or not 0 < len(key) <= self._limits.request_id_bytes_max:
                try:
                    key = request_id_of(key, record.value, record.headers, self._limits).encode()
                except Unattributable:
                    continue  # a dead letter: it gets no answer
            join.ask(key, record.value, record.headers, record.timestamp)

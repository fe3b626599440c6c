"""Reads Kafka: positions are ours, rebalances run the caller's hooks, and a consumer that broke or fell silent is replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog

from broker.kafka_client import Connection
from broker.kafka_consumer import Consumer, GroupOffsets, Membership, PositionLost
from broker.log import Assigned, Committed, Record, Start, TopicPartition
from schemas.errors import LogUnavailable

_log = structlog.get_logger()
METADATA_BYTES_MAX = 4_096
SILENT_MS_MAX = 30_000
"""No broker answered a fetch for so long: the consumer is replaced."""
WARN_AFTER_SILENT_MS = 5_000


class KafkaReader:
    """The Reader protocol. Partitions that stay in an assignment keep their position, unless an offset is given for them."""

    def __init__(self, connection: Connection, client_id: str, *, fetch_wait_ms: int, membership: Membership | None) -> None:
        self._connection = connection
        self._client_id = client_id
        self._fetch_wait_ms = fetch_wait_ms
        self._membership = membership
        self._consumer: Consumer | None = None
        self._offsets = GroupOffsets(connection, client_id, membership.group) if membership is not None else None
        self._positions: dict[TopicPartition, int] = {}
        self._topics: Sequence[str] = ()
        self._hooks: tuple[Assigned, Assigned] | None = None
        self._hook_error: Exception | None = None
        self._settled = asyncio.Event()
        self._broken = False
        self._closed = False
        self._listening_since_ms = 0.0
        self._looked_at = 0.0

    async def start(self) -> None:
        await self._open(member=False)

    async def assign(self, positions: Mapping[TopicPartition, Start]) -> None:
        if self._hooks is not None:
            raise ValueError("the reader has subscribed: its group assigns")
        wanted: dict[TopicPartition, int] = {}
        for start in ("earliest", "latest"):
            unknown = [p for p, at in positions.items() if at == start and p not in self._positions]
            if unknown:
                wanted |= await self._resolve(unknown, start)
        for partition, at in positions.items():
            wanted.setdefault(partition, at if isinstance(at, int) else self._positions.get(partition, 0))
        self._positions = wanted
        self._listening_since_ms = time.time() * 1000
        self._opened().assign(wanted)
        self._settled.set()

    async def subscribe(self, topics: Sequence[str], *, assigned: Assigned, revoked: Assigned) -> None:
        if self._membership is None:
            raise ValueError("a reader needs a group to subscribe")
        self._topics, self._hooks = tuple(topics), (assigned, revoked)
        self._settled.clear()
        await self._reopen()

    async def seek(self, partition: TopicPartition, start: Start) -> None:
        offset = start if isinstance(start, int) else (await self._resolve([partition], start))[partition]
        self._opened().seek(partition, offset)
        self._positions[partition] = offset

    async def read(self, *, timeout_ms: int, records_max: int) -> Mapping[TopicPartition, Sequence[Record]]:
        if self._hook_error is not None:
            error, self._hook_error = self._hook_error, None
            raise error
        if self._broken:
            await self._reopen()
        if not self._settled.is_set():
            await self._wait_until_settled(timeout_ms)
            return {}
        try:
            found = await self._opened().fetched(timeout_ms, records_max)
        except PositionLost as lost:
            await self._continue_at_earliest(lost)
            return {}
        except LogUnavailable:
            self._broken = True
            raise
        if found:
            for partition, records in found.items():
                self._positions[partition] = records[-1].offset + 1
        elif not self._closed:
            self._notice_silence()
        return found

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        store = self._group_offsets()
        for partition, at in offsets.items():
            if len(at.metadata.encode()) > METADATA_BYTES_MAX:
                raise ValueError(f"the commit metadata of {partition} is over {METADATA_BYTES_MAX} bytes")
        if self._hooks is None:
            mine = {p: at for p, at in offsets.items() if p in self._positions}
        else:
            assignment = self._opened().assignment()
            mine = {p: at for p, at in offsets.items() if p in assignment or p.topic not in self._topics}
        if mine and self._hooks is None:
            await store.commit(mine)
        elif mine:
            await self._opened().commit(mine)

    async def committed(self, partition: TopicPartition) -> Committed | None:
        return (await self._group_offsets().fetch([partition])).get(partition)

    async def committed_all(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        return await self._group_offsets().fetch(partitions) if partitions else {}

    async def position(self, partition: TopicPartition) -> int:
        if self._hooks is not None:
            return await self._opened().position(partition)
        if partition not in self._positions:
            raise ValueError(f"{partition} is not assigned")
        return self._positions[partition]

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return await self._opened().ends(partitions) if partitions else {}

    async def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        offset = await self._opened().offset_at(partition, timestamp_ms)
        return offset if offset is not None else (await self.end_offsets([partition]))[partition]

    async def close(self) -> None:
        """Leave the group (a static member stays in it for its session time-out)."""
        self._closed = True
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()
        if self._offsets is not None:
            await self._offsets.close()

    def _opened(self) -> Consumer:
        if self._consumer is None:
            raise LogUnavailable("the reader is not open")
        return self._consumer

    def _group_offsets(self) -> GroupOffsets:
        if self._offsets is None:
            raise ValueError("a reader needs a group to commit")
        return self._offsets

    async def _open(self, *, member: bool) -> None:
        consumer = Consumer(self._connection, self._client_id, self._fetch_wait_ms, self._membership if member else None)
        await consumer.start()
        if self._closed:
            await consumer.close()
            raise LogUnavailable("the reader was closed")
        self._consumer = consumer
        self._listening_since_ms = time.time() * 1000
        self._broken = False

    async def _reopen(self) -> None:
        """Raises LogUnavailable, and tries again at the next read."""
        self._broken = True
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()
        await self._open(member=self._hooks is not None)
        if self._hooks is not None:
            self._settled.clear()
            self._opened().subscribe(self._topics, revoked=self._on_revoked, assigned=self._on_assigned)
        elif self._positions:
            self._opened().assign(self._positions)

    async def _resolve(self, partitions: Sequence[TopicPartition], start: Start) -> dict[TopicPartition, int]:
        consumer = self._opened()
        return await (consumer.beginnings(partitions) if start == "earliest" else consumer.ends(partitions))

    async def _wait_until_settled(self, timeout_ms: int) -> None:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._settled.wait()
        except TimeoutError:
            if self._hooks is not None and not self._closed:
                self._notice_silence()

    async def _continue_at_earliest(self, lost: PositionLost) -> None:
        beginnings = await self._opened().beginnings(list(lost.positions))
        for partition, offset in beginnings.items():
            if lost.positions[partition] is not None:
                _log.warning("records are gone before they were read", partition=partition, position=lost.positions[partition], earliest=offset)
            if partition in self._opened().assignment():
                self._opened().seek(partition, offset)
                self._positions[partition] = offset

    def _notice_silence(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < 1.0:
            return
        self._looked_at = now
        silent_ms = self._opened().silent_ms(self._listening_since_ms)
        if silent_ms > SILENT_MS_MAX:
            self._broken = True
            raise LogUnavailable(f"no broker has answered a fetch for {silent_ms:.0f} ms")
        if silent_ms > WARN_AFTER_SILENT_MS:
            _log.warning("no broker answers", client=self._client_id, silent_ms=round(silent_ms))

    async def _on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._settled.clear()
        if self._hooks is not None and partitions:
            await self._run_hook(self._hooks[1], partitions)

    async def _on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing is fetched before the hook has run; it may seek."""
        consumer, hooks, store = self._consumer, self._hooks, self._offsets
        if consumer is None or hooks is None or store is None:
            return
        consumer.hold(partitions)
        try:
            await self._take_up_positions(consumer, store, partitions)
            await self._run_hook(hooks[0], partitions)
        finally:
            consumer.release(partitions)
        self._listening_since_ms = time.time() * 1000
        self._settled.set()

    async def _take_up_positions(self, consumer: Consumer, store: GroupOffsets, partitions: Sequence[TopicPartition]) -> None:
        self._positions = {}
        try:
            starts = {p: at.offset for p, at in (await store.fetch(partitions)).items()} if partitions else {}
            fresh = [p for p in partitions if p not in starts]
            starts |= await consumer.beginnings(fresh) if fresh else {}
        except LogUnavailable as error:  # the consumer looks them up by itself, and read() finds those that have none
            _log.warning("positions are taken up later", client=self._client_id, reason=str(error))
            return
        for partition, offset in starts.items():
            consumer.seek(partition, offset)
        self._positions = starts

    async def _run_hook(self, hook: Assigned, partitions: Sequence[TopicPartition]) -> None:
        try:
            await hook(partitions)
        except Exception as error:  # whatever it is: aiokafka would only log it, the next read() raises it to the owner
            self._hook_error = error

"""The log in one process: the same partitions, offsets, groups, commits and clocks as Kafka's, kept in memory; embedded mode runs on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from broker.log import Ack, Assigned, Committed, Message, Record, Start, TopicPartition
from broker.memory_group import Member, MemoryGroup
from broker.memory_partition import MemoryPartition
from schemas.errors import LogUnavailable, TooLarge
from schemas.names import TopicSpec

METADATA_BYTES_MAX = 4_096
_log = structlog.get_logger()


class MemoryLog:
    """The Log protocol in memory; everything that is made from it has to live on one event loop."""

    def __init__(self, now_ms: Callable[[], float] = lambda: time.time() * 1000, *, session_timeout_ms: int = 6_000) -> None:
        self._now_ms = now_ms
        self._session_timeout_ms = session_timeout_ms
        self._topics: dict[str, list[MemoryPartition]] = {}
        self._groups: dict[str, MemoryGroup] = {}
        self._made: list[MemoryReader | MemoryWriter] = []

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        fresh = [spec for spec in topics if spec.name not in self._topics]
        for spec in fresh:
            self._topics[spec.name] = [MemoryPartition(spec.name, number, spec.config, self._now_ms) for number in range(spec.partitions)]
        self._tell_groups([spec.name for spec in fresh])

    async def configure_topics(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        """Nothing: what is kept here ends with the process, and is bounded otherwise."""

    async def delete_topics(self, topics: Sequence[str]) -> None:
        gone = [topic for topic in topics if self._topics.pop(topic, None) is not None]
        self._tell_groups(gone)

    async def topics(self, beginning: str) -> list[str]:
        return sorted(name for name in self._topics if name.startswith(beginning))

    async def groups(self, beginning: str) -> list[str]:
        return sorted(name for name, group in self._groups.items() if group.exists and name.startswith(beginning))

    async def partitions(self, topic: str) -> int:
        return self.count(topic)

    def writer(self, client_id: str) -> MemoryWriter:
        writer = MemoryWriter(self)
        self._made.append(writer)
        return writer

    def reader(self, client_id: str, *, group: str | None = None, instance_id: str | None = None, fetch_wait_ms: int = 100) -> MemoryReader:
        joined = None
        if group is not None:
            joined = self._groups.setdefault(group, MemoryGroup(self.count, self._session_timeout_ms))
        reader = MemoryReader(self, joined, instance_id)
        self._made.append(reader)
        return reader

    async def close(self) -> None:
        for made in list(self._made):
            await made.close()
        for group in self._groups.values():
            group.close()
        self._made.clear()

    def count(self, topic: str) -> int:
        return len(self._topics.get(topic, ()))

    def find(self, topic: str, partition: int) -> MemoryPartition | None:
        partitions = self._topics.get(topic, ())
        return partitions[partition] if 0 <= partition < len(partitions) else None

    def forget(self, made: MemoryReader | MemoryWriter) -> None:
        if made in self._made:
            self._made.remove(made)

    def _tell_groups(self, topics: Sequence[str]) -> None:
        for group in self._groups.values():
            if group.concerns(topics):
                group.rebalance()


class MemoryWriter:
    """The Writer protocol in memory: a record can be read before the call returns."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def write(self, topic: str, partition: int, messages: Sequence[Message]) -> asyncio.Future[Ack]:
        loop = self._loop
        if loop is None:
            return _failed(LogUnavailable("the writer is not open"))
        found = self._log.find(topic, partition)
        if found is None:
            return _failed(LogUnavailable(f"topic {topic} has no partition {partition}"))
        future: asyncio.Future[Ack] = loop.create_future()
        try:
            future.set_result(found.append(messages) if messages else Ack(-1, -1))
        except (TooLarge, LogUnavailable) as error:
            future.set_exception(error)
        return future

    async def close(self) -> None:
        self._loop = None
        self._log.forget(self)


class MemoryReader:
    """The Reader protocol in memory. Partitions that stay in an assignment keep their position, unless an offset is given for them."""

    def __init__(self, log: MemoryLog, group: MemoryGroup | None, instance_id: str | None) -> None:
        self._log = log
        self._group = group
        self._instance_id = instance_id
        self._member: Member | None = None
        self._hooks: tuple[Assigned, Assigned] | None = None
        self._error: Exception | None = None
        self._partitions: dict[TopicPartition, MemoryPartition] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._subscribed: tuple[str, ...] = ()
        self._turn = 0
        self._settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._waited = False
        self._open = False

    async def start(self) -> None:
        self._open = True

    async def assign(self, positions: Mapping[TopicPartition, Start]) -> None:
        self._check_open()
        if self._hooks is not None:
            raise ValueError("the reader has subscribed: its group assigns")
        wanted = {p: self._positions[p] if p in self._positions and not isinstance(at, int) else self._resolve(p, at) for p, at in positions.items()}
        self._hold(wanted)
        self._settled = True
        self.wake()

    async def subscribe(self, topics: Sequence[str], *, assigned: Assigned, revoked: Assigned) -> None:
        self._check_open()
        if self._group is None:
            raise ValueError("a reader needs a group to subscribe")
        self._hold({})
        self._settled = False
        self._hooks, self._subscribed = (assigned, revoked), tuple(topics)
        if self._member is not None:
            self._group.leave(self._member, self, static=False)
        self._member = self._group.join(self, topics, self._instance_id)

    async def seek(self, partition: TopicPartition, start: Start) -> None:
        self._check_assigned(partition)
        self._positions[partition] = self._resolve(partition, start)
        self.wake()

    async def read(self, *, timeout_ms: int, records_max: int) -> Mapping[TopicPartition, Sequence[Record]]:
        self._check_open()
        found = self._take(records_max)
        if not found and timeout_ms > 0:
            loop = asyncio.get_running_loop()
            self._waited = False
            timer = loop.call_later(timeout_ms / 1000, self._stop_waiting)
            try:
                while not found and not self._waited:
                    self._waiter = loop.create_future()
                    await self._waiter
                    found = self._take(records_max)
            finally:
                timer.cancel()
                self._waiter = None
        return found

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        store = self._offsets()
        for partition, at in offsets.items():
            if len(at.metadata.encode()) > METADATA_BYTES_MAX:
                raise ValueError(f"the commit metadata of {partition} is over {METADATA_BYTES_MAX} bytes")
        subscribed = self._subscribed
        store.update({p: Committed(*at) for p, at in offsets.items() if p in self._positions or (subscribed and p.topic not in subscribed)})

    async def committed(self, partition: TopicPartition) -> Committed | None:
        return self._offsets().get(partition)

    async def committed_all(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        return {partition: self._offsets()[partition] for partition in partitions if partition in self._offsets()}

    async def position(self, partition: TopicPartition) -> int:
        self._check_assigned(partition)
        return self._positions[partition]

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {partition: self._find(partition).end for partition in partitions}

    async def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        return self._find(partition).offset_at(timestamp_ms)

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._hold({})
        if self._member is not None and self._group is not None:
            self._group.leave(self._member, self, static=self._instance_id is not None)
            self._member = None
        self._log.forget(self)
        self._stop_waiting()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _stop_waiting(self) -> None:
        self._waited = True
        self.wake()

    async def give_up(self) -> None:
        """See Participant."""
        held = sorted(self._positions)
        self._settled = False
        if self._hooks is not None and held:
            await self._run_hook(self._hooks[1], held)
        self._hold({})

    async def take_over(self, partitions: Sequence[TopicPartition]) -> None:
        """See Participant: positions are there when the hook runs, records only after it."""
        if not self._open or self._hooks is None:
            return
        stored = self._offsets()
        self._hold({p: stored[p].offset if p in stored else self._find(p).start for p in partitions})
        await self._run_hook(self._hooks[0], partitions)
        self._settled = True
        self.wake()

    def fence(self) -> None:
        """See Participant."""
        self._error = LogUnavailable("another member of the group has the same instance id")
        self._hold({})
        self.wake()

    def _take(self, records_max: int) -> dict[TopicPartition, Sequence[Record]]:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        found: dict[TopicPartition, Sequence[Record]] = {}
        if not self._settled:
            return found
        turns = list(self._partitions.items())
        if turns:
            self._turn = (self._turn + 1) % len(turns)  # a busy partition must not starve those behind it
            turns = turns[self._turn :] + turns[: self._turn]
        for key, partition in turns:
            position = self._positions[key]
            if position == partition.end:
                continue
            if not partition.start <= position <= partition.end:
                _log.warning("records are gone before they were read", partition=key, position=position, earliest=partition.start)
                position = partition.start
            records = partition.read(position, records_max)
            self._positions[key] = records[-1].offset + 1 if records else partition.end
            if records:
                found[key] = records
                records_max -= len(records)
                if records_max <= 0:
                    break
        return found

    def _hold(self, positions: Mapping[TopicPartition, int]) -> None:
        for partition in self._partitions.values():
            partition.readers.discard(self)
        self._positions = dict(positions)
        self._partitions = {key: self._find(key) for key in positions}
        for partition in self._partitions.values():
            partition.readers.add(self)

    def _resolve(self, partition: TopicPartition, start: Start) -> int:
        found = self._find(partition)
        if isinstance(start, int):
            return start
        return found.start if start == "earliest" else found.end

    async def _run_hook(self, hook: Assigned, partitions: Iterable[TopicPartition]) -> None:
        try:
            await hook(list(partitions))
        except Exception as error:  # whatever it is: the next read() raises it to the owner, the other members go on
            self._error = error

    def _find(self, partition: TopicPartition) -> MemoryPartition:
        found = self._log.find(partition.topic, partition.partition)
        if found is None:
            raise LogUnavailable(f"topic {partition.topic} has no partition {partition.partition}")
        return found

    def _offsets(self) -> dict[TopicPartition, Committed]:
        if self._group is None:
            raise ValueError("a reader needs a group to commit")
        return self._group.offsets

    def _check_open(self) -> None:
        if not self._open:
            raise LogUnavailable("the reader is not open")

    def _check_assigned(self, partition: TopicPartition) -> None:
        if partition not in self._positions:
            raise ValueError(f"{partition} is not assigned")


def _failed(error: LogUnavailable) -> asyncio.Future[Ack]:
    future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future

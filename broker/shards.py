"""Whole shards follow the group's assignment of {p}.requests: watermark restored, terminal records read again, commits with metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress

import structlog

from broker.log import Committed, Log, Record, TopicPartition
from broker.policy.events import Event, ShardAssigned, ShardRevoked
from broker.policy.watermark import Watermark, restore
from schemas.names import Names

logger = structlog.get_logger()
Records = dict[TopicPartition, Sequence[Record]]


class Shards:
    """The two readers of a dispatcher: the group decides on {p}.requests, {p}.responses follows by hand."""

    def __init__(self, log: Log, names: Names, name: str, *, step: Callable[[Event], None], commit: Callable[[], Awaitable[None]]) -> None:
        self._names, self._step, self._commit_now = names, step, commit
        self._requests = log.reader(name, group=names.dispatchers_group, instance_id=name)
        self._responses = log.reader(f"{name}-responses")
        self._owned: set[int] = set()
        self._recovering: dict[int, dict[TopicPartition, int]] = {}
        """Ends of the shard's responses and stage topics when it became ours."""
        self._stages: frozenset[str] = frozenset()
        self._commits: dict[int, tuple[int, str]] = {}
        self._stage_read: dict[TopicPartition, int] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Connect."""
        await self._responses.start()
        await self._requests.start()

    async def join(self) -> None:
        """Join the group."""
        await self._requests.subscribe([self._names.requests], assigned=self._assigned, revoked=self._revoked)

    async def read_requests(self, timeout_ms: int, records_max: int) -> Records:
        """Raises LogUnavailable."""
        return dict(await self._requests.read(timeout_ms=timeout_ms, records_max=records_max))

    async def read_responses(self, timeout_ms: int, records_max: int) -> Records:
        """Raises LogUnavailable."""
        if not self._owned:
            await asyncio.sleep(timeout_ms / 1000.0)
            return {}
        found = dict(await self._responses.read(timeout_ms=timeout_ms, records_max=records_max))
        for partition, records in found.items():
            if partition.topic in self._stages:
                self._stage_read[partition] = records[-1].offset + 1
        return found

    async def recovered(self) -> list[int]:
        """Shards whose old terminal records have all been read by now."""
        done: list[int] = []
        for shard in list(self._recovering):
            async with self._changing:
                ends = self._recovering.get(shard)
                if ends is not None and all([await self._responses.position(partition) >= end for partition, end in ends.items()]):
                    del self._recovering[shard]
                    done.append(shard)
        return done

    async def follow(self, stages: Collection[str]) -> None:
        """Read these stage topics, and no others, beside the responses of our shards: from now on for those that are new. Raises LogUnavailable."""
        wanted = frozenset(stages)
        if wanted == self._stages:
            return
        async with self._changing:
            new = [TopicPartition(topic, shard) for topic in wanted - self._stages for shard in self._owned]
            # Whatever a worker wrote to a new stage topic answers an order that came after the graph: its beginning is early enough.
            starts = dict(zip(new, await asyncio.gather(*(self._responses.offset_at(partition, 0) for partition in new)), strict=True))
            self._stages = wanted
            await self._responses.assign(await self._positions() | starts)

    async def _positions(self) -> dict[TopicPartition, int]:
        """Of all that is read now and still wanted."""
        wanted = [partition for shard in self._owned for partition in self._of(shard)]
        found: dict[TopicPartition, int] = {}
        for partition in wanted:
            with suppress(ValueError):  # not read yet
                found[partition] = await self._responses.position(partition)
        return found

    async def commit(self, commits: Mapping[int, tuple[int, str]]) -> None:
        """Commit what changed. Raises LogUnavailable."""
        changed = {shard: commit for shard, commit in commits.items() if self._commits.get(shard) != commit and shard in self._owned}
        if not changed:
            return
        await self._requests.commit({self._requests_of(shard): Committed(*commit) for shard, commit in changed.items()})
        self._commits.update(changed)

    async def commit_stages(self) -> None:
        """Commit how far the stage topics were read, so that lag tools see it: recovery never depends on it. Raises LogUnavailable."""
        # Not of topics that nobody needs any more: they may be gone, and Kafka would be asked about them until the time is over.
        read = {partition: Committed(offset, "") for partition, offset in self._stage_read.items() if partition.topic in self._stages}
        self._stage_read = {}
        if read:
            await self._requests.commit(read)

    async def close(self) -> None:
        """Leave."""
        await self._requests.close()
        await self._responses.close()

    def _requests_of(self, shard: int) -> TopicPartition:
        return TopicPartition(self._names.requests, shard)

    def _responses_of(self, shard: int) -> TopicPartition:
        return TopicPartition(self._names.responses, shard)

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """A rebalance begins. What is ours stays in memory: it is given up only where the new assignment says so."""
        await self._commit_now()

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """The whole new assignment. Shards that stay go on from memory, although the group's position falls back to the commit."""
        now_ours = {partition.partition for partition in partitions}
        async with self._changing:
            lost, new = self._owned - now_ours, now_ours - self._owned
            for shard in lost:
                self._owned.discard(shard)
                self._recovering.pop(shard, None)
                self._commits.pop(shard, None)
                self._step(ShardRevoked(shard))
            positions = await self._positions()
            ends = await self._responses.end_offsets([partition for shard in new for partition in self._of(shard)])
            # Side by side: each question waits for the long poll that is under way, and the next poll would be under way for the next question.
            for shard, watermark, starts in await asyncio.gather(*(self._restored(shard) for shard in sorted(new))):
                positions |= starts
                self._recovering[shard] = {partition: ends[partition] for partition in starts}
                self._owned.add(shard)
                self._step(ShardAssigned(shard, watermark))
            await self._responses.assign(positions)
        logger.info("shards assigned", owned=sorted(self._owned), new=sorted(new), lost=sorted(lost))

    async def _restored(self, shard: int) -> tuple[int, Watermark, dict[TopicPartition, int]]:
        """(shard, its watermark, the offsets from which its terminal and stage records are read again)."""
        committed = await self._requests.committed(self._requests_of(shard))
        if committed is None:
            watermark, since_ms = Watermark(await self._requests.offset_at(self._requests_of(shard), 0)), 0
        else:
            watermark, since_ms = restore(committed.offset, committed.metadata)
        partitions = self._of(shard)
        offsets = await asyncio.gather(*(self._responses.offset_at(partition, since_ms) for partition in partitions))
        return shard, watermark, dict(zip(partitions, offsets, strict=True))

    def _of(self, shard: int) -> list[TopicPartition]:
        """What is read of a shard beside its requests."""
        return [self._responses_of(shard), *(TopicPartition(topic, shard) for topic in sorted(self._stages))]

"""Lag as Kafka's own tools have it: log end minus committed offset, of dispatchers, sink, workers and taps, asked of Kafka itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence

import msgspec

from broker.log import Log, Reader, TopicPartition
from schemas.catalog import Catalog
from schemas.names import ACCELERATORS, Names

LIST_S = 30.0
"""Between two looks at which stage topics there are."""


class PartitionLag(msgspec.Struct, frozen=True, kw_only=True):
    """Lag of one group on one partition; `committed` None: nothing was committed yet, and everything that is there counts."""

    group: str
    topic: str
    partition: int
    end: int
    committed: int | None
    lag_messages: int


class LagReader:
    """Asks for all of a group's offsets at once; its clients stay open between questions."""

    def __init__(self, log: Log, names: Names, client_id: str) -> None:
        self._log, self._names = log, names
        self._client_id = client_id
        self._readers: dict[str, Reader] = {}
        self._ends: Reader | None = None
        self._partitions: dict[str, int] = {}
        self._named: dict[str, list[TopicPartition]] = {}
        self._stages: list[str] = []
        self._listed_s = float("-inf")

    async def read_all(self) -> list[PartitionLag]:
        """Of dispatchers, sink, all workers and all taps whose group has a name of this prefix. Raises LogUnavailable."""
        both = [self._names.responses, self._names.requests]
        taps = self._names.taps_group()
        tapped = [group for group in await self._log.groups(taps) if group == taps or group.startswith(f"{taps}.")]
        groups = {self._names.sink_group: both} | await self._groups(ACCELERATORS) | dict.fromkeys(tapped, both)
        found = await self._read(groups)
        # A tap says where it reads requests from once it has taken one: before that they are not behind, but of no concern.
        return [lag for lag in found if lag.group not in tapped or lag.committed is not None or lag.topic != self._names.requests]

    async def read(self, accelerators: Collection[str]) -> list[PartitionLag]:
        """Of dispatchers, and of workers of these classes. Raises LogUnavailable."""
        return await self._read(await self._groups(accelerators))

    async def _groups(self, accelerators: Collection[str]) -> dict[str, list[str]]:
        if time.monotonic() - self._listed_s > LIST_S:
            self._stages, self._listed_s = await self._log.topics(self._names.stages), time.monotonic()
        groups = {self._names.dispatchers_group: [self._names.requests, *self._stages]}
        return groups | {self._names.workers_group(name): [self._names.work(name)] for name in ACCELERATORS if name in accelerators}

    async def _read(self, groups: Mapping[str, Sequence[str]]) -> list[PartitionLag]:
        wanted = {group: await self._all_partitions(topics) for group, topics in groups.items()}
        if self._ends is None:
            self._ends = await self._opened(None)
        every = [partition for partitions in wanted.values() for partition in partitions]
        # Commits first: what is committed in between is behind an end that is asked for later, never before it.
        committed = await asyncio.gather(*[self._committed(group, partitions) for group, partitions in wanted.items()])
        ends = await self._ends.end_offsets(every)
        found: list[PartitionLag] = []
        for (group, partitions), offsets in zip(wanted.items(), committed, strict=True):
            found += [await self._lag(group, partition, ends[partition], offsets.get(partition)) for partition in partitions]
        return found

    def grown(self, topic: str, partitions: int) -> None:
        """The topic has so many partitions by now: they are not asked for again otherwise."""
        self._partitions[topic] = max(partitions, self._partitions.get(topic, 0))

    async def close(self) -> None:
        """Close all clients."""
        readers = [*self._readers.values(), *([self._ends] if self._ends is not None else [])]
        self._readers, self._ends = {}, None
        await asyncio.gather(*[reader.close() for reader in readers])

    async def _lag(self, group: str, partition: TopicPartition, end: int, committed: int | None) -> PartitionLag:
        assert self._ends is not None
        start = committed
        if start is None:
            start = await self._ends.offset_at(partition, 0) if end else 0
        return PartitionLag(
            group=group, topic=partition.topic, partition=partition.partition, end=end, committed=committed, lag_messages=max(0, end - start)
        )

    async def _committed(self, group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        reader = self._readers.get(group)
        if reader is None:
            reader = self._readers[group] = await self._opened(group)
        return {partition: at.offset for partition, at in (await reader.committed_all(partitions)).items()}

    async def _all_partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        for topic in topics:
            if not self._partitions.get(topic):
                self._partitions[topic] = await self._log.partitions(topic)
        every: list[TopicPartition] = []
        for topic in topics:
            named = self._named.get(topic, [])
            if len(named) != self._partitions[topic]:
                named = self._named[topic] = [TopicPartition(topic, number) for number in range(self._partitions[topic])]
            every += named
        return every

    async def _opened(self, group: str | None) -> Reader:
        reader = self._log.reader(self._client_id, group=group)
        await reader.start()
        return reader


def lag_by_endpoint(lags: Sequence[PartitionLag], catalog: Catalog, open_requests: Mapping[str, float], names: Names) -> dict[str, int]:
    """What stands at each endpoint: its stage topics, and its part of {p}.requests, by how many requests each has open."""
    found = dict.fromkeys(catalog.endpoints, 0)
    shared = sum(lag.lag_messages for lag in lags if lag.topic == names.requests)
    weights = {name: max(open_requests.get(name, 0.0), 0.0) for name in found}
    total = sum(weights.values())
    for name in found:
        found[name] += round(shared * (weights[name] / total if total > 0.0 else 1.0 / len(found)))
    for lag in lags:
        # A name can begin with another's, and a dot: the longest is meant.
        owners = [name for name in found if lag.topic.startswith(names.stage(name, ""))]
        if owners:
            found[max(owners, key=len)] += lag.lag_messages
    return found

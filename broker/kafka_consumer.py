# aiokafka ships no types: these files wrap it, so that every other file is checked strictly.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportPrivateUsage=false
# pyright: reportUntypedBaseClass=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# ruff: noqa: SLF001 - what aiokafka does not offer publicly is used in these files only; the contract suite notices when it changes
"""aiokafka's consumer, and the offsets of a group, with types, bounded calls and our errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata

from broker.kafka_client import UNAVAILABLE, Connection, begin, bounded, finish
from broker.log import Committed, Record, TopicPartition
from schemas.errors import LogUnavailable

_REBALANCED = (CommitFailedError, IllegalStateError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


class PositionLost(Exception):
    """The log has nothing at the position of these partitions."""

    def __init__(self, positions: Mapping[TopicPartition, int | None]) -> None:
        super().__init__(f"nothing at {dict(positions)}")
        self.positions = positions


DRAIN_SECONDS = 5.0
"""A fetch waits for the caller to take what is here, so that it never leaves a partition out: a long poll would keep that partition back."""
Rebalanced = Callable[[Sequence[TopicPartition]], Awaitable[None]]


class _Listener(ConsumerRebalanceListener):
    def __init__(self, revoked: Rebalanced, assigned: Rebalanced) -> None:
        self._revoked, self._assigned = revoked, assigned

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - aiokafka awaits either
        await self._revoked(sorted(TopicPartition(*partition) for partition in revoked))

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        await self._assigned(sorted(TopicPartition(*partition) for partition in assigned))


class Membership(msgspec.Struct, frozen=True):
    """Membership of a consumer group; with an instance id it is static."""

    group: str
    instance_id: str | None = None
    session_timeout_ms: int = 6_000


class Consumer:
    """A consumer with manual positions: it never moves one by itself, and commits only when told."""

    def __init__(self, connection: Connection, client_id: str, fetch_wait_ms: int, membership: Membership | None = None) -> None:
        self._timeout_ms = connection.request_timeout_ms
        self._member = membership is not None
        arguments = connection.arguments(client_id)
        if membership is not None:
            arguments |= {
                "group_id": membership.group,
                "group_instance_id": membership.instance_id,
                "session_timeout_ms": membership.session_timeout_ms,
                "heartbeat_interval_ms": max(100, membership.session_timeout_ms // 6),
                "partition_assignment_strategy": (RangePartitionAssignor,),
            }
        self._consumer = AIOKafkaConsumer(**arguments, enable_auto_commit=False, auto_offset_reset="none", fetch_max_wait_ms=fetch_wait_ms)

    async def start(self) -> None:
        """Raises LogUnavailable; nothing is left open then."""
        try:
            async with bounded("the consumer cannot start", 2 * self._timeout_ms):
                await begin(self._consumer.start())
            self._consumer._fetcher._prefetch_backoff = DRAIN_SECONDS
        except BaseException:
            await self.close()
            raise

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Takes effect at once: no record of a former assignment is handed out any more."""
        self._consumer.assign([KafkaPartition(*partition) for partition in positions])
        for partition, offset in positions.items():
            self.seek(partition, offset)

    def subscribe(self, topics: Sequence[str], *, revoked: Rebalanced, assigned: Rebalanced) -> None:
        self._consumer.subscribe(list(topics), listener=_Listener(revoked, assigned))

    def hold(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch nothing from these until `release`."""
        self._consumer.pause(*(KafkaPartition(*partition) for partition in partitions))

    def release(self, partitions: Sequence[TopicPartition]) -> None:
        with suppress(IllegalStateError):
            self._consumer.resume(*(KafkaPartition(*partition) for partition in partitions))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Raises ValueError for a partition that is not assigned."""
        try:
            self._consumer.seek(KafkaPartition(*partition), offset)
        except IllegalStateError as error:
            raise ValueError(f"{partition} is not assigned") from error

    def assignment(self) -> Collection[TopicPartition]:
        return cast("Collection[TopicPartition]", self._consumer.assignment())

    async def fetched(self, timeout_ms: int, records_max: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """Records that are here, or the first to come within `timeout_ms`. Raises PositionLost, LogUnavailable."""
        try:
            if not self._member:
                found = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=records_max)
            else:  # inside waits for an assignment, without a bound; nothing has been taken out then, so it may be cancelled
                async with asyncio.timeout(timeout_ms / 1000 + 0.25):
                    found = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=records_max)
        except TimeoutError:
            return {}
        except OffsetOutOfRangeError as error:
            raise PositionLost({TopicPartition(*key): value for key, value in error.args[0].items()}) from error
        except NoOffsetForPartitionError as error:
            raise PositionLost({TopicPartition(*error.args[0]): None}) from error
        except (*UNAVAILABLE, ConsumerStoppedError) as error:
            raise LogUnavailable(f"cannot read: {error!r}") from error
        return cast("Mapping[TopicPartition, Sequence[Record]]", found)

    def silent_ms(self, since_ms: float) -> float:
        """How long no broker has answered a fetch, at most since `since_ms` (Unix); infinite where the fetching has ended with a defect."""
        if self._consumer._fetcher._fetch_task.done():
            return float("inf")
        polled = [self._consumer.last_poll_timestamp(partition) or 0 for partition in self._consumer.assignment()]
        return time.time() * 1000 - max([since_ms, *polled]) if polled else 0.0

    async def position(self, partition: TopicPartition) -> int:
        if partition not in self.assignment():
            raise ValueError(f"{partition} is not assigned")
        async with bounded(f"position of {partition}", self._timeout_ms):
            return await self._consumer.position(KafkaPartition(*partition))

    async def beginnings(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets("beginnings", self._consumer.beginning_offsets, partitions)

    async def ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets("ends", self._consumer.end_offsets, partitions)

    async def _offsets(self, what: str, ask: Callable[..., Awaitable[Any]], partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        async with bounded(f"{what} of {', '.join(sorted({p.topic for p in partitions}))}", 2 * self._timeout_ms):
            await self._learn(partitions)
            found = await ask([KafkaPartition(*partition) for partition in partitions])
        return {TopicPartition(*partition): offset for partition, offset in found.items()}

    async def _learn(self, partitions: Sequence[TopicPartition]) -> None:
        """Look up who leads these: asked about a topic that it has not heard of, aiokafka would wait out a back-off first, for each of them."""
        client = self._consumer._client
        unknown = {p.topic for p in partitions if client.cluster.leader_for_partition(KafkaPartition(*p)) is None}
        if unknown:
            await asyncio.gather(*[client.add_topic(topic) for topic in unknown])

    async def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        async with bounded(f"offset of {partition} at {timestamp_ms}", 2 * self._timeout_ms):
            await self._learn([partition])
            found = await self._consumer.offsets_for_times({KafkaPartition(*partition): timestamp_ms})
        return next((at.offset for at in found.values() if at is not None), None)

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """As a member of the group; what a rebalance takes away meanwhile is the next owner's."""
        with suppress(*_REBALANCED):
            try:
                async with asyncio.timeout(self._timeout_ms / 1000):
                    # The consumer's own commit refuses partitions beyond the assignment, which Kafka takes from any member.
                    found = {KafkaPartition(*partition): OffsetAndMetadata(*at) for partition, at in offsets.items()}
                    await self._consumer._coordinator.commit_offsets(self._consumer._subscription.subscription.assignment, found)
            except _REBALANCED:
                raise
            except UNAVAILABLE as error:
                raise LogUnavailable(f"cannot commit: {error!r}") from error

    async def close(self) -> None:
        """Leave the group (unless static) and close, in bounded time."""
        consumer = self._consumer
        if await finish(consumer.stop(), 2_000):
            return
        for part in (consumer._coordinator, consumer._fetcher, consumer._client):
            if part is not None:
                await finish(part.close(), 500)


class GroupOffsets:
    """The offsets of a group, for readers that are not members of it: aiokafka's own way would race with changes of the assignment."""

    def __init__(self, connection: Connection, client_id: str, group: str) -> None:
        self._connection = connection
        self._client_id = client_id
        self._group = group
        self._client: AIOKafkaClient | None = None
        self._coordinator: int | None = None
        self._lock = asyncio.Lock()

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Raises LogUnavailable."""
        await self._ask(OffsetCommitRequest(self._group, -1, "", -1, _by_topic({p: (p.partition, *at) for p, at in offsets.items()})))

    async def fetch(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Committed]:
        """Where nothing was committed, the partition is left out. Raises LogUnavailable."""
        answer = await self._ask(OffsetFetchRequest(self._group, _by_topic({p: p.partition for p in partitions})))
        return {
            TopicPartition(topic, partition): Committed(offset, metadata or "")
            for topic, rows in answer
            for partition, offset, metadata, _ in rows
            if offset >= 0
        }

    async def close(self) -> None:
        if self._client is not None:
            await finish(self._client.close(), 500)
            self._client = None

    async def _ask(self, request: object) -> list[Any]:
        async with bounded(f"offsets of group {self._group}", self._connection.request_timeout_ms), self._lock:
            while True:
                try:
                    return await self._send(request)
                except KafkaError as error:
                    self._coordinator = None
                    if not error.retriable:
                        raise
                    await asyncio.sleep(0.05)

    async def _send(self, request: object) -> list[Any]:
        if self._client is None:
            client = AIOKafkaClient(**self._connection.arguments(self._client_id))
            try:
                await begin(client.bootstrap())
            except BaseException:
                await client.close()
                raise
            self._client = client
        if self._coordinator is None:
            self._coordinator = await self._client.coordinator_lookup(CoordinationType.GROUP, self._group)
        answer = await self._client.send(self._coordinator, request, group=ConnectionGroup.COORDINATION)
        for code in [getattr(answer, "error_code", 0), *(row[-1] for _, rows in answer.topics for row in rows)]:
            if code:
                error: KafkaError = for_code(code)()
                raise error
        return answer.topics


def _by_topic(rows: Mapping[TopicPartition, object]) -> list[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = {}
    for partition, row in rows.items():
        topics.setdefault(partition.topic, []).append(row)
    return list(topics.items())

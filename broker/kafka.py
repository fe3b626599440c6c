"""The log on Kafka: topics, and the making of readers and writers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from broker.kafka_client import Connection, Topics
from broker.kafka_consumer import Consumer, Membership
from broker.kafka_reader import KafkaReader
from broker.kafka_transaction import KafkaTransactions
from broker.kafka_writer import KafkaWriter, WriterLimits
from broker.log import TopicPartition
from schemas.errors import LogUnavailable
from schemas.names import TopicSpec

READY_TIMEOUT = 20.0
"""Seconds that new topics have to become usable."""


class KafkaLog:
    """The Log protocol on a Kafka cluster; `options` are aiokafka's client options (TLS, SASL), passed through."""

    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, object] = {},
        *,
        replication: int = 1,
        session_timeout_ms: int = 6_000,
        request_timeout_ms: int = 4_000,
        writer_limits: WriterLimits = WriterLimits(),  # noqa: B008 - frozen
    ) -> None:
        self._connection = Connection(bootstrap, dict(options), request_timeout_ms)
        self._topics = Topics(self._connection)
        self._replication = replication
        self._session_timeout_ms = session_timeout_ms
        self._writer_limits = writer_limits
        self._made: list[KafkaReader | KafkaWriter] = []
        self._usable: set[str] = set()
        """Topics that were found usable: a process asks once."""

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """See Log. Several processes may create the same topics at once."""
        names = [topic.name for topic in topics]
        if self._usable.issuperset(names):
            return
        known = await self._topics.describe()
        missing = [topic for topic in topics if topic.name not in known]
        if missing:
            await self._topics.create(missing, self._replication)
        if missing or any(known[name].led < known[name].partitions for name in names):
            await self._wait_until_usable(names)
        self._usable.update(names)

    async def delete_topics(self, topics: Sequence[str]) -> None:
        known = await self._topics.describe()
        doomed = [topic for topic in topics if topic in known]
        if not doomed:
            return
        self._usable.difference_update(doomed)
        await self._topics.delete(doomed)
        give_up = time.monotonic() + READY_TIMEOUT
        while not known.keys().isdisjoint(doomed):
            if time.monotonic() > give_up:
                raise LogUnavailable(f"still there: {', '.join(sorted(known.keys() & set(doomed)))}")
            await asyncio.sleep(0.02)
            known = await self._topics.describe()

    async def configure_topics(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        await self._topics.configure(settings)

    async def topics(self, beginning: str) -> list[str]:
        return sorted(name for name in await self._topics.describe() if name.startswith(beginning))

    async def groups(self, beginning: str) -> list[str]:
        return sorted(name for name in await self._topics.groups() if name.startswith(beginning))

    async def partitions(self, topic: str) -> int:
        state = (await self._topics.describe()).get(topic)
        return state.partitions if state is not None else 0

    def writer(self, client_id: str) -> KafkaWriter:
        writer = KafkaWriter(self._connection, client_id, self._writer_limits)
        self._made.append(writer)
        return writer

    def reader(self, client_id: str, *, group: str | None = None, instance_id: str | None = None, fetch_wait_ms: int = 100) -> KafkaReader:
        membership = Membership(group, instance_id, self._session_timeout_ms) if group is not None else None
        reader = KafkaReader(self._connection, client_id, fetch_wait_ms=fetch_wait_ms, membership=membership)
        self._made.append(reader)
        return reader

    def transactions(self, client_id: str, transactional_id: str) -> KafkaTransactions:
        """Of Kafka alone, and so no part of the Log protocol. Whoever opens them closes them."""
        return KafkaTransactions(self._connection, client_id, transactional_id)

    async def close(self) -> None:
        """Close what is still open, each in bounded time."""
        await asyncio.gather(*(made.close() for made in self._made))
        self._made.clear()

    async def _wait_until_usable(self, topics: Sequence[str]) -> None:
        """A new partition has a leader in the metadata a moment before that leader knows: ask each for its end."""
        give_up = time.monotonic() + READY_TIMEOUT
        while True:
            known = await self._topics.describe()
            if all(topic in known and known[topic].led == known[topic].partitions > 0 for topic in topics):
                break
            if time.monotonic() > give_up:
                raise LogUnavailable(f"no leaders after {READY_TIMEOUT} s for {', '.join(topics)}")
            await asyncio.sleep(0.02)
        consumer = Consumer(self._connection, "headrace-topics", fetch_wait_ms=10)
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for topic in topics for number in range(known[topic].partitions)]
            while True:
                try:
                    await consumer.ends(partitions)
                except LogUnavailable:  # a busy broker takes longer than a request may to tell all leaders of hundreds of partitions
                    if time.monotonic() > give_up:
                        raise
                else:
                    return
        finally:
            await consumer.close()

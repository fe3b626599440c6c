# aiokafka ships no types: these files wrap it, so that every other file is checked strictly.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportPrivateUsage=false
# pyright: reportUntypedBaseClass=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# ruff: noqa: SLF001 - what aiokafka does not offer publicly is used in these files only
"""Kafka transactions for whoever copies from the log into the log: records and the group's offsets appear together, or not at all.

aiokafka's transactions know no group generations, so two members that both believe to own a partition would not be told apart. Hence a
transactional id for each shard, not for each process: whoever opens it next fences off whoever had it, and ends what that one had begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import MessageSizeTooLargeError, ProducerClosed, ProducerFenced, RecordListTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata

from broker.kafka_client import UNAVAILABLE, Connection, begin, bounded, finish
from broker.log import Committed, Message, TopicPartition
from schemas.errors import LogUnavailable, TooLarge

BATCH_BYTES = 256 << 10
"""A single record may be larger."""
COMMIT_MS_MAX = 15_000
TRANSACTION_MS_MAX = 30_000
"""Kafka itself ends a transaction that is open for longer: what lies behind it cannot be read until then."""


class Fenced(LogUnavailable):
    """Somebody else has opened the same transactional id."""


class KafkaTransactions:
    """One transactional id, whose transactions follow one another. After any error it is of no use any more: close it, and open another."""

    def __init__(self, connection: Connection, client_id: str, transactional_id: str) -> None:
        self._connection = connection
        self._producer = AIOKafkaProducer(
            **connection.arguments(client_id),
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_MS_MAX,
            acks="all",
            linger_ms=0,
            max_request_size=1 << 30,
            retry_backoff_ms=20,
        )

    async def start(self) -> None:
        """Fence off the former owner; what that one had begun is committed or aborted now. Raises LogUnavailable."""
        try:
            async with bounded("transactions cannot start", COMMIT_MS_MAX):
                await begin(self._producer.start())
        except BaseException:
            await self.close()
            raise

    async def commit(self, messages: Mapping[TopicPartition, Sequence[Message]], group: str, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Write the messages and commit the offsets of the group as one.

        Raises Fenced; TooLarge, where Kafka does not take one of them; LogUnavailable: it is unknown whether that happened.
        """
        producer = self._producer
        try:
            async with asyncio.timeout(COMMIT_MS_MAX / 1000):
                await producer.begin_transaction()
                acknowledged = [await self._send(partition, batch) for partition, each in messages.items() for batch in _batches(each)]
                if acknowledged:
                    await asyncio.gather(*acknowledged)
                stated = {KafkaPartition(*partition): OffsetAndMetadata(*at) for partition, at in offsets.items()}
                await producer.send_offsets_to_transaction(stated, group)
                await producer.commit_transaction()
        except ProducerFenced as error:
            raise Fenced("another process writes for this shard") from error
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise TooLarge("a record is over the topic's max.message.bytes") from error
        except UNAVAILABLE as error:
            raise LogUnavailable(f"the transaction was not acknowledged: {error!r}") from error

    async def _send(self, partition: TopicPartition, batch: BatchBuilder) -> Any:
        return await self._producer.send_batch(batch, partition.topic, partition=partition.partition)

    async def close(self) -> None:
        """Give up what is in flight and close, in bounded time."""
        producer = self._producer
        producer._message_accumulator.fail_all(ProducerClosed())
        if not await finish(producer.stop(), 1_000):
            await finish(producer.client.close(), 500)


def _batches(messages: Sequence[Message]) -> list[BatchBuilder]:
    found: list[BatchBuilder] = []
    batch: BatchBuilder | None = None
    for key, value, headers in messages:
        taken = None
        if batch is not None:
            taken = batch.append(timestamp=None, key=key, value=value, headers=headers)
        if taken is None:
            batch = BatchBuilder(BATCH_BYTES, 0, is_transactional=1)
            found.append(batch)
            batch.append(timestamp=None, key=key, value=value, headers=headers)
    return found

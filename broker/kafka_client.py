# aiokafka ships no types: these files wrap it, so that every other file is checked strictly.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportPrivateUsage=false
# pyright: reportUntypedBaseClass=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# ruff: noqa: SLF001 - what aiokafka does not offer publicly is used in these files only; the contract suite notices when it changes
"""aiokafka's producer and administrator with types, bounded calls and our errors; with kafka_consumer.py all that imports aiokafka."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.helpers import create_ssl_context
from aiokafka.producer.message_accumulator import BatchBuilder

from broker.log import Message
from schemas.errors import ConfigurationError, HeadraceError, LogUnavailable, TooLarge
from schemas.names import TopicSpec

REFRESH_METADATA_MS = 30_000
"""How soon a new partition or topic of a subscription is noticed."""

# aiokafka dereferences brokers that it does not know yet (AttributeError, AssertionError) while the cluster comes and goes.
UNAVAILABLE = (KafkaError, OSError, TimeoutError, AttributeError, AssertionError)


class Connection(msgspec.Struct, frozen=True):
    """Where Kafka is and how to reach it; `options` are aiokafka's client options (TLS, SASL)."""

    bootstrap: str
    options: Mapping[str, object] = {}
    request_timeout_ms: int = 4_000

    def arguments(self, client_id: str) -> dict[str, Any]:
        """Raises ConfigurationError for an option that aiokafka's client does not have, and where the TLS files cannot be used."""
        known = {*inspect.signature(AIOKafkaClient.__init__).parameters, *TLS_FILES} - {"self", "loop"}
        unknown = sorted(self.options.keys() - known)
        if unknown:
            raise ConfigurationError(f"kafka_options: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return {
            "metadata_max_age_ms": REFRESH_METADATA_MS,
            **_with_tls(self.options),
            "bootstrap_servers": self.bootstrap,
            "client_id": client_id,
            "request_timeout_ms": self.request_timeout_ms,
        }


TLS_FILES = {"ssl_cafile": "cafile", "ssl_capath": "capath", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile", "ssl_password": "password"}
"""Options that a file can state, under their usual names, for the SSL context that aiokafka wants."""


def _with_tls(options: Mapping[str, object]) -> dict[str, object]:
    plain = {name: value for name, value in options.items() if name not in TLS_FILES}
    if "SSL" in str(options.get("security_protocol", "")) and "ssl_context" not in options:
        files: dict[str, Any] = {TLS_FILES[name]: value for name, value in options.items() if name in TLS_FILES}
        try:
            plain["ssl_context"] = create_ssl_context(**files)
        except OSError as error:  # ssl.SSLError is one, too
            raise ConfigurationError(f"kafka_options: the TLS files {sorted(map(str, files.values()))} cannot be used: {error}") from None
    return plain


@asynccontextmanager
async def bounded(what: str, timeout_ms: float) -> AsyncGenerator[None]:
    """Every wait for Kafka ends: with the answer, or with LogUnavailable after `timeout_ms`."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            yield
    except UNAVAILABLE as error:
        raise LogUnavailable(f"{what}: {error!r}") from error


async def begin(starting: Coroutine[Any, Any, object]) -> None:
    """Run a client's start; where it is cancelled, what it is at comes to its end first, in bounded time.

    aiokafka forgets the connection over which it asks for the cluster when it is cancelled meanwhile: nobody could close it any more.
    """
    task = asyncio.ensure_future(starting)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await finish(task, 1_000)
        raise


async def finish(closing: Coroutine[Any, Any, object] | asyncio.Task[object], timeout_ms: float) -> bool:
    """Run a clean-up for a bounded time; whether it got to its end.

    aiokafka's own clean-up can end in the CancelledError of one of its tasks, which is not a cancellation of ours: hence a task of its own.
    """
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.wait({task}, timeout=timeout_ms / 1000)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)
    return task.done() and not task.cancelled() and task.exception() is None


class OpenBatch(BatchBuilder):
    """A batch that takes records until the moment at which the sender takes it.

    aiokafka numbers a batch's records when the sender takes it (`_set_producer_state`), but closes it only an iteration of the loop later:
    a record appended in between would tear the sequence. So the batch closes itself first.
    """

    def __init__(self, batch_bytes: int) -> None:
        super().__init__(batch_bytes, 0, is_transactional=0)

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self.close()
        super()._set_producer_state(producer_id, producer_epoch, base_sequence)

    def take(self, message: Message) -> bool:
        """False where the batch is full or on its way already."""
        key, value, headers = message
        return self.append(timestamp=None, key=key, value=value, headers=headers if type(headers) is list else list(headers)) is not None


class Producer:
    """An idempotent producer whose batches are handed over synchronously."""

    def __init__(self, connection: Connection, client_id: str) -> None:
        self._connection = connection
        self._producer = AIOKafkaProducer(
            **connection.arguments(client_id), acks="all", enable_idempotence=True, linger_ms=0, max_request_size=1 << 30, retry_backoff_ms=50
        )

    async def start(self) -> None:
        """Raises LogUnavailable; nothing is left open then."""
        try:
            async with bounded("the producer cannot start", 2 * self._connection.request_timeout_ms):
                await begin(self._producer.start())
        except BaseException:
            await self.close()
            raise
        transactions = self._producer._txn_manager
        if transactions is None or not transactions.has_pid():
            await self.close()
            raise LogUnavailable("the producer has no producer id: without idempotence a retry could write twice")

    def knows(self, topic: str, partition: int) -> bool:
        return partition in (self._producer.client.cluster.partitions_for_topic(topic) or ())

    async def learn(self, topic: str, partition: int) -> None:
        """Look a partition up. Raises LogUnavailable where it does not exist."""
        async with bounded(f"topic {topic}", 2 * self._connection.request_timeout_ms):
            if partition not in await self._producer.partitions_for(topic):
                await self._producer.client.force_metadata_update()
        if not self.knows(topic, partition):
            raise LogUnavailable(f"topic {topic} has no partition {partition}")

    def submit(self, batch: OpenBatch, topic: str, partition: int) -> asyncio.Future[Any]:
        """Hand a batch over without giving the loop a turn; at most one per partition, of a partition that is known.

        The future holds what has `offset` and `timestamp`. Raises LogUnavailable where the producer takes nothing any more.
        """
        handing_over = self._producer.send_batch(batch, topic, partition=partition)
        try:
            handing_over.send(None)
        except StopIteration as handed_over:
            return handed_over.value
        except UNAVAILABLE as error:
            raise LogUnavailable(f"the producer is broken: {error!r}") from error
        handing_over.close()
        raise LogUnavailable("the producer would have to wait")

    def withdraw(self, topic: str, partition: int, records: int) -> None:
        """Kafka refused a batch as a whole: its sequence numbers are free again. Without this the next batch would be out of sequence."""
        self._producer._txn_manager.increment_sequence_number(KafkaPartition(topic, partition), -records)

    async def close(self) -> None:
        """Give up what is in flight and close, in bounded time."""
        producer = self._producer
        producer._message_accumulator.fail_all(ProducerClosed())
        if not await finish(producer.stop(), 1_000):
            await finish(producer.client.close(), 500)


def translate(error: BaseException) -> HeadraceError:
    """What a failed batch means for those who wrote it."""
    if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
        return TooLarge("the record is over the topic's max.message.bytes")
    return LogUnavailable(f"not acknowledged: {error!r}")


class TopicState(msgspec.Struct, frozen=True):
    """What the metadata say of a topic: its partitions, and how many of them have a leader."""

    partitions: int
    led: int


_SET_FOR_THE_TOPIC = 1
"""Where a setting comes from, as Kafka counts it; others are defaults."""


def _stated(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Settings that somebody made for a topic, of (name, value, read only, source, ...)."""
    return {row[0]: row[1] for row in rows if row[3] == _SET_FOR_THE_TOPIC}


class Topics:
    """Topics and groups as an administrator sees them; one short-lived connection per question, since they are rare."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def describe(self) -> dict[str, TopicState]:
        """All topics: asking for one by name could create it, where the broker allows that. Raises LogUnavailable."""
        async with self._administrator() as administrator:
            rows = await administrator.describe_topics(None)
        return {
            row["topic"]: TopicState(len(row["partitions"]), sum(part["leader"] >= 0 and not part["error_code"] for part in row["partitions"]))
            for row in rows
            if not row["error_code"]
        }

    async def groups(self) -> list[str]:
        """All consumer groups. Raises LogUnavailable."""
        async with self._administrator() as administrator:
            return [name for name, _ in await administrator.list_consumer_groups()]

    async def create(self, topics: Sequence[TopicSpec], replication: int) -> None:
        """What exists already is left alone. Raises LogUnavailable; ConfigurationError where Kafka refuses a topic as it is specified."""
        wanted = [NewTopic(t.name, t.partitions, replication, topic_configs=t.config) for t in topics]
        async with self._administrator() as administrator:
            answer = await administrator.create_topics(wanted)
        self._check(((row[0], row[1]) for row in answer.topic_errors), TopicAlreadyExistsError)

    async def delete(self, topics: Sequence[str]) -> None:
        """What does not exist is left alone. Raises LogUnavailable."""
        async with self._administrator() as administrator:
            answer = await administrator.delete_topics(list(topics))
        self._check(((row[0], row[1]) for row in answer.topic_error_codes), UnknownTopicOrPartitionError)

    async def configure(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        """Change these settings of topics by name, and no others. Raises LogUnavailable; ConfigurationError where Kafka refuses them."""
        wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in settings]
        async with self._administrator() as administrator:
            (found,) = await administrator.describe_configs(wanted)
            present = {name: _stated(rows) for _, _, _, name, rows in found.resources}
            # Kafka replaces all that was ever set of a topic, so that is said again.
            altered = [ConfigResource(ConfigResourceType.TOPIC, name, {**present.get(name, {}), **settings[name]}) for name in settings]
            (answer,) = await administrator.alter_configs(altered)
        self._check(((row[3], row[0]) for row in answer.resources), KafkaError)

    def _check(self, codes: Iterable[tuple[str, int]], expected: type[KafkaError]) -> None:
        for topic, code in codes:
            error = for_code(code)
            if code and error is not expected:
                kind = LogUnavailable if error.retriable else ConfigurationError
                raise kind(f"topic {topic}: {error.__name__}")

    @asynccontextmanager
    async def _administrator(self) -> AsyncGenerator[AIOKafkaAdminClient]:
        administrator = AIOKafkaAdminClient(**self._connection.arguments("headrace-topics"))
        try:
            async with bounded("topics", 2 * self._connection.request_timeout_ms):
                await begin(administrator.start())
                yield administrator
        finally:
            await finish(administrator.close(), 500)

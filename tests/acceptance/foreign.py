"""A client that knows Headrace only by its wire: confluent-kafka, JSON and msgpack, and plain Redis commands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import redis
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

BYTES_MAX = 32 << 20
"""Of what the client library itself lets pass; what Kafka takes is Kafka's to say."""


def decoded(value: bytes) -> dict[str, Any]:
    """A terminal record: JSON begins with a brace, a msgpack map never does."""
    return json.loads(value) if value[:1] == b"{" else msgspec.msgpack.decode(value)


def patiently(ask: Callable[[], Any]) -> Any:
    """What Kafka says; while its servers come and go, it may have to be asked again."""
    deadline_s = time.monotonic() + 30.0
    while True:
        try:
            return ask()
        except KafkaException:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)


def image_tensor(images: np.ndarray, **fields: Any) -> dict[str, Any]:
    """Images as the Open Inference Protocol has them in JSON."""
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()} | fields


class ForeignClient:
    """Publishes records, reads topics from the beginning, polls keys."""

    def __init__(self, kafka: str, redis_url: str, prefix: str) -> None:
        self.prefix = prefix
        self._kafka = kafka
        settings = {"linger.ms": 5, "message.timeout.ms": 60_000, "enable.idempotence": True, "message.max.bytes": BYTES_MAX, "log_level": 0}
        self._producer = Producer({"bootstrap.servers": kafka, **settings})
        self._store = redis.Redis.from_url(redis_url, socket_timeout=5)
        self.unsent: list[str] = []
        """Labels of what Kafka did not take."""

    def publish(self, request_id: str, body: bytes | None, *, topic: str = "requests", headers: Mapping[str, str | bytes] | None = None) -> None:
        self.produce(topic, body, key=request_id, headers=headers, label=request_id)

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        partition: int = -1,
        timestamp_ms: int = 0,
        label: str = "",
    ) -> None:
        def delivered(error: object, _message: Message) -> None:
            if error is not None:
                self.unsent.append(label or f"{topic}: {error}")

        self._producer.produce(
            f"{self.prefix}.{topic}",
            value=value,
            key=key,
            headers=dict(headers or {}),
            partition=partition,
            timestamp=timestamp_ms,
            on_delivery=delivered,
        )
        self._producer.poll(0)

    def flush(self, within_s: float = 60.0) -> None:
        assert self._producer.flush(within_s) == 0

    def records(self, topic: str) -> Iterator[Message]:
        """Everything that the topic holds now, each partition in order."""
        settings = {
            "group.id": f"{self.prefix}-foreign",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
            "fetch.error.backoff.ms": 50,
            "log_level": 0,
        }
        consumer = Consumer({"bootstrap.servers": self._kafka, **settings})
        try:
            name = f"{self.prefix}.{topic}"
            ends: dict[int, int] = {}
            starts: list[TopicPartition] = []
            for number in patiently(lambda: consumer.list_topics(name, timeout=20).topics[name].partitions):
                low, high = patiently(lambda number=number: consumer.get_watermark_offsets(TopicPartition(name, number), timeout=20))
                if low < high:
                    ends[number] = high
                    starts.append(TopicPartition(name, number, low))
            consumer.assign(starts)
            while ends:
                message = consumer.poll(20)
                assert message is not None, f"{name} stops before {ends}"
                assert message.error() is None, message.error()
                number, offset = message.partition(), message.offset()
                if offset < ends.get(number, 0):
                    yield message
                    if offset == ends[number] - 1:
                        del ends[number]
        finally:
            consumer.close()

    def topics(self, beginning: str) -> list[str]:
        """Names without the prefix of the topics that there are."""
        consumer = Consumer({"bootstrap.servers": self._kafka, "group.id": f"{self.prefix}-foreign", "log_level": 0})
        try:
            names = patiently(lambda: consumer.list_topics(timeout=20)).topics
        finally:
            consumer.close()
        return sorted(name.removeprefix(f"{self.prefix}.") for name in names if name.startswith(f"{self.prefix}.{beginning}"))

    def stage_lag(self) -> dict[str, int]:
        """What Kafka itself says that the dispatchers have not read of the stage topics."""
        consumer = Consumer({"bootstrap.servers": self._kafka, "group.id": f"{self.prefix}.dispatchers", "enable.auto.commit": False, "log_level": 0})
        lag: dict[str, int] = {}
        try:
            for topic in self.topics("stage."):
                name = f"{self.prefix}.{topic}"
                numbers = patiently(lambda name=name: consumer.list_topics(name, timeout=20)).topics[name].partitions
                partitions = [TopicPartition(name, number) for number in numbers]
                for at in patiently(lambda partitions=partitions: consumer.committed(partitions, timeout=20)):
                    low, high = patiently(lambda at=at: consumer.get_watermark_offsets(TopicPartition(at.topic, at.partition), timeout=20))
                    if high > max(at.offset, low):
                        lag[f"{topic}-{at.partition}"] = high - max(at.offset, low)
        finally:
            consumer.close()
        return lag

    def answers(self) -> dict[str, list[tuple[dict[str, Any], int]]]:
        """By id: every terminal record in the order of the log, each with the log's time of it."""
        found: dict[str, list[tuple[dict[str, Any], int]]] = {}
        for message in self.records("responses"):
            found.setdefault(message.key().decode(), []).append((decoded(message.value()), message.timestamp()[1]))
        return found

    def first_answers(self) -> dict[str, tuple[dict[str, Any], int]]:
        """By id: the first terminal record, and the log's time of it."""
        return {request_id: answers[0] for request_id, answers in self.answers().items()}

    def stored(self, request_ids: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        ids = list(request_ids)
        found: dict[str, dict[str, Any] | None] = {}
        for at in range(0, len(ids), 500):
            part = ids[at : at + 500]
            values: Any = self._store.mget([f"{self.prefix}:response:{request_id}" for request_id in part])
            found |= {request_id: decoded(value) if value else None for request_id, value in zip(part, values, strict=True)}
        return found

    def raw(self, request_id: str) -> bytes:
        """The bytes under the answer's key."""
        value: Any = self._store.get(f"{self.prefix}:response:{request_id}")
        return value

    def until_stored(self, request_ids: Iterable[str], *, within_s: float) -> dict[str, dict[str, Any] | None]:
        """The stored answers, once all are there or the time is over."""
        ids = list(request_ids)
        deadline_s = time.monotonic() + within_s
        while True:
            found = self.stored_or_away(ids)
            if all(found.values()) or time.monotonic() > deadline_s:
                return found
            time.sleep(0.1)

    def stored_or_away(self, request_ids: list[str]) -> dict[str, dict[str, Any] | None]:
        """As `stored`; nothing where the store is away."""
        try:
            return self.stored(request_ids)
        except (redis.ConnectionError, redis.TimeoutError):
            return dict.fromkeys(request_ids)

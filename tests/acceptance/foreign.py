"""A client that knows Headrace only by its wire: confluent-kafka, JSON, and plain Redis commands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import redis
from confluent_kafka import Consumer, Message, Producer, TopicPartition


class ForeignClient:
    """Publishes JSON lines, reads {p}.responses from the beginning, polls keys."""

    def __init__(self, kafka: str, redis_url: str, prefix: str) -> None:
        self.prefix = prefix
        self._kafka = kafka
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5, "message.timeout.ms": 60_000, "enable.idempotence": True})
        self._store = redis.Redis.from_url(redis_url)
        self.unsent: list[str] = []

    def publish(self, request_id: str, body: bytes, *, topic: str = "requests", headers: dict[str, str] | None = None) -> None:
        def delivered(error: object, _message: Message) -> None:
            if error is not None:
                self.unsent.append(request_id)

        self._producer.produce(f"{self.prefix}.{topic}", value=body, key=request_id, headers=headers or {}, on_delivery=delivered)
        self._producer.poll(0)

    def flush(self) -> None:
        assert self._producer.flush(60) == 0

    def records(self, topic: str) -> Iterator[Message]:
        """Everything that the topic holds now, partition by partition."""
        consumer = Consumer({"bootstrap.servers": self._kafka, "group.id": f"{self.prefix}-foreign", "enable.auto.commit": False})
        try:
            name = f"{self.prefix}.{topic}"
            for number in consumer.list_topics(name, timeout=20).topics[name].partitions:
                partition = TopicPartition(name, number, 0)
                low, high = consumer.get_watermark_offsets(partition, timeout=20)
                consumer.assign([TopicPartition(name, number, low)])
                position = low
                while position < high:
                    message = consumer.poll(20)
                    assert message is not None, f"{name}[{number}] stops at {position} of {high}"
                    assert message.error() is None, message.error()
                    position = message.offset() + 1
                    yield message
        finally:
            consumer.close()

    def first_answers(self) -> dict[str, tuple[dict[str, Any], int]]:
        """By id: the first terminal record, and the log's time of it."""
        first: dict[str, tuple[dict[str, Any], int]] = {}
        for message in self.records("responses"):
            request_id = message.key().decode()
            if request_id not in first:
                first[request_id] = (json.loads(message.value()), message.timestamp()[1])
        return first

    def stored(self, request_ids: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        ids = list(request_ids)
        found: dict[str, dict[str, Any] | None] = {}
        for at in range(0, len(ids), 500):
            part = ids[at : at + 500]
            values: Any = self._store.mget([f"{self.prefix}:response:{request_id}" for request_id in part])
            found |= {request_id: json.loads(value) if value else None for request_id, value in zip(part, values, strict=True)}
        return found

    def until_stored(self, request_ids: Iterable[str], *, within_s: float) -> dict[str, dict[str, Any] | None]:
        """The stored answers, once all are there or the time is over."""
        ids = list(request_ids)
        deadline_s = time.monotonic() + within_s
        while True:
            found = self.stored(ids)
            if all(found.values()) or time.monotonic() > deadline_s:
                return found
            time.sleep(0.2)

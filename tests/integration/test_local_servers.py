"""Genuine Kafka and Valkey as the managed stack and the test fixtures run them."""

import asyncio
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio as redis

from broker.kafka import KafkaLog
from broker.log import TopicPartition
from deploy.local.kafka import kafka_answers
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.valkey import valkey_answers
from schemas.names import TopicSpec


async def test_only_a_kafka_answers_as_one(kafka_address: str, redis_url: str):
    host, _, port = kafka_address.rpartition(":")
    assert kafka_answers(host, int(port))
    assert not valkey_answers(host, int(port), timeout_ms=200)
    (closed,) = free_ports(1)
    assert not kafka_answers(LOOPBACK, closed)
    assert not valkey_answers(LOOPBACK, closed)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x04\x00\x00\x00\x07", b"\x7f\xff\xff\xff"])
@pytest.mark.parametrize("answers", [kafka_answers, valkey_answers])
def test_a_port_that_is_open_but_silent_or_speaks_nonsense_is_no_server(answers: Callable[..., bool], answer: bytes):
    with socket.create_server((LOOPBACK, 0)) as listener:

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)
                connection.recv(1)

        speaking = threading.Thread(target=speak)
        speaking.start()
        assert not answers(LOOPBACK, listener.getsockname()[1], timeout_ms=100)
        speaking.join()


async def test_kafka_keeps_what_it_acknowledged_through_kill_9_at_the_same_address(private_kafka, prefix: str):
    topic, kept = f"{prefix}.kept", uuid.uuid4().bytes
    log = KafkaLog(private_kafka.address)
    await log.create_topics([TopicSpec(topic, 1, {})])
    writer = log.writer("test")
    await writer.start()
    await writer.write(topic, 0, [(b"key", kept, ())])
    await writer.close()
    await log.close()

    private_kafka.kill()
    assert not private_kafka.runs
    private_kafka.spawn()
    await private_kafka.ready()

    log = KafkaLog(private_kafka.address)
    reader = log.reader("test")
    await reader.start()
    await reader.assign({TopicPartition(topic, 0): "earliest"})
    found = await reader.read(timeout_ms=10_000, records_max=10)
    assert [record.value for records in found.values() for record in records] == [kept]
    await reader.close()
    await log.close()


async def test_a_paused_kafka_answers_nothing_and_goes_on_when_resumed(private_kafka):
    host, _, port = private_kafka.address.rpartition(":")
    private_kafka.pause()
    assert not await asyncio.to_thread(kafka_answers, host, int(port), timeout_ms=200)
    private_kafka.resume()
    await private_kafka.ready()


async def test_valkey_that_was_killed_comes_back_empty_at_the_same_address(private_valkey):
    for life in range(2):
        async with redis.Redis.from_url(private_valkey.address) as client:
            assert await client.get("key") is None
            await client.set("key", life)
        if life == 0:
            private_valkey.kill()
            with pytest.raises(AssertionError, match="ended"):
                await private_valkey.ready()
            private_valkey.spawn()
            await private_valkey.ready()


async def test_a_private_server_is_mended_for_the_next_test(private_valkey, tmp_path: Path):
    assert private_valkey.runs
    private_valkey.pause()
    private_valkey.kill()
    private_valkey.mend()
    await private_valkey.ready()

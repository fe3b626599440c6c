# aiokafka ships no types, and a baseline is exactly what somebody would write with it directly.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The baselines over Kafka: what bare aiokafka does with the same records, as processes of their own.

`python -m deploy.bench.baselines SETTINGS` with one of the settings below as JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from deploy.bench.harness import announce

FETCH_WAIT_MS = 10
POLL_MS = 200
RECORDS_MAX = 1000
ANSWER_BYTES = 200


class Relay(msgspec.Struct, frozen=True, kw_only=True, tag="relay"):
    """Whatever comes in `source` goes to `target`, as it is, until the process is ended."""

    kafka: str
    source: str
    target: str
    ready: str


class DispatcherIo(msgspec.Struct, frozen=True, kw_only=True, tag="dispatcher-io"):
    """A dispatcher's input and output without a decision: consume 1, produce 1, consume 1 for each of `count` requests."""

    kafka: str
    requests: str
    work: str
    responses: str
    shards: int
    count: int
    ready: str
    result: str


class NullWorker(msgspec.Struct, frozen=True, kw_only=True, tag="null-worker"):
    """Answers each record of `work` with its first bytes in `responses`."""

    kafka: str
    work: str
    responses: str
    shards: int
    ready: str


Settings = Relay | DispatcherIo | NullWorker


def _producer(kafka: str) -> Any:
    return AIOKafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=True, linger_ms=0, max_batch_size=131_072)


def _consumer(kafka: str, *topics: str) -> Any:
    return AIOKafkaConsumer(*topics, bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=FETCH_WAIT_MS)


async def _assigned(kafka: str, topic: str, shards: int) -> Any:
    consumer = _consumer(kafka)
    consumer.assign([TopicPartition(topic, shard) for shard in range(shards)])
    await consumer.start()
    await consumer.seek_to_beginning()
    return consumer


async def _relay(settings: Relay) -> None:
    consumer, producer = _consumer(settings.kafka, settings.source), _producer(settings.kafka)
    await consumer.start()
    await producer.start()
    await consumer.seek_to_end()
    for partition in consumer.assignment():
        await consumer.position(partition)
    announce(settings.ready)
    while True:
        for records in (await consumer.getmany(timeout_ms=POLL_MS, max_records=RECORDS_MAX)).values():
            for record in records:
                await producer.send(settings.target, record.value, key=record.key)


async def _dispatcher_io(settings: DispatcherIo) -> None:
    producer = _producer(settings.kafka)
    await producer.start()
    requests = await _assigned(settings.kafka, settings.requests, settings.shards)
    responses = await _assigned(settings.kafka, settings.responses, settings.shards)

    async def forward() -> None:
        left = settings.count
        while left > 0:
            for partition, records in (await requests.getmany(timeout_ms=POLL_MS, max_records=RECORDS_MAX)).items():
                for record in records:
                    await producer.send(settings.work, record.value, key=record.key, partition=partition.partition)
                left -= len(records)

    async def count_answers() -> None:
        left = settings.count
        while left > 0:
            for records in (await responses.getmany(timeout_ms=POLL_MS, max_records=RECORDS_MAX)).values():
                left -= len(records)

    announce(settings.ready)
    began_s, cpu_s = time.time(), time.process_time()
    await asyncio.gather(forward(), count_answers())
    spent = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.time() - began_s}
    announce(settings.result, spent)
    for client in (requests, responses, producer):
        await client.stop()


async def _null_worker(settings: NullWorker) -> None:
    producer = _producer(settings.kafka)
    await producer.start()
    work = await _assigned(settings.kafka, settings.work, settings.shards)
    announce(settings.ready)
    while True:
        for partition, records in (await work.getmany(timeout_ms=POLL_MS, max_records=RECORDS_MAX)).items():
            for record in records:
                await producer.send(settings.responses, record.value[:ANSWER_BYTES], key=record.key, partition=partition.partition)


async def _run(settings: Settings) -> None:
    if isinstance(settings, Relay):
        await _relay(settings)
    elif isinstance(settings, DispatcherIo):
        await _dispatcher_io(settings)
    else:
        await _null_worker(settings)


if __name__ == "__main__":
    uvloop.run(_run(msgspec.json.decode(sys.argv[1], type=Settings)))

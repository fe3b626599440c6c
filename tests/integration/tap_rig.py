"""What the tests of the taps stand on: requests and answers written by hand, taps that run as tasks or processes, and what is read back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as ConfluentPartition
from prometheus_client import CollectorRegistry

from broker.kafka import KafkaLog
from broker.log import Message, Writer
from broker.taps import Taps, TapSettings
from deploy.configuration import Connection
from deploy.roles.taps import TapOptions, tap_on
from schemas.catalog import EndpointSpec, catalog_key, encode_catalog
from schemas.names import Names
from schemas.tap import TapSpec
from schemas.terminal import JSON_TYPE, TERMINAL_VERSION, OutputTensor, PathStep, Terminal, encode_terminal

SHARDS = 2
QUICK = TapSettings(turn_ms=50, reopen_ms=100.0, report_ms=100.0, retry_ms_max=200)
STEP = PathStep(stage="main", variant="fashion/cnn", accuracy=0.9, accelerator="cpu", device="CPU", queued_ms=1.5, computed_ms=2.5, batch_size=4)


def request(request_id: str, endpoint: str = "fashion", **fields: Any) -> Message:
    body = {
        "endpoint": endpoint,
        "min_accuracy": 0.8,
        "timeout_ms": 500,
        "inputs": [{"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}],
    }
    return request_id.encode(), msgspec.json.encode(body | fields), []


def answer(request_id: str, outcome: str = "completed", *, variant: str = "fashion/cnn", content_type: str = JSON_TYPE, **fields: Any) -> Message:
    path = [msgspec.structs.replace(STEP, variant=variant)] if outcome == "completed" else []
    data: Any = [7] if content_type == JSON_TYPE else b"\x07\x00\x00\x00\x00\x00\x00\x00"
    outputs = [OutputTensor("label", [1], "INT64", data)] if outcome == "completed" else None
    stated: dict[str, Any] = {
        "endpoint": "fashion",
        "outputs": outputs,
        "path": path,
        "accuracy": 0.9 if path else None,
        "deadline_ms": 1_700_000_000_500,
    }
    terminal = Terminal(
        **{"id": request_id, "outcome": outcome, "received_ms": 1, "finished_ms": 2, "attempts": 1, "epoch": 1, "version": TERMINAL_VERSION}
        | stated
        | fields
    )
    return request_id.encode(), encode_terminal(terminal, content_type), [("content-type", content_type.encode())]


class TapRig:
    """Topics with a catalog, and what is written to them."""

    def __init__(self, address: str, prefix: str) -> None:
        self.address = address
        self.connection = Connection(kafka=address, prefix=prefix)
        self.names: Names = self.connection.names
        self.log = KafkaLog(address)
        self.writer: Writer = self.log.writer("tap-test")
        self.running: list[tuple[Taps, asyncio.Task[None], KafkaLog]] = []

    async def start(self, taps: TapSpec | None) -> None:
        wanted = {self.names.requests, self.names.responses, self.names.tap_requests, self.names.tap_responses, self.names.catalog}
        await self.log.create_topics([topic for topic in self.names.topics(shards=SHARDS) if topic.name in wanted])
        await self.writer.start()
        await self.apply(taps)

    async def apply(self, taps: TapSpec | None, endpoint: str = "fashion", **fields: Any) -> None:
        spec = EndpointSpec(**{"name": endpoint, "task": endpoint, "taps": taps} | fields)
        await self.writer.write(self.names.catalog, 0, [(catalog_key(spec), encode_catalog(spec), [])])

    async def write(self, topic: str, shard: int, messages: Sequence[Message]) -> None:
        await self.writer.write(topic, shard, messages)

    async def exchange(self, ids: Iterable[str]) -> None:
        """Requests with their answers, spread over the shards."""
        shares: dict[int, list[str]] = {}
        for number, request_id in enumerate(ids):
            shares.setdefault(number % SHARDS, []).append(request_id)
        for shard, mine in shares.items():
            await self.write(self.names.requests, shard, [request(each) for each in mine])
            await self.write(self.names.responses, shard, [answer(each) for each in mine])

    def tap(self, name: str = "tap-1", options: TapOptions | None = None, registry: CollectorRegistry | None = None) -> Taps:
        log = KafkaLog(self.address, session_timeout_ms=6_000)
        tap = tap_on(log, self.connection, name, options or TapOptions(), registry or CollectorRegistry(), QUICK)
        self.running.append((tap, asyncio.create_task(tap.run()), log))
        return tap

    async def stop_taps(self) -> None:
        running, self.running = self.running, []
        for tap, _, _ in running:
            tap.stop()
        for _, task, log in running:
            async with asyncio.timeout(20):
                await task
            await log.close()

    async def close(self) -> None:
        await self.stop_taps()
        await self.writer.close()
        await self.log.close()

    def events(self, topic: str) -> list[Any]:
        """Committed records of a topic, by another library's consumer."""
        return committed_records(self.address, topic)

    async def until_events(self, topic: str, count: int, *, seconds: float = 20.0) -> list[Any]:
        deadline_s = time.monotonic() + seconds
        while True:
            found = await asyncio.to_thread(self.events, topic)
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline_s, f"{len(found)} of {count} events in {topic}"
            await asyncio.sleep(0.1)


def committed_records(address: str, topic: str) -> list[Any]:
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "unused",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        consumer.assign([ConfluentPartition(topic, number, 0) for number in range(len(consumer.list_topics(topic, 10).topics[topic].partitions))])
        found: list[Any] = []
        open_partitions = len(consumer.assignment())
        while open_partitions:
            message = consumer.poll(10)
            assert message is not None, "no answer from Kafka"
            if message.error():
                open_partitions -= 1
            else:
                found.append(message)
        return found
    finally:
        consumer.close()


def headers_of(message: Any) -> Mapping[str, str]:
    return {name: value.decode() for name, value in message.headers() or ()}


def rows(folder: Path) -> list[dict[str, Any]]:
    from broker.tap_sinks.parquet_layout import LAYOUT

    table: pa.Table = ds.dataset(folder, format="parquet", schema=LAYOUT).to_table()
    return table.to_pylist()


@asynccontextmanager
async def tap_rig(address: str, prefix: str, taps: TapSpec | None) -> AsyncIterator[TapRig]:
    rig = TapRig(address, prefix)
    try:
        await rig.start(taps)
        yield rig
    finally:
        await rig.close()

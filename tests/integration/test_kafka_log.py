"""What only Kafka can do to its clients: go away, freeze, lose the sequence, drop records; through a proxy in front of the genuine one."""

from __future__ import annotations

import asyncio
import gc
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import pytest
import structlog
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from broker.kafka import KafkaLog
from broker.kafka_writer import WriterLimits
from broker.log import Committed, Message, Reader, TopicPartition, Writer
from schemas.errors import LogUnavailable
from schemas.names import TopicSpec

pytestmark = pytest.mark.kafka
TIMEOUT_MS = 1_000
REQUEST_TIMEOUT_MS = 700


class Proxy:
    """Forwards to Kafka and puts its own port in place of Kafka's in what comes back; can drop everybody, or freeze."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._kafka = (host, int(port))
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        upstream = None
        try:
            kafka_reader, upstream = await asyncio.open_connection(*self._kafka, limit=1 << 24)
            both = asyncio.gather(self._pump(reader, upstream, rewrite=False), self._pump(kafka_reader, writer, rewrite=True))
            with suppress(OSError, EOFError, asyncio.CancelledError):
                await both
        finally:
            self._connections.discard(task)
            for stream in (writer, upstream):
                if stream is not None:
                    stream.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, rewrite: bool) -> None:
        host = self._kafka[0].encode()
        theirs = struct.pack(">h", len(host)) + host + struct.pack(">i", self._kafka[1])
        ours = struct.pack(">h", len(host)) + host + struct.pack(">i", self.port)
        while True:
            size = await source.readexactly(4)
            frame = await source.readexactly(int.from_bytes(size, "big"))
            await self._flowing.wait()
            sink.write(size + (frame.replace(theirs, ours) if rewrite else frame))
            await sink.drain()


@pytest.fixture
async def proxy(kafka_address: str) -> AsyncIterator[Proxy]:
    made = Proxy(kafka_address)
    await made.up()
    yield made
    made.thaw()
    await made.down()


@pytest.fixture
async def log(proxy: Proxy) -> AsyncIterator[KafkaLog]:
    limits = WriterLimits(timeout_ms=TIMEOUT_MS, queued_bytes_max=1 << 20)
    made = KafkaLog(proxy.address, request_timeout_ms=REQUEST_TIMEOUT_MS, writer_limits=limits)
    yield made
    await asyncio.wait_for(made.close(), 10)


@pytest.fixture
async def topic(log: KafkaLog, prefix: str) -> str:
    name = f"{prefix}.topic"
    await log.create_topics([TopicSpec(name, 2, {"message.timestamp.type": "LogAppendTime"})])
    return name


def message(text: str) -> Message:
    return b"k", text.encode(), []


async def opened_writer(log: KafkaLog) -> Writer:
    writer = log.writer("writer")
    await writer.start()
    return writer


async def opened_reader(log: KafkaLog, topic: str, group: str | None = None) -> Reader:
    reader = log.reader("reader", group=group)
    await reader.start()
    await reader.assign({TopicPartition(topic, number): "earliest" for number in range(2)})
    return reader


async def read_values(reader: Reader) -> list[str]:
    """LogUnavailable is what a role would log and go on from."""
    with suppress(LogUnavailable):
        found = await reader.read(timeout_ms=50, records_max=100)
        return [(record.value or b"").decode() for records in found.values() for record in records]
    return []


async def take(reader: Reader, count: int, seconds: float = 10.0) -> list[str]:
    """Values of the next records."""
    found: list[str] = []
    give_up = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < give_up, f"{len(found)} of {count} records within {seconds} s"
        found += await read_values(reader)
    return found


async def write_until_accepted(writer: Writer, topic: str, text: str, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            await writer.write(topic, 0, [message(text)])
        except LogUnavailable:
            assert time.monotonic() < give_up, f"not accepted within {seconds} s"
            await asyncio.sleep(0.05)
        else:
            return


async def ends_in_time(writer: Writer, topic: str, count: int) -> None:
    """Writes that nobody answers are *unknown*, all of them, soon after their time-out."""
    started = time.monotonic()
    writes = [writer.write(topic, number % 2, [message("unanswered")]) for number in range(count)]
    outcomes = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 3 * TIMEOUT_MS / 1000)
    assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)
    assert time.monotonic() - started < 2 * TIMEOUT_MS / 1000


@pytest.mark.parametrize("fault", ["dropped", "frozen"])
async def test_kafka_away_and_back(proxy: Proxy, log: KafkaLog, topic: str, fault: str) -> None:
    writer, reader = await opened_writer(log), await opened_reader(log, topic)
    await writer.write(topic, 0, [message("before")])
    assert await take(reader, 1) == ["before"]
    if fault == "dropped":
        await proxy.down()
    else:
        proxy.freeze()
    reading = asyncio.create_task(take(reader, 1, seconds=20))
    await ends_in_time(writer, topic, 50)
    await asyncio.sleep(1.0)
    if fault == "dropped":
        await proxy.up()
    else:
        proxy.thaw()
    await write_until_accepted(writer, topic, "after")
    assert (await reading)[0] in ("unanswered", "after")  # what was unknown may have been written all the same
    started = time.monotonic()
    ack = await writer.write(topic, 1, [message("and on")])
    assert ack.timestamp_ms > 0
    assert time.monotonic() - started < 0.5
    # A question that was on its way when everything stood still is given up after its own time.
    while (await take(reader, 1, seconds=30))[0] != "and on":
        pass


@pytest.mark.parametrize("fault", ["dropped", "frozen"])
async def test_everything_closes_in_time_with_kafka_away(proxy: Proxy, log: KafkaLog, topic: str, prefix: str, fault: str) -> None:
    writer, assigned = await opened_writer(log), await opened_reader(log, topic, f"{prefix}.commits")
    await assigned.commit({TopicPartition(topic, 0): Committed(0, "")})
    member = log.reader("member", group=f"{prefix}.group")
    await member.start()
    joined = asyncio.Event()

    async def on_assigned(partitions: Sequence[TopicPartition]) -> None:
        joined.set()

    async def on_revoked(partitions: Sequence[TopicPartition]) -> None:
        pass

    await member.subscribe([topic], assigned=on_assigned, revoked=on_revoked)
    while not joined.is_set():
        await member.read(timeout_ms=50, records_max=10)
    await writer.write(topic, 0, [message("before")])
    if fault == "dropped":
        await proxy.down()
    else:
        proxy.freeze()
    pending = [writer.write(topic, 0, [message("never")]) for _ in range(20)]
    started = time.monotonic()
    with pytest.raises(LogUnavailable):
        await assigned.commit({TopicPartition(topic, 0): Committed(1, "")})
    with pytest.raises(LogUnavailable):
        await member.end_offsets([TopicPartition(topic, 0)])
    assert time.monotonic() - started < 4.0
    started = time.monotonic()
    await log.close()
    assert time.monotonic() - started < 5.0
    assert all(isinstance(outcome, LogUnavailable) for outcome in await asyncio.gather(*pending, return_exceptions=True))


async def test_nothing_starts_without_kafka_and_it_says_so_soon(proxy: Proxy, log: KafkaLog, prefix: str) -> None:
    await proxy.down()
    started = time.monotonic()
    for starting in (log.writer("w").start(), log.reader("r").start(), log.partitions(f"{prefix}.x"), log.create_topics([TopicSpec("x", 1, {})])):
        with pytest.raises(LogUnavailable):
            await starting
    assert time.monotonic() - started < 4.0


async def test_what_waits_for_kafka_is_bounded(proxy: Proxy, log: KafkaLog, topic: str) -> None:
    writer = await opened_writer(log)
    await writer.write(topic, 0, [message("before")])
    proxy.freeze()
    writes = [writer.write(topic, 0, [(b"k", b"x" * 10_000, [])]) for _ in range(150)]
    refused = [write for write in writes if isinstance(write, asyncio.Future) and write.done()]
    assert len(refused) == 150 - (1 << 20) // 10_001
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)
    proxy.thaw()
    await write_until_accepted(writer, topic, "after")


async def test_a_producer_out_of_sequence_is_rebuilt(log: KafkaLog, topic: str) -> None:
    writer = log.writer("writer")
    await writer.start()
    await asyncio.gather(*(writer.write(topic, number, [message(str(i)) for i in range(3)]) for number in range(2)))
    broken = writer._producer
    assert broken is not None
    broken.withdraw(topic, 0, -7)  # as after a record that was lost: the sequence has a hole
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(LogUnavailable):
            await writer.write(topic, 0, [message("lost")])
        ack = await asyncio.wait_for(writer.write(topic, 0, [message("later")]), 3)
    assert ack.base_offset == 3
    assert writer._producer is not broken
    assert [line["event"] for line in lines] == ["the producer is rebuilt"]
    assert (await writer.write(topic, 1, [message("other")])).base_offset == 3


async def test_records_that_are_gone_are_skipped_with_a_warning(kafka_address: str, log: KafkaLog, topic: str) -> None:
    writer = await opened_writer(log)
    await writer.write(topic, 0, [message(str(i)) for i in range(10)])
    administrator = AIOKafkaAdminClient(bootstrap_servers=kafka_address)
    await administrator.start()
    await administrator.delete_records({KafkaPartition(topic, 0): RecordsToDelete(before_offset=6)})
    await administrator.close()
    reader = log.reader("reader")
    await reader.start()
    await reader.assign({TopicPartition(topic, 0): 2})
    with structlog.testing.capture_logs() as lines:
        assert await take(reader, 4) == ["6", "7", "8", "9"]
    assert [(line["log_level"], line["position"], line["earliest"]) for line in lines] == [("warning", 2, 6)]


async def test_a_consumer_whose_fetching_has_died_is_replaced(log: KafkaLog, topic: str) -> None:
    writer = await opened_writer(log)
    reader = log.reader("reader")
    await reader.start()
    await reader.assign({TopicPartition(topic, 0): "earliest"})
    await writer.write(topic, 0, [message("a")])
    assert await take(reader, 1) == ["a"]
    assert reader._consumer is not None
    fetcher = reader._consumer._consumer._fetcher
    assert fetcher is not None
    fetcher._fetch_task.cancel()
    await writer.write(topic, 0, [message("b")])

    async def read_for_long() -> None:
        for _ in range(100):
            await reader.read(timeout_ms=50, records_max=10)

    with pytest.raises(LogUnavailable):
        await read_for_long()
    assert await take(reader, 1) == ["b"]


async def test_a_member_that_was_cut_off_joins_again(proxy: Proxy, log: KafkaLog, topic: str, prefix: str) -> None:
    """Longer than its session: the group has thrown it out, and it goes on at its commit."""
    writer = await opened_writer(log)
    reader = log.reader("member", group=f"{prefix}.group")
    await reader.start()
    events: list[str] = []

    async def on_assigned(partitions: Sequence[TopicPartition]) -> None:
        events.append(f"assigned {len(partitions)}")

    async def on_revoked(partitions: Sequence[TopicPartition]) -> None:
        events.append(f"revoked {len(partitions)}")

    await reader.subscribe([topic], assigned=on_assigned, revoked=on_revoked)
    await writer.write(topic, 0, [message("a"), message("b")])
    assert await take(reader, 2) == ["a", "b"]
    await reader.commit({TopicPartition(topic, 0): Committed(1, "")})
    await proxy.down()
    cut_off = time.monotonic()
    while time.monotonic() - cut_off < 7.0:  # a session of 6 s: no shorter one is allowed
        assert await read_values(reader) == []
    await proxy.up()
    await write_until_accepted(writer, topic, "c")
    seen: list[str] = []
    while seen[-2:] != ["b", "c"]:  # it may read on as before until its heartbeat is answered
        assert time.monotonic() - cut_off < 20.0, seen
        seen += await read_values(reader)
    assert events == ["assigned 2", "revoked 2", "assigned 2"]


@pytest.mark.parametrize("kind", ["reader", "writer", "questions", "commits"])
async def test_a_start_that_is_cancelled_at_any_moment_leaves_no_connection_open(log: KafkaLog, topic: str, prefix: str, kind: str) -> None:
    """An open connection that nobody has any more warns, and warnings are errors here."""
    starts: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "reader": lambda: log.reader("reader").start(),
        "writer": lambda: log.writer("writer").start(),
        "questions": lambda: log.partitions(topic),
        "commits": lambda: log.reader("commits", group=f"{prefix}.group").committed(TopicPartition(topic, 0)),
    }
    for step in range(60):
        starting = asyncio.create_task(starts[kind]())
        await asyncio.sleep(step * 0.0003)
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
    gc.collect()

"""The in-process log where Kafka cannot be watched so closely: retention, compaction, clocks, fairness, membership."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
import structlog

from broker.log import Committed, Message, TopicPartition
from broker.memory import MemoryLog, MemoryReader
from broker.memory_group import assign_ranges
from broker.memory_partition import RECORD_OVERHEAD_BYTES, RETENTION_BYTES, MemoryPartition
from schemas.errors import LogUnavailable, TooLarge
from schemas.names import TopicSpec

DAY_MS = 24 * 3600 * 1000


class Clock:
    """Unix milliseconds that move when told."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000.0

    def __call__(self) -> float:
        return self.now_ms


def partition(clock: Clock, **config: str) -> MemoryPartition:
    return MemoryPartition("t", 0, {name.replace("_", "."): value for name, value in config.items()}, clock)


def kept(log: MemoryPartition) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.value) for record in log.read(0, 1_000_000)]


def of_size(size: int) -> Message:
    return None, b"x" * (size - RECORD_OVERHEAD_BYTES), []


def test_retention_by_bytes_drops_the_oldest_and_moves_the_start() -> None:
    log = partition(Clock(), retention_bytes="10000")
    for _ in range(1_000):
        log.append([of_size(200)])
        held = kept(log)
        assert 200 * len(held) <= 10_000
        assert [offset for offset, _ in held] == list(range(log.start, log.end))
    assert log.end == 1_000
    assert 200 * len(kept(log)) > 10_000 * 3 // 4  # no more than it has to


def test_without_a_configured_retention_the_process_is_still_bounded() -> None:
    log = partition(Clock(), max_message_bytes=str(32 << 20))
    for _ in range(12):
        log.append([of_size(8 << 20)])
    assert sum(len(value or b"") for _, value in kept(log)) <= RETENTION_BYTES


def test_a_record_larger_than_the_retention_is_still_readable() -> None:
    log = partition(Clock(), retention_bytes="1000")
    log.append([of_size(5_000)])
    assert [offset for offset, _ in kept(log)] == [0]


def test_retention_by_time() -> None:
    clock = Clock()
    log = partition(clock, retention_ms="8000")
    for _ in range(100):
        log.append([(None, b"x", [])])
        clock.now_ms += 1_000
    oldest = log.read(0, 1)[0].timestamp
    assert clock.now_ms - 12_000 < oldest
    assert len(kept(log)) >= 8


def test_retention_can_be_unlimited_in_time() -> None:
    clock = Clock()
    log = partition(clock, retention_ms="-1")
    log.append([(None, b"x", [])])
    clock.now_ms += 1_000 * DAY_MS
    log.append([(None, b"y", [])])
    assert log.start == 0


def test_compaction_keeps_the_last_of_each_key_and_leaves_gaps() -> None:
    log = partition(Clock(), cleanup_policy="compact")
    for number in range(1_000):
        log.append([(b"k%d" % (number % 3), b"%d" % number, [])])
        assert len(kept(log)) <= 3 + 64 + 3 + 1
    last = {record.key: record.value for record in log.read(0, 10_000)}
    assert last == {b"k0": b"999", b"k1": b"997", b"k2": b"998"}
    held = [offset for offset, _ in kept(log)]
    for offset in range(log.end):  # reading from inside a gap finds what comes next
        assert [record.offset for record in log.read(offset, 1)] == [next(at for at in held if at >= offset)]


def test_compaction_is_not_retention() -> None:
    clock = Clock()
    log = partition(clock, cleanup_policy="compact", retention_ms="1000", retention_bytes="1000")
    log.append([(b"a", b"x" * 2_000, [])])
    clock.now_ms += DAY_MS
    log.append([(b"b", b"y", [])])
    assert [offset for offset, _ in kept(log)] == [0, 1]


def test_tombstones_go_after_their_time() -> None:
    clock = Clock()
    log = partition(clock, cleanup_policy="compact")

    def churn() -> None:
        for number in range(200):
            log.append([(b"busy", b"%d" % number, [])])

    log.append([(b"gone", b"x", []), (b"gone", None, [])])
    churn()
    assert (1, None) in kept(log)
    clock.now_ms += 2 * DAY_MS
    churn()
    assert (1, None) not in kept(log)


def test_a_compacted_topic_needs_keys() -> None:
    log = partition(Clock(), cleanup_policy="compact")
    with pytest.raises(LogUnavailable):
        log.append([(b"a", b"", []), (None, b"", [])])
    assert log.end == 0


def test_a_write_is_all_or_nothing() -> None:
    log = partition(Clock(), max_message_bytes="1000")
    with pytest.raises(TooLarge):
        log.append([of_size(500), of_size(1_001)])
    assert log.end == 0
    log.append([of_size(1_000)])
    assert log.end == 1


def test_headers_count_and_are_kept() -> None:
    log = partition(Clock(), max_message_bytes="1000")
    with pytest.raises(TooLarge):
        log.append([(None, b"", [("name", b"x" * 1_000)])])
    headers = [("a", b"1")]
    log.append([(None, b"", headers)])
    headers.append(("b", b"2"))  # the writer's list is the writer's
    assert log.read(0, 1)[0].headers == (("a", b"1"),)


def test_append_time_is_the_logs_clock() -> None:
    clock = Clock()
    assert partition(clock, message_timestamp_type="LogAppendTime").append([(None, b"", [])]).timestamp_ms == clock.now_ms
    created = partition(clock)
    assert created.append([(None, b"", [])]).timestamp_ms == -1
    assert created.read(0, 1)[0].timestamp == clock.now_ms


@pytest.mark.parametrize("members", [1, 2, 3, 5, 8, 11])
def test_ranges_cover_every_partition_once_and_equal_topics_equally(members: int) -> None:
    names = [f"m{number:02}" for number in range(members)]
    shares = assign_ranges({name: ("a", "b") if name != "m01" else ("a",) for name in names}, lambda topic: 8)
    assert sorted(p for share in shares.values() for p in share) == sorted(TopicPartition(t, n) for t in "ab" for n in range(8))
    sizes = [len([p for p in shares[name] if p.topic == "a"]) for name in names]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    assert not [p for p in shares.get("m01", ()) if p.topic == "b"]


async def opened(log: MemoryLog, **options: str) -> MemoryReader:
    reader = log.reader("reader", **options)
    await reader.start()
    return reader


async def join(reader: MemoryReader, events: list[str], topic: str = "t") -> None:
    async def assigned(partitions: Sequence[TopicPartition]) -> None:
        events.append("+" + "".join(str(p.partition) for p in partitions))

    async def revoked(partitions: Sequence[TopicPartition]) -> None:
        events.append("-" + "".join(str(p.partition) for p in partitions))

    await reader.subscribe([topic], assigned=assigned, revoked=revoked)


async def until(events: list[str], *last: str) -> None:
    give_up = time.monotonic() + 5
    while tuple(events[-len(last) :]) != last:
        assert time.monotonic() < give_up, events
        await asyncio.sleep(0)


@pytest.fixture
async def log() -> MemoryLog:
    made = MemoryLog(session_timeout_ms=50)
    await made.create_topics([TopicSpec("t", 4, {})])
    return made


async def test_a_busy_partition_does_not_starve_the_others(log: MemoryLog) -> None:
    writer, reader = log.writer("w"), await opened(log)
    await writer.start()
    await reader.assign({TopicPartition("t", number): "earliest" for number in range(4)})
    for number in range(4):
        await writer.write("t", number, [(None, b"x", [])] * 100)
    seen = {p.partition for _ in range(4) for p in await reader.read(timeout_ms=0, records_max=10)}
    assert seen == {0, 1, 2, 3}


async def test_a_static_member_that_stays_away_loses_its_partitions(log: MemoryLog) -> None:
    first, second = await opened(log, group="g", instance_id="a"), await opened(log, group="g", instance_id="b")
    events: list[str] = []
    await join(first, events)
    await until(events, "+0123")
    await join(second, [])
    await until(events, "-0123", "+01")
    await second.close()
    await until(events, "-01", "+0123")


async def test_a_member_that_leaves_is_replaced_at_once(log: MemoryLog) -> None:
    first, second = await opened(log, group="g"), await opened(log, group="g")
    events: list[str] = []
    await join(first, events)
    await join(second, [])
    await until(events, "+01")
    await second.close()
    await asyncio.wait_for(until(events, "-01", "+0123"), 0.04)


async def test_the_same_instance_id_twice_fences_the_first(log: MemoryLog) -> None:
    first, second = await opened(log, group="g", instance_id="a"), await opened(log, group="g", instance_id="a")
    events: list[str] = []
    await join(first, [])
    await first.read(timeout_ms=1, records_max=1)
    waiting = asyncio.create_task(first.read(timeout_ms=5_000, records_max=1))
    await asyncio.sleep(0)
    await join(second, events)
    with pytest.raises(LogUnavailable, match="instance id"):
        await waiting
    await until(events, "+0123")
    await first.close()  # must not take the second's place away
    await asyncio.sleep(0.06)
    assert events == ["+0123"]


async def test_topics_that_come_and_go_are_shared_again(log: MemoryLog) -> None:
    reader = await opened(log, group="g")
    events: list[str] = []
    await join(reader, events, "later")
    await until(events, "+")
    await log.create_topics([TopicSpec("later", 2, {})])
    await until(events, "+01")
    await log.delete_topics(["later"])
    await until(events, "-01", "+")


async def test_commits_last_longer_than_members(log: MemoryLog) -> None:
    reader = await opened(log, group="g")
    await reader.assign({TopicPartition("t", 0): 0})
    await reader.commit({TopicPartition("t", 0): Committed(5, "m")})
    await reader.close()
    assert await (await opened(log, group="g")).committed(TopicPartition("t", 0)) == Committed(5, "m")


async def test_retention_passes_a_slow_reader_with_a_warning(log: MemoryLog) -> None:
    await log.create_topics([TopicSpec("short", 1, {"retention.bytes": "1000"})])
    writer, reader = log.writer("w"), await opened(log)
    await writer.start()
    await reader.assign({TopicPartition("short", 0): 0})
    for _ in range(30):
        await writer.write("short", 0, [of_size(200)])
    with structlog.testing.capture_logs() as lines:
        found = await reader.read(timeout_ms=0, records_max=100)
    offsets = [record.offset for records in found.values() for record in records]
    assert offsets[0] > 20
    assert offsets[-1] == 29
    assert [(line["position"], line["earliest"]) for line in lines] == [(0, offsets[0])]


async def test_a_closed_log_wakes_who_waits(log: MemoryLog) -> None:
    reader = await opened(log)
    await reader.assign({TopicPartition("t", 0): 0})
    waiting = asyncio.create_task(reader.read(timeout_ms=60_000, records_max=1))
    await asyncio.sleep(0)
    await log.close()
    assert not await asyncio.wait_for(waiting, 1)

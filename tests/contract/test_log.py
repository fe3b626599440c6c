"""What both logs promise: every method of broker/log.py, on the in-process log and on a genuine Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

import pytest

from broker.kafka import KafkaLog
from broker.log import Committed, Log, Message, Reader, Record, TopicPartition, Writer
from broker.memory import MemoryLog
from schemas.errors import LogUnavailable, TooLarge
from schemas.names import TopicSpec

LIMIT_BYTES = 2 << 20
STAMPED = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(LIMIT_BYTES)}
SESSION_TIMEOUT_MS = 6_000


def message(text: str, key: bytes | None = b"k") -> Message:
    return key, text.encode(), []


def values(records: Sequence[Record]) -> list[str]:
    return [(record.value or b"").decode() for record in records]


async def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


async def take(reader: Reader, count: int, seconds: float = 10.0) -> list[Record]:
    """The next `count` records, in the order in which they are handed out."""
    found: list[Record] = []
    give_up = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < give_up, f"{len(found)} of {count} records within {seconds} s"
        for records in (await reader.read(timeout_ms=100, records_max=count - len(found))).values():
            found += records
    return found


class Group:
    """A member of a group whose hooks note what happens, with a task that reads (a rebalance needs members that read)."""

    def __init__(self, reader: Reader, read_timeout_ms: int = 50) -> None:
        self.reader = reader
        self._read_timeout_ms = read_timeout_ms
        self.held: set[TopicPartition] = set()
        self.assignments = 0
        self.events: list[str] = []
        self.records: list[Record] = []
        self._task: asyncio.Task[None] | None = None

    async def join(self, *topics: str) -> None:
        await self.reader.start()

        async def assigned(partitions: Sequence[TopicPartition]) -> None:
            await self.assigned(partitions)

        async def revoked(partitions: Sequence[TopicPartition]) -> None:
            await self.revoked(partitions)

        await self.reader.subscribe(topics, assigned=assigned, revoked=revoked)  # so that a test may change the hooks later
        self._task = asyncio.create_task(self._read())

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append("assigned")
        self.held = set(partitions)
        self.assignments += 1
        await asyncio.sleep(0.02)  # records that came before the hook has ended would be noted before this
        self.events.append("ready")

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append("revoked")
        assert set(partitions) == self.held
        self.held = set()

    async def _read(self) -> None:
        while True:
            for records in (await self.reader.read(timeout_ms=self._read_timeout_ms, records_max=100)).values():
                self.events.append("records")
                self.records += records

    async def stop_reading(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def close(self) -> None:
        await self.stop_reading()
        await self.reader.close()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[Log]:
    if request.param == "kafka":
        made = KafkaLog(request.getfixturevalue("kafka_address"), session_timeout_ms=SESSION_TIMEOUT_MS, request_timeout_ms=2_000)
    else:
        made = MemoryLog(session_timeout_ms=SESSION_TIMEOUT_MS)
    yield made
    await asyncio.wait_for(made.close(), 15)


@pytest.fixture
async def topic(log: Log, prefix: str) -> str:
    """Three partitions, stamped by the log."""
    name = f"{prefix}.topic"
    await log.create_topics([TopicSpec(name, 3, STAMPED)])
    return name


@pytest.fixture
async def writer(log: Log) -> Writer:
    made = log.writer("writer")
    await made.start()
    return made


async def reader_at(log: Log, topic: str, *partitions: int, group: str | None = None) -> Reader:
    reader = log.reader("reader", group=group)
    await reader.start()
    await reader.assign({TopicPartition(topic, partition): "earliest" for partition in partitions})
    return reader


async def test_topics_are_created_once_and_deleted(log: Log, prefix: str) -> None:
    names = [f"{prefix}.a", f"{prefix}.b"]
    specs = [TopicSpec(names[0], 2, {}), TopicSpec(names[1], 5, {"cleanup.policy": "compact"})]
    assert await log.partitions(names[0]) == 0
    await asyncio.gather(log.create_topics(specs), log.create_topics(specs))  # two processes start at once
    assert [await log.partitions(name) for name in names] == [2, 5]
    await log.create_topics([TopicSpec(names[0], 9, {})])  # what exists stays as it is
    assert await log.partitions(names[0]) == 2
    assert (await log.topics(f"{prefix}."), await log.topics(f"{prefix}.b"), await log.topics(f"{prefix}.c")) == (names, names[1:], [])
    await log.delete_topics([*names, f"{prefix}.never"])
    assert ([await log.partitions(name) for name in names], await log.topics(f"{prefix}.")) == ([0, 0], [])


async def test_new_topics_can_be_used_at_once(log: Log, prefix: str, writer: Writer) -> None:
    for number in range(3):
        name = f"{prefix}.new{number}"
        await log.create_topics([TopicSpec(name, 4, {})])
        acks = await asyncio.wait_for(asyncio.gather(*(writer.write(name, p, [message("x")]) for p in range(4))), 5)
        assert [ack.base_offset for ack in acks] == [0, 0, 0, 0]


async def test_records_come_back_as_they_were_written(log: Log, topic: str, writer: Writer) -> None:
    written: list[Message] = [
        (b"key", b"value", [("a", b"1"), ("b", b""), ("a", b"2")]),
        (None, b"no key", []),
        (b"tombstone", None, ()),
        (b"", b"", [("\u00fc", b"\xff\x00")]),
    ]
    ack = await writer.write(topic, 1, written)
    reader = await reader_at(log, topic, 0, 1, 2)
    records = await take(reader, len(written))
    assert [(r.key, r.value, [tuple(h) for h in r.headers]) for r in records] == [(k, v, list(h)) for k, v, h in written]
    assert [(r.topic, r.partition, r.offset) for r in records] == [(topic, 1, ack.base_offset + i) for i in range(len(written))]


async def test_the_logs_time_is_in_the_ack_and_in_the_record(log: Log, topic: str, writer: Writer) -> None:
    before_ms = int(time.time() * 1000)
    ack = await writer.write(topic, 0, [message("a"), message("b")])
    after_ms = time.time() * 1000
    assert before_ms <= ack.timestamp_ms <= after_ms
    records = await take(await reader_at(log, topic, 0), 2)
    assert [record.timestamp for record in records] == [ack.timestamp_ms] * 2


async def test_without_append_time_the_ack_has_none_and_the_record_the_writers(log: Log, prefix: str, writer: Writer) -> None:
    name = f"{prefix}.created"
    await log.create_topics([TopicSpec(name, 1, {"message.timestamp.type": "CreateTime"})])
    before_ms = int(time.time() * 1000)
    ack = await writer.write(name, 0, [message("a")])
    assert ack.timestamp_ms == -1
    (record,) = await take(await reader_at(log, name, 0), 1)
    assert before_ms <= record.timestamp <= time.time() * 1000


async def test_acks_number_the_records_of_each_write(log: Log, topic: str, writer: Writer) -> None:
    writes = [writer.write(topic, 0, [message(f"{i}.{j}") for j in range(1 + i % 3)]) for i in range(200)]
    bases = [ack.base_offset for ack in await asyncio.gather(*writes)]
    expected, at = [], 0
    for i in range(200):
        expected.append(at)
        at += 1 + i % 3
    assert bases == expected
    assert (await writer.write(topic, 0, [])).base_offset == -1


async def test_order_holds_per_partition_under_concurrent_writes(log: Log, topic: str, writer: Writer) -> None:
    async def write(partition: int, name: str) -> None:
        for i in range(60):
            pending = writer.write(topic, partition, [message(f"{name} {i}", b"x" * 5_000)])
            if i % 7 == 0:
                await pending

    reader = await reader_at(log, topic, 0, 1, 2)
    tasks = [asyncio.create_task(write(partition, name)) for partition in range(3) for name in "ab"]
    records = await take(reader, 360)
    await asyncio.gather(*tasks)
    for partition in range(3):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(120))
        for name in "ab":
            assert [v for v in values(mine) if v.startswith(name)] == [f"{name} {i}" for i in range(60)]


async def test_writes_at_every_moment_are_numbered_right(log: Log, topic: str, writer: Writer) -> None:
    """A write in each turn of the loop meets batches that are open, just taken, on the wire and just acknowledged."""
    writes = []
    for i in range(1_500):
        writes.append(writer.write(topic, 0, [message(str(i))]))
        if i % 3 == 0:
            writer.write(topic, 1, [message("beside")])
        await asyncio.sleep(0 if i % 50 else 0.002)
    assert [ack.base_offset for ack in await asyncio.gather(*writes)] == list(range(1_500))
    assert values(await take(await reader_at(log, topic, 0), 1_500)) == [str(i) for i in range(1_500)]


async def test_records_up_to_two_mebibytes(log: Log, topic: str, writer: Writer) -> None:
    largest = b"x" * (LIMIT_BYTES - 200)
    small = [writer.write(topic, 0, [message(f"before {i}")]) for i in range(3)]
    large = writer.write(topic, 0, [(b"k", largest, [])])
    too_large = writer.write(topic, 0, [(b"k", b"x" * LIMIT_BYTES, [])])
    after = writer.write(topic, 0, [message("after")])
    with pytest.raises(TooLarge):
        await too_large
    assert [ack.base_offset for ack in await asyncio.gather(*small, large, after)] == [0, 1, 2, 3, 4]
    records = await take(await reader_at(log, topic, 0), 5)
    assert records[3].value == largest
    assert values(records[:3] + records[4:]) == ["before 0", "before 1", "before 2", "after"]


async def test_a_topic_with_a_smaller_limit_refuses_only_what_is_over_it(log: Log, prefix: str, writer: Writer) -> None:
    name = f"{prefix}.small"
    await log.create_topics([TopicSpec(name, 1, {"max.message.bytes": "2000"})])
    writes = [writer.write(name, 0, [(b"k", b"x" * (3_000 if i in (2, 5) else 500), [])]) for i in range(9)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, TooLarge)] == [2, 5]
    assert [o.base_offset for o in outcomes if not isinstance(o, BaseException)] == list(range(7))
    assert (await writer.write(name, 0, [message("later")])).base_offset == 7
    records = await take(await reader_at(log, name, 0), 8)
    assert [len(record.value or b"") for record in records[:7]] == [500] * 7


async def test_writes_to_what_does_not_exist_are_unavailable(log: Log, topic: str, prefix: str, writer: Writer) -> None:
    unknown = [writer.write(topic, 3, [message("x")]), writer.write(f"{prefix}.never", 0, [message("x")])]
    for outcome in await asyncio.wait_for(asyncio.gather(*unknown, return_exceptions=True), 12):
        assert isinstance(outcome, LogUnavailable)
    assert (await writer.write(topic, 2, [message("x")])).base_offset == 0


async def test_a_closed_writer_has_flushed_and_takes_nothing(log: Log, topic: str, writer: Writer) -> None:
    writes = [writer.write(topic, 0, [message(str(i))]) for i in range(100)]
    await writer.close()
    assert [(await write).base_offset for write in writes] == list(range(100))
    with pytest.raises(LogUnavailable):
        await writer.write(topic, 0, [message("x")])
    await writer.close()


async def test_a_write_wakes_a_waiting_reader(log: Log, topic: str, writer: Writer) -> None:
    reader = await reader_at(log, topic, 0)
    reading = asyncio.create_task(reader.read(timeout_ms=10_000, records_max=10))
    await asyncio.sleep(0.05)
    await writer.write(topic, 0, [message("x")])
    found = await asyncio.wait_for(reading, 1.0)
    assert {(p.topic, p.partition): values(r) for p, r in found.items()} == {(topic, 0): ["x"]}


async def test_an_empty_read_waits_for_its_time(log: Log, topic: str) -> None:
    reader = await reader_at(log, topic, 0)
    await reader.read(timeout_ms=50, records_max=10)
    started = time.monotonic()
    assert not await reader.read(timeout_ms=120, records_max=10)
    assert 0.1 < time.monotonic() - started < 0.6


async def test_reads_take_no_more_than_asked_and_lose_nothing(log: Log, topic: str, writer: Writer) -> None:
    for partition in range(3):
        await writer.write(topic, partition, [message(f"{partition}.{i}") for i in range(40)])
    reader = await reader_at(log, topic, 0, 1, 2)
    seen: list[Record] = []
    while len(seen) < 120:
        batch = [record for records in (await reader.read(timeout_ms=200, records_max=7)).values() for record in records]
        assert len(batch) <= 7
        seen += batch
    for partition in range(3):
        assert values([r for r in seen if r.partition == partition]) == [f"{partition}.{i}" for i in range(40)]


async def test_start_positions(log: Log, topic: str, writer: Writer) -> None:
    await writer.write(topic, 0, [message(f"old {i}") for i in range(5)])
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    reader = log.reader("reader")
    await reader.start()
    await reader.assign({first: 3, second: "earliest"})
    assert [await reader.position(first), await reader.position(second)] == [3, 0]
    assert values(await take(reader, 2)) == ["old 3", "old 4"]
    assert await reader.position(first) == 5
    other = log.reader("other")
    await other.start()
    await other.assign({first: "latest"})
    await writer.write(topic, 0, [message("new")])
    assert values(await take(other, 1)) == ["new"]
    await other.seek(first, "earliest")
    assert values(await take(other, 1)) == ["old 0"]
    await other.seek(first, 4)
    assert values(await take(other, 2)) == ["old 4", "new"]
    with pytest.raises(ValueError, match="not assigned"):
        await other.seek(second, 0)
    with pytest.raises(ValueError, match="not assigned"):
        await other.position(second)


async def test_a_new_assignment_replaces_the_old_and_keeps_the_place_of_what_stays(log: Log, topic: str, writer: Writer) -> None:
    parts = [TopicPartition(topic, number) for number in range(3)]
    for number in range(3):
        await writer.write(topic, number, [message(f"{number}.{i}") for i in range(4)])
    reader = log.reader("reader")
    await reader.start()
    await reader.assign({parts[0]: 2, parts[1]: "latest"})
    assert values(await take(reader, 2)) == ["0.2", "0.3"]
    await writer.write(topic, 1, [message("1.4")])
    await reader.assign({parts[1]: "latest", parts[2]: 3})
    assert sorted(values(await take(reader, 2))) == ["1.4", "2.3"]
    await writer.write(topic, 0, [message("0.4")])
    await writer.write(topic, 1, [message("1.5")])
    assert values(await take(reader, 1)) == ["1.5"]
    with pytest.raises(ValueError, match="not assigned"):
        await reader.position(parts[0])
    await reader.assign({parts[1]: 0})  # an offset that is given always holds
    assert values(await take(reader, 1)) == ["1.0"]
    await reader.assign({})
    assert not await reader.read(timeout_ms=30, records_max=10)


async def test_a_position_outside_the_log_goes_to_the_earliest(log: Log, topic: str, writer: Writer) -> None:
    await writer.write(topic, 0, [message("a"), message("b")])
    reader = log.reader("reader")
    await reader.start()
    await reader.assign({TopicPartition(topic, 0): 1_000})
    assert values(await take(reader, 2)) == ["a", "b"]


async def test_ends_and_offsets_by_time(log: Log, topic: str, writer: Writer) -> None:
    part = TopicPartition(topic, 0)
    acks = []
    for i in range(3):
        acks.append(await writer.write(topic, 0, [message(str(i))]))
        await asyncio.sleep(0.01)
    reader = log.reader("reader")
    await reader.start()  # no assignment is needed to ask
    ends = await reader.end_offsets([part, TopicPartition(topic, 1)])
    assert {p.partition: offset for p, offset in ends.items()} == {0: 3, 1: 0}
    assert await reader.offset_at(part, 0) == 0
    assert await reader.offset_at(part, acks[1].timestamp_ms) == 1
    assert await reader.offset_at(part, acks[1].timestamp_ms + 1) == 2
    assert await reader.offset_at(part, acks[2].timestamp_ms + 1) == 3
    assert await reader.offset_at(TopicPartition(topic, 1), 0) == 0
    assert not await reader.end_offsets([])


async def test_an_assigned_reader_commits_for_its_group(log: Log, topic: str, prefix: str) -> None:
    part, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    reader = await reader_at(log, topic, 0, group=f"{prefix}.group")
    assert await reader.committed(part) is None
    await reader.commit({part: Committed(7, "m" * 4_000), other: Committed(9, "")})
    assert await reader.committed(part) == Committed(7, "m" * 4_000)
    assert await reader.committed(other) is None  # not assigned: left out without complaint
    await reader.commit({part: Committed(8, "")})
    second = log.reader("second", group=f"{prefix}.group")
    await second.start()
    assert await second.committed(part) == Committed(8, "")
    elsewhere = log.reader("elsewhere", group=f"{prefix}.other")
    await elsewhere.start()
    assert await elsewhere.committed(part) is None


async def test_commits_that_cannot_be(log: Log, topic: str, prefix: str) -> None:
    part = TopicPartition(topic, 0)
    reader = await reader_at(log, topic, 0)
    with pytest.raises(ValueError, match="group"):
        await reader.commit({part: Committed(1, "")})
    with pytest.raises(ValueError, match="group"):
        await reader.subscribe([topic], assigned=Group(reader).assigned, revoked=Group(reader).revoked)
    member = await reader_at(log, topic, 0, group=f"{prefix}.group")
    with pytest.raises(ValueError, match="metadata"):
        await member.commit({part: Committed(1, "m" * 5_000)})


async def test_a_member_starts_at_the_commit_else_at_the_earliest(log: Log, topic: str, prefix: str, writer: Writer) -> None:
    for number in range(2):
        await writer.write(topic, number, [message(f"{number}.{i}") for i in range(3)])
    before = await reader_at(log, topic, 0, group=f"{prefix}.group")
    await before.commit({TopicPartition(topic, 0): Committed(2, "done: 2")})
    await before.close()
    member = Group(log.reader("member", group=f"{prefix}.group"))
    await member.join(topic)
    await until(lambda: len(member.records) == 4, "the records that were not done")
    assert sorted(values(member.records)) == ["0.2", "1.0", "1.1", "1.2"]
    assert member.events[:3] == ["assigned", "ready", "records"]
    assert member.held == {TopicPartition(topic, number) for number in range(3)}
    assert await member.reader.committed(TopicPartition(topic, 0)) == Committed(2, "done: 2")
    await member.close()


async def test_the_hook_may_seek_before_the_first_record(log: Log, topic: str, prefix: str, writer: Writer) -> None:
    await writer.write(topic, 0, [message(str(i)) for i in range(5)])
    reader = log.reader("member", group=f"{prefix}.group")
    await reader.start()
    positions: list[int] = []

    async def assigned(partitions: Sequence[TopicPartition]) -> None:
        positions.append(await reader.position(TopicPartition(topic, 0)))
        await reader.seek(TopicPartition(topic, 0), 3)

    async def revoked(partitions: Sequence[TopicPartition]) -> None:
        pass

    await reader.subscribe([topic], assigned=assigned, revoked=revoked)
    assert values(await take(reader, 2)) == ["3", "4"]
    assert positions == [0]


async def test_no_record_passes_the_hook_of_a_rebalance(log: Log, topic: str, prefix: str, writer: Writer) -> None:
    """Not even through a read that was waiting when the rebalance began."""
    first, second = (Group(log.reader(name, group=f"{prefix}.group"), read_timeout_ms=5_000) for name in ("first", "second"))

    async def assigned(partitions: Sequence[TopicPartition]) -> None:
        first.events.append("assigned")
        first.held = set(partitions)
        await asyncio.gather(*(writer.write(topic, number, [message("x")]) for number in range(3)))
        await asyncio.sleep(0.2)
        first.events.append("ready")

    await first.join(topic)
    await until(lambda: first.events == ["assigned", "ready"], "the first member is ready")
    first.assigned = assigned
    await asyncio.sleep(0.05)
    await second.join(topic)
    await until(lambda: "records" in first.events, "the first member reads its share")
    assert first.events[:6] == ["assigned", "ready", "revoked", "assigned", "ready", "records"]
    await asyncio.gather(first.close(), second.close())


async def test_a_defect_in_a_hook_reaches_the_owner(log: Log, topic: str, prefix: str) -> None:
    reader = log.reader("member", group=f"{prefix}.group")
    await reader.start()

    async def broken(partitions: Sequence[TopicPartition]) -> None:
        raise ZeroDivisionError

    await reader.subscribe([topic], assigned=broken, revoked=broken)
    with pytest.raises(ZeroDivisionError):
        await take(reader, 1)


async def test_two_members_share_and_hand_over(log: Log, topic: str, prefix: str, writer: Writer) -> None:
    """The first commits what it did when its partitions are revoked; the second goes on there; after it left, the first has all again."""
    twin = f"{prefix}.twin"
    await log.create_topics([TopicSpec(twin, 3, STAMPED)])
    first, second = (Group(log.reader(name, group=f"{prefix}.group")) for name in ("first", "second"))

    async def revoked(partitions: Sequence[TopicPartition]) -> None:
        await Group.revoked(first, partitions)
        await first.reader.commit({p: Committed(await first.reader.position(p), "handed over") for p in partitions})

    first.revoked = revoked
    await first.join(topic, twin)
    await until(lambda: len(first.held) == 6, "the first member has everything")
    for number in range(3):
        await writer.write(topic, number, [message(f"before {number}")])
    await until(lambda: len(first.records) == 3, "the first member reads")
    await second.join(topic, twin)
    await until(lambda: len(second.held) > 0 and len(first.held) + len(second.held) == 6, "both have a share")
    assert not first.held & second.held
    for member in (first, second):  # equal topics are cut equally: a shard is owned as a whole
        assert {p.partition for p in member.held if p.topic == topic} == {p.partition for p in member.held if p.topic == twin}
    for number in range(3):
        await writer.write(topic, number, [message(f"after {number}")])
    await until(lambda: len(first.records) + len(second.records) == 6, "each record is read once")
    assert sorted(values(first.records + second.records)) == sorted(f"{when} {n}" for when in ("before", "after") for n in range(3))
    assert {r.partition for r in second.records} == {p.partition for p in second.held}
    moved = next(iter(p for p in second.held if p.topic == topic))
    assert await second.reader.committed(moved) == Committed(1, "handed over")
    await second.close()
    await until(lambda: len(first.held) == 6, "the first member has everything again", SESSION_TIMEOUT_MS / 1000 + 5)
    await first.close()


async def test_a_commit_after_the_partitions_are_gone_is_no_error(log: Log, topic: str, prefix: str) -> None:
    first, second = (Group(log.reader(name, group=f"{prefix}.group")) for name in ("first", "second"))
    await first.join(topic)
    await until(lambda: len(first.held) == 3, "the first member has everything")
    await second.join(topic)
    await until(lambda: len(second.held) > 0 and len(first.held) + len(second.held) == 3, "both have a share")
    gone = next(iter(second.held))
    await first.reader.commit({gone: Committed(99, "too late")})
    assert await second.reader.committed(gone) is None
    await asyncio.gather(first.close(), second.close())


async def test_a_member_commits_what_it_has_not_subscribed_to(log: Log, topic: str, prefix: str) -> None:
    """What the owner of a shard has read beside it, for tools that show lag. Of what it has subscribed to, only what is assigned counts."""
    beside = f"{prefix}.beside"
    await log.create_topics([TopicSpec(beside, 3, STAMPED)])
    first, second = (Group(log.reader(name, group=f"{prefix}.group")) for name in ("first", "second"))
    await first.join(topic)
    await until(lambda: len(first.held) == 3, "the first member has everything")
    await second.join(topic)
    await until(lambda: len(second.held) > 0 and len(first.held) + len(second.held) == 3, "both have a share")
    mine, others = next(iter(first.held)), next(iter(second.held))
    free = TopicPartition(beside, others.partition)
    await first.reader.commit({mine: Committed(3, "mine"), others: Committed(4, "not mine"), free: Committed(5, "read beside")})
    found = [await second.reader.committed(partition) for partition in (mine, others, free, TopicPartition(beside, mine.partition))]
    assert found == [Committed(3, "mine"), None, Committed(5, "read beside"), None]
    await asyncio.gather(first.close(), second.close())


async def test_a_static_member_that_comes_back_has_its_partitions_back(log: Log, topic: str, prefix: str, writer: Writer) -> None:
    first = Group(log.reader("first", group=f"{prefix}.group", instance_id="one"))
    second = Group(log.reader("second", group=f"{prefix}.group", instance_id="two"))
    await first.join(topic)
    await until(lambda: len(first.held) == 3, "the first member has everything")
    await second.join(topic)
    await until(lambda: len(second.held) > 0 and len(first.held) + len(second.held) == 3, "both have a share")
    before, undisturbed = set(second.held), first.assignments
    await second.close()
    restarted = Group(log.reader("second", group=f"{prefix}.group", instance_id="two"))
    started = time.monotonic()
    await restarted.join(topic)
    await until(lambda: len(restarted.held) > 0, "the restarted member has partitions", SESSION_TIMEOUT_MS / 1000)
    assert restarted.held == before
    assert time.monotonic() - started < 2.0
    assert first.assignments == undisturbed
    part = next(iter(before))
    await writer.write(topic, part.partition, [message("x")])
    await until(lambda: values(restarted.records) == ["x"], "the restarted member reads")
    await asyncio.gather(first.close(), restarted.close())


async def test_a_closed_reader_is_unavailable(log: Log, topic: str) -> None:
    reader = await reader_at(log, topic, 0)
    waiting = asyncio.create_task(reader.read(timeout_ms=10_000, records_max=1))
    await asyncio.sleep(0.05)
    await reader.close()
    assert not await asyncio.wait_for(waiting, 2)
    with pytest.raises(LogUnavailable):
        await reader.read(timeout_ms=10, records_max=1)
    await reader.close()

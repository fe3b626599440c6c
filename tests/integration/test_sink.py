"""The sink between genuine Kafka and genuine Valkey: first wins, outages, losses, garbage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as redis
from prometheus_client import CollectorRegistry

from broker.kafka import KafkaLog
from broker.log import Committed, Log, Reader, Record, TopicPartition, Writer
from broker.memory import MemoryLog
from broker.redis_store import RedisStore
from broker.sink import Sink, SinkSettings
from broker.store import Store
from schemas.errors import LogUnavailable, StoreUnavailable
from schemas.names import Names
from schemas.terminal import JSON_TYPE, TERMINAL_VERSION, Terminal, encode_terminal

SHARDS = 2
SETTINGS = SinkSettings(check_interval_ms=50, retry_ms_max=100, read_wait_ms=20, commit_interval_ms=20)


def terminal(request_id: str, outcome: str = "completed") -> bytes:
    return encode_terminal(
        Terminal(id=request_id, outcome=outcome, path=[], received_ms=1, finished_ms=2, attempts=1, epoch=1, version=TERMINAL_VERSION), JSON_TYPE
    )


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


class Rig:
    """Topics, a writer, and sinks that run as tasks."""

    def __init__(self, log: Log, store: Store, names: Names) -> None:
        self.log, self.store, self.names = log, store, names
        self.writer: Writer = log.writer("test")
        self.running: list[tuple[Sink, asyncio.Task[None]]] = []

    async def start(self) -> None:
        await self.log.create_topics(
            [topic for topic in self.names.topics(shards=SHARDS) if topic.name in (self.names.requests, self.names.responses)]
        )
        await self.writer.start()

    def sink(self, settings: SinkSettings = SETTINGS) -> tuple[Sink, CollectorRegistry]:
        registry = CollectorRegistry()
        sink = Sink(self.log, self.store, self.names, settings=settings, registry=registry)
        self.running.append((sink, asyncio.create_task(sink.run())))
        return sink, registry

    async def stop(self) -> None:
        for sink, _ in self.running:
            sink.stop()
        running, self.running = self.running, []
        await asyncio.wait_for(asyncio.gather(*(task for _, task in running)), 20)

    async def publish(self, values: Sequence[tuple[str | None, bytes | None]], *, topic: str | None = None, shard: int = 0) -> None:
        await self.writer.write(
            topic or self.names.responses, shard, [(key.encode() if key is not None else None, value, []) for key, value in values]
        )

    async def shows(self, request_id: str, state: str, *, seconds: float = 15.0) -> None:
        async def condition() -> bool:
            try:
                status = await self.store.status(request_id)
            except StoreUnavailable:
                return False
            return (status.outcome if isinstance(status, Terminal) else status) == state

        await until(condition, f"{request_id} is {state}", seconds=seconds)

    async def committed(self, offset: int, *, shard: int = 0) -> None:
        reader = self.log.reader("look", group=self.names.sink_group)
        await reader.start()

        async def condition() -> bool:
            try:
                found: Committed | None = await reader.committed(TopicPartition(self.names.responses, shard))
            except LogUnavailable:
                return False
            return found is not None and found.offset == offset

        await until(condition, f"offset {offset} is committed")
        await reader.close()


def value_of(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def set_up(log: Log, redis_url: str, prefix: str) -> AsyncIterator[Rig]:
    names = Names(prefix)
    rig = Rig(log, RedisStore(redis_url, names, options={"socket_timeout": 0.5}), names)
    await rig.start()
    try:
        yield rig
        await rig.stop()
        await log.delete_topics([names.requests, names.responses])
    finally:
        await log.close()
        await rig.store.close()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def rig(request: pytest.FixtureRequest, redis_url: str, prefix: str) -> AsyncIterator[Rig]:
    log = MemoryLog() if request.param == "memory" else KafkaLog(request.getfixturevalue("kafka_address"))
    async with set_up(log, redis_url, prefix) as rig:
        yield rig


@pytest.fixture
async def own_rig(kafka_address: str, private_valkey: Any, prefix: str) -> AsyncIterator[Rig]:
    """With a Valkey that may be broken."""
    async with set_up(KafkaLog(kafka_address), private_valkey.address, prefix) as rig:
        yield rig


async def test_polling_tells_all_states_apart_and_the_first_wins(rig: Rig) -> None:
    outcomes = ("completed", "expired", "rejected", "failed")
    sink, registry = rig.sink()
    await rig.publish([(f"r-{outcome}", b"{}") for outcome in outcomes] + [("r-waits", b"{}")], topic=rig.names.requests)
    await rig.shows("r-waits", "pending")
    assert await rig.store.status("r-never") == "unknown"
    await rig.publish([(f"r-{outcome}", terminal(f"r-{outcome}", outcome)) for outcome in outcomes])
    await rig.publish([("r-expired", terminal("r-expired", "completed")), ("r-last", terminal("r-last"))])
    await rig.shows("r-last", "completed")
    for outcome in outcomes:
        await rig.shows(f"r-{outcome}", outcome)
    assert sink.unready() == ""
    assert sink.unhealthy() == ""
    await rig.stop()
    assert value_of(registry, "headrace_sink_responses_total", outcome="completed") == 2
    assert value_of(registry, "headrace_sink_responses_total", outcome="expired") == 1
    assert value_of(registry, "headrace_sink_duplicates_total") == 1
    assert value_of(registry, "headrace_sink_pending_total") == 5
    await rig.committed(6)


async def test_garbage_never_reaches_the_store(rig: Rig) -> None:
    _, registry = rig.sink()
    garbage: list[tuple[str | None, bytes | None]] = [
        ("g1", b"garbage"),
        ("g2", terminal("other")),
        (None, terminal("g3")),
        ("g4", None),
        ("g5", b"\xc1"),
    ]
    await rig.publish([*garbage, ("good", terminal("good"))])
    await rig.shows("good", "completed")
    for request_id in ("g1", "g2", "g3", "g4", "g5", "other"):
        assert await rig.store.status(request_id) == "unknown"
    await rig.committed(6)
    assert value_of(registry, "headrace_sink_bad_records_total", reason="not_terminal") == 3
    assert value_of(registry, "headrace_sink_bad_records_total", reason="other_key") == 1
    assert value_of(registry, "headrace_sink_bad_records_total", reason="no_key") == 1


async def test_a_new_sink_goes_on_where_the_last_one_committed(rig: Rig) -> None:
    rig.sink()
    await rig.publish([(f"a{number}", terminal(f"a{number}")) for number in range(100)])
    await rig.publish([("b", terminal("b"))], shard=1)
    await rig.shows("a99", "completed")
    await rig.shows("b", "completed")
    await rig.stop()
    await rig.publish([("late", terminal("late"))])
    _, registry = rig.sink()
    await rig.shows("late", "completed")
    await rig.stop()
    assert value_of(registry, "headrace_sink_responses_total", outcome="completed") == 1
    assert value_of(registry, "headrace_sink_duplicates_total") == 0


async def test_two_sinks_share_the_partitions(rig: Rig) -> None:
    rig.sink()
    await rig.publish([("first", terminal("first"))])
    await rig.shows("first", "completed")
    _, second = rig.sink()

    async def shares() -> bool:
        for shard in range(SHARDS):
            request_id = f"x{shard}-{time.monotonic_ns()}"
            await rig.publish([(request_id, terminal(request_id))], shard=shard)
            await rig.shows(request_id, "completed")
        return value_of(second, "headrace_sink_responses_total", outcome="completed") > 0

    await until(shares, "the second sink stores something")


async def test_where_the_store_was_flushed_it_is_filled_again(rig: Rig, redis_url: str) -> None:
    _, registry = rig.sink()
    await rig.publish([(f"a{number}", terminal(f"a{number}")) for number in range(50)] + [("a0", terminal("a0", "failed"))])
    await rig.publish([("waits", b"{}"), ("a1", b"{}")], topic=rig.names.requests)
    await rig.shows("a49", "completed")
    await rig.shows("waits", "pending")
    await rig.committed(51)
    foreign = redis.Redis.from_url(redis_url, protocol=2)
    keys = [key async for key in foreign.scan_iter(match=f"{rig.names.prefix}:*", count=1000)]
    assert len(keys) >= 52
    await foreign.delete(*keys)
    # What comes right after the loss must not hide it.
    await rig.publish([("after", terminal("after"))])
    await rig.shows("after", "completed")
    for number in range(50):
        await rig.shows(f"a{number}", "completed")
    await rig.shows("waits", "pending")
    lives_ms = await foreign.pttl(rig.names.response_key("a7"))
    assert 0 < lives_ms < SETTINGS.response_ttl_ms
    assert lives_ms < await foreign.pttl(rig.names.response_key("after"))
    await rig.committed(52)
    assert value_of(registry, "headrace_sink_refilled_total") == 50
    assert value_of(registry, "headrace_sink_responses_total", outcome="completed") == 51
    await foreign.aclose()


async def test_where_the_store_went_back_it_is_filled_from_there(rig: Rig, redis_url: str) -> None:
    rig.sink()
    await rig.publish([(f"a{number}", terminal(f"a{number}")) for number in range(20)])
    await rig.committed(20)
    await rig.stop()
    # As after a restart from a snapshot that was taken when ten answers were in.
    foreign = redis.Redis.from_url(redis_url, protocol=2)
    await foreign.delete(*(rig.names.response_key(f"a{number}") for number in range(10, 20)))
    await foreign.set(f"{rig.names.marker_key}:responses:0", 10)
    _, registry = rig.sink()
    for number in range(20):
        await rig.shows(f"a{number}", "completed")
    await rig.stop()
    assert value_of(registry, "headrace_sink_refilled_total") == 10
    await foreign.aclose()


async def test_an_outdated_watermark_of_a_deleted_topic_is_not_believed(rig: Rig) -> None:
    await rig.store.set_watermark("responses:0", 1_000_000)
    rig.sink()
    await rig.publish([("a", terminal("a"))])
    await rig.shows("a", "completed")
    await rig.committed(1)


async def test_a_sink_that_dies_before_its_commit_loses_nothing(rig: Rig) -> None:
    sink, _ = rig.sink(SinkSettings(commit_interval_ms=3_600_000, read_wait_ms=20))
    await rig.publish([("a", terminal("a")), ("a", terminal("a", "failed"))])
    await rig.shows("a", "completed")
    (task,) = [task for running, task in rig.running if running is sink]
    rig.running.clear()
    task.cancel()
    await asyncio.wait([task])
    await rig.publish([("b", terminal("b"))])
    rig.sink()
    await rig.shows("b", "completed")
    await rig.shows("a", "completed")
    await rig.committed(3)


async def test_a_store_that_dies_and_comes_back_empty_has_everything_again(own_rig: Rig, private_valkey: Any) -> None:
    rig = own_rig
    sink, registry = rig.sink()
    await rig.publish([(f"a{number}", terminal(f"a{number}")) for number in range(30)])
    await rig.committed(30)
    private_valkey.kill()
    # More than one read of the sink takes at once, so that it must hold back.
    for start in range(0, 3_000, 500):
        await rig.publish([(f"b{number}", terminal(f"b{number}")) for number in range(start, start + 500)])

    async def away() -> bool:
        return "response store" in sink.unready()

    await until(away, "readiness names the store")
    assert sink.unhealthy() == "", "a restart would not help"
    with pytest.raises(StoreUnavailable):
        await rig.store.status("a1")
    private_valkey.spawn()
    await private_valkey.ready()
    for request_id in ("a0", "a29", "b0", "b2999"):
        await rig.shows(request_id, "completed")
    values = await rig.store.get([f"a{number}" for number in range(30)] + [f"b{number}" for number in range(3_000)])
    assert sum(value is None for value in values) == 0
    await rig.committed(3_030)
    assert sink.unready() == ""
    assert value_of(registry, "headrace_sink_store_errors_total") > 0
    assert value_of(registry, "headrace_sink_responses_total", outcome="completed") == 3_030


async def test_a_store_that_hangs_is_given_up_and_taken_up_again(own_rig: Rig, private_valkey: Any) -> None:
    sink, registry = own_rig.sink()
    await own_rig.publish([("a", terminal("a"))])
    await own_rig.shows("a", "completed")
    private_valkey.pause()
    await own_rig.publish([("b", terminal("b"))])

    async def away() -> bool:
        return sink.unready() != ""

    await until(away, "readiness names the store")
    private_valkey.resume()
    await own_rig.shows("b", "completed")
    await own_rig.shows("a", "completed")
    assert value_of(registry, "headrace_sink_refilled_total") == 0


async def test_a_sink_stops_while_the_store_is_away_and_commits_nothing_it_could_not_store(own_rig: Rig, private_valkey: Any) -> None:
    sink, _ = own_rig.sink()
    await own_rig.publish([("a", terminal("a"))])
    await own_rig.committed(1)
    private_valkey.kill()
    await own_rig.publish([("b", terminal("b"))])

    async def away() -> bool:
        return sink.unready() != ""

    await until(away, "readiness names the store")
    started = time.monotonic()
    await own_rig.stop()
    assert time.monotonic() - started < 5
    private_valkey.spawn()
    await private_valkey.ready()
    own_rig.sink()
    await own_rig.shows("b", "completed")
    await own_rig.shows("a", "completed")


class FailingReader:
    """A reader of a log that is away while its switch says so."""

    def __init__(self, reader: Reader, log: FailingLog) -> None:
        self._reader, self._log = reader, log

    def __getattr__(self, name: str) -> Any:
        if self._log.away and name != "close":
            raise LogUnavailable("switched off")
        return getattr(self._reader, name)


class FailingLog:
    """A log with a switch for its readers; writers go on, as producers of another broker would."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.away = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reader(self, *arguments: Any, **options: Any) -> Any:
        return FailingReader(self._log.reader(*arguments, **options), self)


async def test_a_sink_waits_for_the_log_and_goes_on_when_it_is_back(redis_url: str, prefix: str) -> None:
    log = FailingLog(MemoryLog())
    async with set_up(log, redis_url, prefix) as rig:  # pyright: ignore[reportArgumentType]
        sink, registry = rig.sink()

        async def away() -> bool:
            return sink.unready() == "switched off"

        for request_id in ("at-start", "later"):
            log.away = True
            await until(away, "readiness names the log")
            await rig.publish([(request_id, terminal(request_id))])
            log.away = False
            await rig.shows(request_id, "completed")
            await rig.committed({"at-start": 1, "later": 2}[request_id])
            assert sink.unready() == ""
        assert value_of(registry, "headrace_sink_duplicates_total") == 0


class DeafReader:
    """A reader that was cut off from new records without noticing, as Kafka clients have been."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self, *, timeout_ms: int, records_max: int) -> Mapping[TopicPartition, Sequence[Record]]:
        await self._reader.read(timeout_ms=timeout_ms, records_max=records_max)
        return {}


class DeafLog:
    """A log whose readers are deaf."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reader(self, *arguments: Any, **options: Any) -> Any:
        return DeafReader(self._log.reader(*arguments, **options))


async def test_a_sink_that_reads_nothing_though_there_is_something_asks_for_a_restart(redis_url: str, prefix: str) -> None:
    async with set_up(DeafLog(MemoryLog()), redis_url, prefix) as rig:  # pyright: ignore[reportArgumentType]
        sink, _ = rig.sink(SinkSettings(check_interval_ms=20, stalled_ms=200, read_wait_ms=20))

        async def ready() -> bool:
            return sink.unready() == ""

        await until(ready, "the sink is ready")
        await asyncio.sleep(0.3)
        assert sink.unhealthy() == "", "an idle log is no stall"
        await rig.publish([("a", terminal("a"))])

        async def asks() -> bool:
            return "nothing was read" in sink.unhealthy()

        await until(asks, "the sink asks for a restart")

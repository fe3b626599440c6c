"""The sink between the log and genuine Valkey: first wins, garbage, sharing, and a store that lost something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis
from sink_stage import SETTINGS, SHARDS, Rig, WatchedLog, set_up, terminal, until, value_of

from broker.kafka import KafkaLog
from broker.memory import MemoryLog
from broker.sink import SinkSettings
from schemas.limits import Limits


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def rig(request: pytest.FixtureRequest, redis_url: str, prefix: str) -> AsyncIterator[Rig]:
    log = MemoryLog() if request.param == "memory" else KafkaLog(request.getfixturevalue("kafka_address"))
    async with set_up(log, redis_url, prefix) as rig:
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


async def test_a_store_that_went_back_under_a_running_sink_is_noticed_with_the_next_batch(rig: Rig, redis_url: str) -> None:
    rig.sink(SinkSettings(check_interval_ms=3_600_000, read_wait_ms=20))
    await rig.publish([(f"a{number}", terminal(f"a{number}")) for number in range(20)])
    await rig.shows("a19", "completed")

    async def stored() -> bool:
        return await rig.store.watermarks(["responses:0"]) == [20]

    await until(stored, "the watermark follows")
    foreign = redis.Redis.from_url(redis_url, protocol=2)
    await foreign.delete(*(rig.names.response_key(f"a{number}") for number in range(10, 20)))
    await rig.store.set_watermark("responses:0", 10)
    await rig.publish([("b", terminal("b"))])
    for request_id in ("a10", "a19", "b"):
        await rig.shows(request_id, "completed")
    await foreign.aclose()


async def test_the_committed_offset_never_goes_back_while_the_store_is_filled_again(redis_url: str, prefix: str) -> None:
    log = WatchedLog()
    async with set_up(log, redis_url, prefix) as rig:
        rig.sink(SinkSettings(commit_interval_ms=0, check_interval_ms=20, read_wait_ms=20, limits=Limits(read_records_max=100)))
        await rig.publish([(f"a{number}", terminal(f"a{number}")) for number in range(1_000)])
        await rig.committed(1_000)
        foreign = redis.Redis.from_url(redis_url, protocol=2)
        await foreign.delete(*[key async for key in foreign.scan_iter(match=f"{prefix}:*", count=1000)])
        await foreign.aclose()
        await rig.shows("a999", "completed")
        await rig.publish([("b", terminal("b"))])
        await rig.committed(1_001)
        assert log.commits == sorted(log.commits)
        assert len(log.commits) > 5


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

"""The sink while the store or the log is away, or silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sink_stage import DeafLog, FailingLog, Rig, set_up, terminal, until, value_of

from broker.kafka import KafkaLog
from broker.memory import MemoryLog
from broker.sink import SinkSettings
from schemas.errors import StoreUnavailable


@pytest.fixture
async def own_rig(kafka_address: str, private_valkey: Any, prefix: str) -> AsyncIterator[Rig]:
    """With a Valkey that may be broken."""
    async with set_up(KafkaLog(kafka_address), private_valkey.address, prefix) as rig:
        yield rig


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

"""The control loop over Faust and a genuine Kafka that goes away: it leads on afterwards, and its lag is what Kafka's own offsets say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from scaler_fleet import QUICK, InProcess, fleet_on, loop_on, metric

from broker.kafka import KafkaLog
from broker.log import Committed, TopicPartition
from deploy.snapshots import read_lag
from scaler.app import FaustFeed
from schemas.names import Names

Eventually = Callable[..., Awaitable[Any]]
AWAY_S = 20.0


@pytest.mark.timeout(120)
async def test_kafka_away_and_back(private_kafka: Any, prefix: str, eventually: Eventually) -> None:
    log, names = KafkaLog(private_kafka.address), Names(prefix)
    optimizer = InProcess()
    settings = msgspec.structs.replace(QUICK, say_s=0.5, lag_s=0.5)
    async with fleet_on(log, names, beat_s=0.5) as fleet:
        feed = FaustFeed(private_kafka.address, names, name="one")
        async with loop_on(fleet, settings=settings, optimizers=optimizer, feed=lambda: feed, worker_lost_ms=3_500.0) as loop:
            await eventually(lambda: loop.leading and fleet.plan.epoch > 0, timeout_s=30.0)
            before = fleet.plan
            private_kafka.pause()
            fleet.bears_outage = True
            await asyncio.sleep(AWAY_S)
            assert not loop.running.done()  # type: ignore[attr-defined]
            private_kafka.resume()
            asked = optimizer.asked
            await eventually(lambda: loop.leading and optimizer.asked > asked, timeout_s=40.0)
            fleet.workers["w2"] = 1
            await eventually(lambda: fleet.plan.binding("w2"), timeout_s=30.0)
            assert fleet.plan.epoch > before.epoch
            assert [binding for binding in fleet.plan.bindings if binding.worker != "w2"] == list(before.bindings)
    epochs = [plan.epoch for plan in fleet.plans]
    assert epochs == sorted(set(epochs))
    await log.close()


@pytest.mark.timeout(60)
async def test_lag_is_log_end_minus_commit(kafka_address: str, prefix: str, eventually: Eventually) -> None:
    log, names = KafkaLog(kafka_address), Names(prefix)
    async with fleet_on(log, names, beat_s=0.5) as fleet, loop_on(fleet) as loop:
        await fleet.writer.write(names.requests, 0, [(b"k", b"v", ())] * 7)
        await fleet.writer.write(names.work("cpu"), 1, [(b"k", b"v", ())] * 5)
        for group, partition, done in (
            (names.dispatchers_group, TopicPartition(names.requests, 0), 3),
            (names.workers_group("cpu"), TopicPartition(names.work("cpu"), 1), 5),
        ):
            reader = log.reader("commits", group=group)
            await reader.start()
            await reader.assign({partition: "latest"})
            await reader.commit({partition: Committed(done, "")})
            await reader.close()
        found = {(lag.topic, lag.partition): lag.lag_messages for lag in await read_lag(log, names)}
        assert (found[names.requests, 0], found[names.work("cpu"), 1], found[names.work("cpu"), 0]) == (4, 0, 0)
        await eventually(lambda: metric(loop, "headrace_scaler_lag_messages", group=names.dispatchers_group, topic=names.requests) == 4.0)
    await log.close()

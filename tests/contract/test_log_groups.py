"""Which consumer groups there are, of both logs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.kafka import KafkaLog
from broker.log import Committed, Log, TopicPartition
from broker.memory import MemoryLog
from scaler.lag import LagReader
from schemas.names import Names


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[Log]:
    made = KafkaLog(request.getfixturevalue("kafka_address")) if request.param == "kafka" else MemoryLog()
    yield made
    await made.close()


async def commit(log: Log, group: str, offsets: dict[TopicPartition, int]) -> None:
    reader = log.reader("test", group=group)
    await reader.start()
    await reader.assign(dict.fromkeys(offsets, "earliest"))
    await reader.commit({at: Committed(offset, "") for at, offset in offsets.items()})
    await reader.close()


async def test_groups_that_have_committed_are_found_by_the_beginnings_of_their_names(log: Log, prefix: str) -> None:
    names = Names(prefix)
    await log.create_topics([topic for topic in names.topics(shards=2) if topic.name in (names.requests, names.responses)])
    at = TopicPartition(names.responses, 0)
    assert await log.groups(f"{prefix}.") == []
    for group in (names.taps_group(), names.taps_group("http"), f"{prefix}.tapsters", f"{prefix}.sink"):
        await commit(log, group, {at: 0})
    looking = log.reader("test", group=f"{prefix}.looked-at")
    await looking.start()
    assert await looking.committed(at) is None
    await looking.close()
    assert await log.groups(f"{prefix}.") == [f"{prefix}.sink", f"{prefix}.taps", f"{prefix}.taps.http", f"{prefix}.tapsters"]
    assert await log.groups(names.taps_group()) == [f"{prefix}.taps", f"{prefix}.taps.http", f"{prefix}.tapsters"]


async def test_the_lag_of_each_tap_is_told(log: Log, prefix: str) -> None:
    names = Names(prefix)
    await log.create_topics(names.topics(shards=2))
    writer = log.writer("test")
    await writer.start()
    for topic in (names.requests, names.responses):
        await writer.write(topic, 1, [(b"a", b"{}", ()), (b"b", b"{}", ()), (b"c", b"{}", ())])
    await writer.close()
    http = names.taps_group("http")
    await commit(log, names.taps_group(), {TopicPartition(names.responses, 1): 1})
    await commit(log, http, {TopicPartition(names.responses, 1): 3, TopicPartition(names.requests, 1): 2})
    lags = LagReader(log, names, "test")
    try:
        found = {(lag.group, lag.topic, lag.partition): lag.lag_messages for lag in await lags.read_all()}
    finally:
        await lags.close()
    assert found[names.taps_group(), names.responses, 1] == 2
    assert (found[http, names.responses, 1], found[http, names.requests, 1]) == (0, 1)
    assert found[http, names.responses, 0] == 0
    assert (names.taps_group(), names.requests, 1) not in found, "it has not taken any request yet"
    assert found[names.sink_group, names.requests, 1] == 3

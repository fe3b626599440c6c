"""Taps on a genuine Kafka that share shards, lose them and get them back; stages; and what changes while they run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_END
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry
from tap_rig import SHARDS, answer, headers_of, request, rows, tap_rig

from broker.kafka import KafkaLog
from broker.kafka_transaction import Fenced
from broker.log import Committed, TopicPartition
from broker.policy.tap_join import TapPosition
from broker.tap_sinks.parquet_files import Stored, write_file
from broker.tap_sinks.parquet_table import table_of
from deploy.roles.taps import TapOptions
from schemas.graph import GraphSpec, StageNode
from schemas.stage import StageRecord, TensorHead, encode_stage
from schemas.tap import TapSample, TapSpec
from schemas.work import WORK_HEADER

Eventually = Callable[..., Awaitable[Any]]


async def test_taps_that_come_and_go_share_the_shards_and_repeat_nothing(kafka_address: str, prefix: str) -> None:
    ids = [f"r{number}" for number in range(900)]
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig:
        rig.tap("one")
        await rig.exchange(ids[:200])
        await rig.until_events(rig.names.tap_responses, 200)
        rig.tap("two")
        for begin in range(200, 700, 50):
            await rig.exchange(ids[begin : begin + 50])
            await asyncio.sleep(0.05)
        await rig.until_events(rig.names.tap_responses, 700)
        await rig.stop_taps()
        await rig.exchange(ids[700:])
        # Under their names: others would wait for the session time-out of those that have gone.
        rig.tap("one")
        rig.tap("two")
        responses = await rig.until_events(rig.names.tap_responses, len(ids))
        requests = rig.events(rig.names.tap_requests)
    assert Counter(headers_of(message)["ce_id"] for message in responses) == Counter(ids)
    assert Counter(headers_of(message)["ce_id"] for message in requests) == Counter(ids)
    assert all(message.partition() == int(message.key().decode()[1:]) % SHARDS for message in responses), "each on its request's shard"


async def test_a_former_owner_is_fenced_off_and_what_it_had_begun_is_gone(kafka_address: str, prefix: str) -> None:
    log = KafkaLog(kafka_address)
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig:
        at, group = TopicPartition(rig.names.tap_responses, 0), rig.names.taps_group()
        source = TopicPartition(rig.names.responses, 0)
        former, present = (log.transactions("t", f"{group}-0") for _ in range(2))
        await former.start()
        await former.commit({at: [(b"a", b"1", [])]}, group, {source: Committed(1, "low=0")})
        await present.start()
        try:
            await former.commit({at: [(b"b", b"2", [])]}, group, {source: Committed(9, "low=9")})
        except Fenced:
            fenced = True
        else:
            fenced = False
        await present.commit({at: [(b"c", b"3", [])]}, group, {source: Committed(2, "low=0")})
        await asyncio.gather(former.close(), present.close())
        assert fenced
        assert [message.key() for message in rig.events(rig.names.tap_responses)] == [b"a", b"c"]
        reader = log.reader("r", group=group)
        await reader.start()
        assert await reader.committed(source) == Committed(2, "low=0")
    await log.close()


async def test_what_is_asked_for_while_a_tap_runs(kafka_address: str, prefix: str, eventually: Eventually) -> None:
    registry = CollectorRegistry()
    async with tap_rig(kafka_address, prefix, None) as rig:
        tap = rig.tap(registry=registry)
        await rig.exchange(["before"])
        await eventually(lambda: not tap.unready())
        await rig.apply(TapSpec(sample=TapSample(rate=0.0, outcomes={"failed": 1.0})))
        await rig.exchange(["completed"])
        body = request("keyless")[1] or b""
        await rig.write(rig.names.requests, 0, [request("torn"), (None, body[:-1] + b',"id":"keyless"}', []), (None, b"nobody's", [])])
        await rig.write(rig.names.responses, 0, [(b"torn", b"no answer", []), answer("torn", "failed"), answer("torn"), answer("keyless", "failed")])
        await rig.until_events(rig.names.tap_requests, 2)
        await rig.apply(TapSpec())
        await rig.exchange(["after"])
        found = await rig.until_events(rig.names.tap_responses, 3)
        assert sorted(headers_of(message)["ce_id"] for message in found) == ["after", "keyless", "torn"]
        assert {headers_of(message)["ce_outcome"] for message in found} == {"failed", "completed"}
        await eventually(lambda: (registry.get_sample_value("headrace_tap_dropped_total", {"reason": "not_terminal"}) or 0.0) == 1.0)
        await eventually(lambda: registry.get_sample_value("headrace_tap_lag_messages") == 0.0)
        assert registry.get_sample_value("headrace_tap_events_total", {"kind": "response"}) == 3.0


async def test_stages_that_are_asked_for_have_events_of_their_own(kafka_address: str, prefix: str) -> None:
    graph = GraphSpec(nodes={"first": StageNode(task="t", inputs={}), "last": StageNode(task="t", inputs={})}, output="last")
    async with tap_rig(kafka_address, prefix, None) as rig:
        topic = rig.names.stage_topic("fashion", "first", partitions=SHARDS)
        await rig.log.create_topics([topic, rig.names.stage_topic("fashion", "last", partitions=SHARDS)])
        await rig.apply(TapSpec(stages=("first",)), graph=graph, task="", revision=2)
        rig.tap()
        record = StageRecord(1, "fashion", 2, "first", 1, "t/v", 0.9, "cpu", "CPU", 1.0, 2.0, 1, 3, (TensorHead("x", "UINT8", (1, 2), 2),))
        other = StageRecord(1, "fashion", 2, "last", 1, "t/v", 0.9, "cpu", "CPU", 1.0, 2.0, 1, 3)
        await rig.write(rig.names.requests, 1, [request("r1")])
        await rig.write(topic.name, 1, [(b"r1", b"ab", [(WORK_HEADER, encode_stage(record))]), (b"r1", b"torn", [])])
        await rig.write(rig.names.stage("fashion", "last"), 1, [(b"r1", b"", [(WORK_HEADER, encode_stage(other))])])
        await rig.write(rig.names.responses, 1, [answer("r1")])
        stage, response = await rig.until_events(rig.names.tap_responses, 2)
    assert (headers_of(stage)["ce_id"], stage.value(), headers_of(stage)["ce_stage"]) == ("r1/first", b"ab", "first")
    assert headers_of(response)["ce_id"] == "r1"


async def test_what_the_log_has_dropped_holds_nothing_up(kafka_address: str, prefix: str, eventually: Eventually) -> None:
    registry = CollectorRegistry()
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig:
        rig.tap()
        await rig.exchange([f"a{number}" for number in range(20)])
        await rig.until_events(rig.names.tap_responses, 20)
        await rig.stop_taps()
        await rig.exchange([f"gone{number}" for number in range(20)])
        drop_records(kafka_address, rig.names.requests, rig.names.responses)
        tap = rig.tap(registry=registry)
        await eventually(lambda: not tap.unready())
        await eventually(lambda: registry.get_sample_value("headrace_tap_lag_messages") == 0.0)
        await rig.exchange(["b1", "b2"])
        found = await rig.until_events(rig.names.tap_responses, 22)
        assert {headers_of(message)["ce_id"] for message in found[:]} >= {"b1", "b2"}
        assert len(found) == 22


async def test_files_of_another_log_say_nothing_of_this_one(kafka_address: str, prefix: str, tmp_path: Path) -> None:
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig:
        stored = Stored(prefix, {shard: TapPosition(1_000, 900) for shard in range(SHARDS)})
        write_file(tmp_path / "old.parquet", [table_of([])[0]], stored)
        await rig.exchange(["r1", "r2"])
        rig.tap(options=TapOptions(sink="parquet", options={"folder": tmp_path}))
        async with asyncio.timeout(20):
            while len(rows(tmp_path)) < 2:
                await asyncio.sleep(0.05)
        assert sorted(row["id"] for row in rows(tmp_path)) == ["r1", "r2"]


async def test_topics_that_take_less_get_events_that_are_cut(kafka_address: str, prefix: str) -> None:
    async with tap_rig(kafka_address, prefix, TapSpec()) as rig:
        await rig.log.configure_topics({rig.names.tap_requests: {"max.message.bytes": "600000"}})
        await rig.write(rig.names.requests, 0, [request("big", parameters={"x": "y" * 900_000})])
        await rig.write(rig.names.responses, 0, [answer("big")])
        rig.tap()
        (event,) = await rig.until_events(rig.names.tap_requests, 1, seconds=30)
        assert int(headers_of(event)["ce_truncated"]) > 900_000
        assert len(event.value()) < 600_000
        assert len(rig.events(rig.names.tap_responses)) == 1


def drop_records(address: str, *topics: str) -> None:
    administrator = AdminClient({"bootstrap.servers": address})
    ends = [ConfluentPartition(topic, shard, OFFSET_END) for topic in topics for shard in range(SHARDS)]
    for done in administrator.delete_records(ends).values():
        done.result(10)

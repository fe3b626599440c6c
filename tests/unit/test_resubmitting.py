"""Recorded requests once more: what is taken, what the new records say, how answers are compared; against workers: test_learned.py."""

from __future__ import annotations

import asyncio
import time

import click
import pytest
from accuracy_stage import TASK, answer, catalog

from broker.memory import MemoryLog
from deploy.commands.replay import Moment
from deploy.resubmitting import ReplayQuestion, replay
from deploy.scanning import partitions_of, scan
from deploy.snapshots import read_catalog
from schemas.catalog import catalog_key, encode_catalog
from schemas.errors import CatalogError, HeadraceError
from schemas.limits import Limits
from schemas.names import Names
from schemas.request import read_routing

NAMES = Names("replay-test")
BODY = b'{"endpoint": "e", "deadline_ms": 5, "min_accuracy": 0.9, "priority": 1, "inputs": [{"name": "x", "shape": [1]}]}'


class Stage:
    """A log with recorded requests, and somebody who answers what is replayed."""

    def __init__(self):
        self.log = MemoryLog()
        self.asked = {}

    async def start(self):
        await self.log.create_topics(NAMES.topics(shards=2))
        for spec in (TASK, *catalog().endpoints.values()):
            await self.put(NAMES.catalog, catalog_key(spec), encode_catalog(spec))

    async def put(self, topic, key, value, headers=(), partition=0):
        writer = self.log.writer("test")
        await writer.start()
        await writer.write(topic, partition, [(key, value, headers)])
        await writer.close()

    async def answering(self, labels):
        """Answers each replayed request with the label of its first life's id."""
        while len(self.asked) < len(labels):
            async for record in scan(self.log, await partitions_of(self.log, [NAMES.requests]), 0):
                key = (record.key or b"").decode()
                if not key.startswith("replay-") or key in self.asked:
                    continue
                self.asked[key] = record
                first = key.split("-", 2)[2]
                outcome = {"outcome": "completed"} if labels[first] is not None else {"outcome": "expired"}
                told = (labels[first],) if labels[first] is not None else ()
                await self.put(NAMES.responses, key.encode(), answer(key, *told, variant="t/large", **outcome), partition=record.partition)
            await asyncio.sleep(0.01)

    async def replay(self, labels, **stated):
        question = ReplayQuestion(**({"endpoint": "e", "from_ms": 0, "to_ms": int(time.time() * 1000) + 60_000, "rate_rps": 1e4} | stated))
        answering = asyncio.create_task(self.answering(labels))
        try:
            return await replay(self.log, NAMES, question, progress=lambda _done, _of: None)
        finally:
            answering.cancel()


@pytest.fixture
async def stage():
    made = Stage()
    await made.start()
    yield made
    await made.log.close()


async def test_rows_outcomes_and_variants_are_compared(stage):
    for request_id, label in (("a", 1), ("b", 2), ("c", 3)):
        await stage.put(NAMES.requests, request_id.encode(), BODY, partition=1)
        await stage.put(NAMES.responses, request_id.encode(), answer(request_id, label), partition=1)
    await stage.put(NAMES.requests, b"other", BODY.replace(b'"e"', b'"f"'))
    await stage.put(NAMES.requests, b"unreadable", b"\xff")
    await stage.put(NAMES.requests, b"replay-before-a", BODY)
    report = await stage.replay({"a": 1, "b": 0, "c": None})
    assert (report.requests, report.before, report.now) == (3, {"completed": 3}, {"completed": 2, "expired": 1})
    assert (report.variants_before, report.variants_now) == ({"t/small": 3}, {"t/large": 2})
    assert (report.rows_compared, report.rows_same, report.agreement) == (2.0, 1.0, 0.5)
    assert [(difference.id, difference.before, difference.now) for difference in report.differences] == [("b", "2", "0"), ("c", "3", "expired")]
    asked = stage.asked[f"replay-{report.run}-a"]
    routing = read_routing(asked.value, asked.headers, Limits())
    assert (asked.partition, routing.endpoint, routing.min_accuracy, routing.priority) == (1, "e", 0.9, 9)
    assert routing.deadline_ms > time.time() * 1000, "the recorded deadline has passed long ago"


async def test_a_variant_is_asked_by_an_endpoint_that_is_there_while_it_runs(stage):
    await stage.put(NAMES.requests, b"a", BODY, [("min_accuracy", b"0.99"), ("tenant", b"shop")])
    await stage.put(NAMES.responses, b"a", answer("a", 1))
    report = await stage.replay({"a": 1}, variant="t/large")
    (asked,) = stage.asked.values()
    routing = read_routing(asked.value, asked.headers, Limits())
    assert (routing.endpoint, routing.min_accuracy, routing.tenant) == (f"replay-{report.run}", 0.0, "shop")
    assert set((await read_catalog(stage.log, NAMES)).endpoints) == {"e"}


async def test_what_is_not_there_is_said(stage):
    with pytest.raises(CatalogError, match="no endpoint 'x'"):
        await stage.replay({}, endpoint="x")
    with pytest.raises(CatalogError, match="no variant 't/huge'"):
        await stage.replay({}, variant="t/huge")
    with pytest.raises(HeadraceError, match="no request for 'e'"):
        await stage.replay({})


def test_moments():
    def read(text):
        return Moment().convert(text, None, None)

    now_ms = time.time() * 1000
    assert read("90s") == pytest.approx(now_ms - 90_000, abs=5_000)
    assert read("1.5h") == pytest.approx(now_ms - 5_400_000, abs=5_000)
    assert read("1700000000000") == 1_700_000_000_000
    assert read("2023-11-14T22:13:20") == read("2023-11-14T23:13:20+01:00") == 1_700_000_000_000
    with pytest.raises(click.BadParameter, match="is no time"):
        read("yesterday")

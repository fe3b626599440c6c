"""Whose lag is whose, and what changed between two plans."""

from __future__ import annotations

from broker.memory import MemoryLog
from deploy.plan_changes import changes_between
from scaler.lag import LagReader, PartitionLag, lag_by_endpoint
from schemas.catalog import Catalog, EndpointSpec
from schemas.names import Names
from schemas.plan import Binding, Plan

NAMES = Names("p")
CATALOG = Catalog({}, {name: EndpointSpec(name=name, task="t") for name in ("shop", "shop.eu", "idle")})


def lag(topic: str, messages: int) -> PartitionLag:
    return PartitionLag(group="g", topic=topic, partition=0, end=messages, committed=0, lag_messages=messages)


def test_requests_are_divided_by_what_is_open_and_stage_topics_go_to_the_longest_name() -> None:
    lags = [lag(NAMES.requests, 20), lag(NAMES.stage("shop", "find"), 3), lag(NAMES.stage("shop.eu", "find"), 4), lag(NAMES.work("cpu"), 50)]
    assert lag_by_endpoint(lags, CATALOG, {"shop": 3.0, "shop.eu": 1.0, "gone": 9.0}, NAMES) == {"shop": 18, "shop.eu": 9, "idle": 0}


async def test_lanes_that_were_made_later_are_read_too() -> None:
    log = MemoryLog()
    await log.create_topics(NAMES.topics(shards=1, lanes=3))
    reader, lanes = LagReader(log, NAMES, "lag"), NAMES.work("cpu")
    reader.grown(lanes, 2)
    seen = [await reader.read({"cpu"})]
    for count in (3, 1):
        reader.grown(lanes, count)
        seen.append(await reader.read({"cpu"}))
    assert [sum(lag.topic == lanes for lag in lags) for lags in seen] == [2, 3, 3], "never fewer"
    await reader.close()


def test_with_nothing_open_requests_are_divided_evenly() -> None:
    assert lag_by_endpoint([lag(NAMES.requests, 9)], CATALOG, {"shop": -1.0}, NAMES) == {"shop": 3, "shop.eu": 3, "idle": 3}
    assert lag_by_endpoint([lag(NAMES.requests, 9)], Catalog(), {}, NAMES) == {}


def test_changes_are_named_and_an_equal_plan_has_none() -> None:
    one = Plan(epoch=1, bindings=(Binding(worker="a", accelerator="cpu", lane=0, variants=("t/x", "t/y")),), budgets={"shop": {"main": 5.0}})
    same = Plan(epoch=2, bindings=(Binding(worker="a", accelerator="cpu", lane=0, variants=("t/y", "t/x")),), budgets={"shop": {"main": 5.2}})
    assert changes_between(one, same) == []
    other = Plan(epoch=3, bindings=(Binding(worker="b", accelerator="cpu", lane=0, threads=2),), budgets={"shop": {"main": 9.0}})
    found = {(change.kind, change.name): (change.before, change.after) for change in changes_between(one, other)}
    assert found["worker", "a"][1] == ""
    assert found["worker", "b"] == ("", "cpu lane 0, 2 threads, batches to 32: nothing")
    assert found["budget", "shop/main"] == ("5 ms", "9 ms")

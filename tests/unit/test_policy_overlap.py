"""Tasks that share some of their lanes: one that is overloaded costs the others what they share, and no more."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from policy_stage import START_MS, request

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Commands, Entry
from broker.policy.filling import fill
from broker.policy.serving import Serving
from broker.policy.settings import DispatcherSettings
from broker.policy.tuning import Group
from broker.policy.watermark import Watermark
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, VariantSpec
from schemas.limits import Limits
from schemas.plan import Binding, Plan
from schemas.profile import Latency
from schemas.telemetry import HostedVariant, WorkerReport

ROW_MS = {"good": 4.0, "quick": 1.0}
ACCURACY = {"good": 0.9, "quick": 0.8}


def task(name: str) -> TaskSpec:
    return TaskSpec(name=name, variants=tuple(VariantSpec(name=key, file=key, sha256="", accuracy=ACCURACY[key]) for key in ROW_MS))


def sharing(*hosting: str) -> DispatcherPolicy:
    """Workers w0, w1, ..., each with the tasks of one word: "red green" hosts both."""
    tasks = {name for words in hosting for name in words.split()}
    policy = DispatcherPolicy("d0", DispatcherSettings(), Limits())
    policy.step(
        ev.CatalogObserved(Catalog({name: task(name) for name in tasks}, {name: EndpointSpec(name=name, task=name) for name in tasks})), START_MS
    )
    keys = [tuple(f"{name}/{variant}" for name in words.split() for variant in ROW_MS) for words in hosting]
    bindings = tuple(Binding(worker=f"w{at}", accelerator="cpu", lane=at, variants=variants) for at, variants in enumerate(keys))
    policy.step(ev.PlanObserved(Plan(epoch=1, bindings=bindings)), START_MS)
    for at, variants in enumerate(keys):
        latencies = {key: ROW_MS[key.partition("/")[2]] for key in variants}
        hosted = {key: HostedVariant(state="ready", latency={1: Latency(row_ms, row_ms, 9)}) for key, row_ms in latencies.items()}
        report = WorkerReport(
            worker=f"w{at}", incarnation=1, accelerator="cpu", device="cpu0", host="here", at_ms=int(START_MS), lane=at, state="ready", credits=512,
            epoch=1, variants=hosted,
        )  # fmt: skip
        policy.step(ev.TelemetryObserved(report), START_MS)
    policy.step(ev.ShardAssigned(0, Watermark()), START_MS)
    policy.step(ev.ShardRecovered(0), START_MS)
    return policy


def crowd(endpoint: str, count: int, *, timeout_ms: int = 200, floor: float = 0.9) -> list[Entry]:
    return [request(f"{endpoint}{at}", endpoint=endpoint, floor=floor, timeout_ms=timeout_ms) for at in range(count)]


def arrive(policy: DispatcherPolicy, entries: list[Entry]) -> Commands:
    return policy.step(ev.Arrived(0, entries), START_MS)


def test_an_overloaded_task_refuses_nobody_whose_lanes_stand_idle() -> None:
    policy = sharing("red", "red green", "green")
    refused = arrive(policy, crowd("red", 400)).answers
    assert {answer.code for answer in refused} == {"overloaded"}
    commands = arrive(policy, crowd("green", 5, timeout_ms=60))
    assert commands.answers == []
    assert {send.worker for send in commands.sends} == {"w2"}


def test_tasks_that_are_joined_through_others_alone_do_not_meet() -> None:
    policy = sharing("red", "red green", "green", "green blue", "blue")
    assert arrive(policy, crowd("red", 400)).answers
    assert arrive(policy, crowd("blue", 20)).answers == []


def test_what_is_shared_is_admitted_once() -> None:
    """Of three lanes no more is promised than they can do, in whatever order the tasks come."""
    for order in (("red", "green"), ("green", "red")):
        policy = sharing("red", "red green", "green")
        taken = {name: 400 - len(arrive(policy, crowd(name, 400)).answers) for name in order}
        one_lane = 400 - len(arrive(sharing("red"), crowd("red", 400)).answers)
        assert 2.2 * one_lane < sum(taken.values()) <= 3.1 * one_lane, (taken, one_lane)


def test_in_one_step_too() -> None:
    policy = sharing("red", "red green", "green")
    mixed = [entry for both in zip(crowd("red", 400), crowd("green", 400), strict=True) for entry in both]
    for at, entry in enumerate(mixed):
        entry.offset = at
    refused = Counter(answer.entry.endpoint for answer in arrive(policy, mixed).answers)
    one_lane = 400 - len(arrive(sharing("red"), crowd("red", 400)).answers)
    assert abs(refused["red"] - refused["green"]) <= 2
    assert 2.2 * one_lane < 800 - refused.total() <= 3.1 * one_lane


def test_how_accurate_answers_are_depends_on_the_lanes_that_can_give_them() -> None:
    """Red's lanes are too few for its best variant; that green's stand idle helps nobody."""
    policy = sharing("red", "red green", *["green"] * 8)
    sends = arrive(policy, crowd("red", 150, floor=0.8)).sends
    assert {send.variant for send in sends} == {"red/quick"}
    sends = arrive(policy, crowd("green", 8, floor=0.8)).sends
    assert {send.variant for send in sends} == {"green/good"}


def test_who_shares_all_lanes_shares_their_time() -> None:
    policy = sharing("red green", "red green")
    sends = arrive(policy, [*crowd("red", 12, floor=0.8), *crowd("green", 12, floor=0.8)]).sends
    assert Counter(send.variant for send in sends) == {"red/good": 12, "green/good": 12}


def parts_of(policy: DispatcherPolicy, least_ms: dict[Group, float], most_ms: dict[Group, float]) -> dict[frozenset[str], list[float]]:
    """Of lanes with 100 ms each."""
    (pool,) = policy.fleet.pools
    kinds = Serving(pool.lanes).kinds(least_ms)
    needs = [np.array([sum(of_group[group] for group in same) for same in kinds.sets]) for of_group in (least_ms, most_ms)]
    parts = fill(kinds.hosting, kinds.lanes, kinds.sum([100.0] * len(pool.lanes)), *needs)
    assert kinds.of_lane is not None
    return {frozenset(name for name, _ in same): part[kinds.of_lane].tolist() for same, part in zip(kinds.sets, parts, strict=True)}


def test_lanes_that_are_shared_are_divided_by_what_is_needed_of_each() -> None:
    policy = sharing("red", "red green", "green", "blue green")
    least_ms = {("red", 0): 30.0, ("green", 0): 30.0, ("green", 1): 15.0, ("blue", 0): 0.0}
    parts = parts_of(policy, least_ms, dict.fromkeys(least_ms, 1000.0))
    assert parts[frozenset({"red"})] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert parts[frozenset({"green"})] == pytest.approx([0.0, 0.5, 1.0, 1.0], abs=1e-5)
    assert parts[frozenset({"blue"})] == pytest.approx([0.0, 0.0, 0.0, 0.0], abs=1e-5)


def test_what_some_cannot_use_is_left_to_the_others() -> None:
    policy = sharing("red green", "green blue")
    least_ms = {("red", 0): 30.0, ("green", 0): 30.0, ("blue", 0): 30.0}
    parts = parts_of(policy, least_ms, {("red", 0): 40.0, ("green", 0): 1_000.0, ("blue", 0): 1_000.0})
    assert parts[frozenset({"red"})] == pytest.approx([0.4, 0.0])
    assert parts[frozenset({"green"})] == pytest.approx([0.6, 1 / 3])
    assert parts[frozenset({"blue"})] == pytest.approx([0.0, 2 / 3])


def test_what_nobody_needs_is_divided_too() -> None:
    policy = sharing("red green", "green blue")
    groups: list[Group] = [("red", 0), ("green", 0), ("blue", 0)]
    parts = parts_of(policy, dict.fromkeys(groups, 3.0), dict.fromkeys(groups, 9.0))
    assert np.sum([*parts.values()], axis=0).tolist() == pytest.approx([1.0, 1.0])
    parts = parts_of(policy, {("red", 0): 3.0, ("green", 0): 0.0, ("blue", 0): 0.0}, {("red", 0): 9.0, ("green", 0): 0.0, ("blue", 0): 0.0})
    assert parts[frozenset({"red"})] == pytest.approx([1.0, 0.0], abs=1e-4)
    assert np.sum([*parts.values()], axis=0).tolist() == pytest.approx([1.0, 1.0])

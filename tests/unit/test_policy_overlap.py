"""Tasks that share some of their lanes: one that is overloaded costs the others what they share, and no more."""

from __future__ import annotations

from collections import Counter

from policy_stage import START_MS, request

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Commands, Entry
from broker.policy.settings import DispatcherSettings
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


def crowd(endpoint: str, count: int, *, timeout_ms: int = 200) -> list[Entry]:
    return [request(f"{endpoint}{at}", endpoint=endpoint, floor=0.9, timeout_ms=timeout_ms) for at in range(count)]


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

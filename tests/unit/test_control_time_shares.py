"""Unit: the parts of a shared device's time that a plan gives."""

from __future__ import annotations

import pytest

from scaler.optimizers.snapshot import Cost, EndpointDemand, FloorDemand, Snapshot, StageDemand, Variant
from scaler.policy.control_time_shares import PART_MIN, same_parts, time_shares
from schemas.plan import Binding, Plan
from schemas.profile import Latency


def snapshot(**rates_rps: float) -> Snapshot:
    endpoints = tuple(
        EndpointDemand(
            endpoint=task,
            stages=(StageDemand(name="", task=task),),
            floors=(FloorDemand(floor=0.5, rate_rps=rate, forecast_rps=rate),),
            timeout_ms=100.0,
        )
        for task, rate in rates_rps.items()
    )
    row_ms = {"a": 10.0, "b": 30.0, "c": 5.0}
    variants = tuple(
        Variant(
            key=f"{task}/v", task=task, accuracy=0.9, batch_size_max=8, costs={"cpu": Cost(latency={1: {1: Latency(row_ms[task], row_ms[task])}})}
        )
        for task in row_ms
    )
    return Snapshot(at_ms=0.0, endpoints=endpoints, variants=variants, workers=(), plan=Plan())


def binding(worker: str, *tasks: str) -> Binding:
    return Binding(worker=worker, accelerator="cpu", lane=0, variants=tuple(f"{task}/v" for task in tasks))


def test_time_goes_by_what_is_asked_times_what_it_costs() -> None:
    assert time_shares([binding("w", "a", "b")], snapshot(a=30.0, b=10.0)) == {"a": 0.5, "b": 0.5}
    assert time_shares([binding("w", "a", "b")], snapshot(a=90.0, b=10.0)) == {"a": 0.75, "b": 0.25}


def test_tasks_that_share_no_worker_have_no_part() -> None:
    assert time_shares([binding("w", "a"), binding("x", "b")], snapshot(a=30.0, b=10.0)) == {}
    assert time_shares([binding("w", "a", "b"), binding("x", "c")], snapshot(a=30.0, b=10.0, c=99.0)).keys() == {"a", "b"}


def test_what_nobody_asks_for_gets_a_little() -> None:
    parts = time_shares([binding("w", "a", "b")], snapshot(a=30.0))
    assert parts["b"] == pytest.approx(PART_MIN / (1 + PART_MIN), abs=1e-3)
    assert time_shares([binding("w", "a", "b")], snapshot()) == {}


def test_parts_are_the_same_until_one_is_another_by_much_and_where_nothing_is_asked_for() -> None:
    assert same_parts({"a": 0.5, "b": 0.5}, {"a": 0.53, "b": 0.47})
    assert not same_parts({"a": 0.5, "b": 0.5}, {"a": 0.6, "b": 0.4})
    assert not same_parts({}, {"a": 0.5, "b": 0.5})
    assert not same_parts({"a": 0.5, "b": 0.5}, {"a": 0.5, "c": 0.5})
    assert same_parts({"a": 0.5, "b": 0.5}, {})

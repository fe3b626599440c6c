"""Unit: more workers than lanes are named, with what to do about it."""

from __future__ import annotations

from scaler.optimizers.snapshot import READY, Snapshot, Worker
from scaler.policy.control_lanes import without_lane
from schemas.plan import Binding, Plan


def test_workers_beyond_the_lanes_are_named_and_the_command_that_helps() -> None:
    workers = tuple(Worker(name=f"w{number:03d}", accelerator="cpu", type="cpu", state=READY) for number in range(100))
    bound = tuple(Binding(worker=f"w{number:03d}", accelerator="cpu", lane=number - 84) for number in range(84, 100))
    snapshot = Snapshot(at_ms=0.0, endpoints=(), variants=(), workers=workers, plan=Plan(bindings=bound), lanes_per_class=16)
    found = without_lane(snapshot, {"cpu": "headrace.work.cpu"})
    assert sorted(found) == [f"w{number:03d}" for number in range(84)]
    assert "100 cpu workers share 16 lanes" in found["w000"]
    assert "--topic headrace.work.cpu --partitions 100" in found["w000"]


def test_as_many_lanes_as_workers_are_enough() -> None:
    workers = tuple(Worker(name=f"w{number}", accelerator="cpu", type="cpu", state=READY) for number in range(16))
    assert without_lane(Snapshot(at_ms=0.0, endpoints=(), variants=(), workers=workers, plan=Plan(), lanes_per_class=16), {}) == {}

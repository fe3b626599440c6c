"""Rebinding: the same bindings with the fewest loads, and steps on which nothing is lost that was there, will be there and is needed."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rebinding_world import LOAD_MS, Cluster, variants, workers_drawn, world

from scaler.optimizers.snapshot import Snapshot, Worker
from scaler.policy.rebinding import loads_of, rebind, shape_of
from scaler.policy.rebinding_steps import Rates, Step, steps
from scaler.policy.rebinding_transport import ASSIGNED_MAX, transport
from schemas.plan import Binding

levels = st.dictionaries(st.sampled_from(Rates(variants()).levels), st.floats(0.0, 500.0))


def loads(bindings: Any, snapshot: Snapshot) -> int:
    workers = {worker.name: worker for worker in snapshot.workers}
    return sum(len(loads_of(binding, workers[binding.worker])) for binding in bindings)


@given(workers_drawn)
@settings(max_examples=150, deadline=None)
def test_bindings_are_exchanged_within_a_type_and_never_load_more(drawn: Any) -> None:
    snapshot, proposed = world(drawn, 0)
    rebound = rebind(proposed, snapshot)
    types = {worker.name: worker.type for worker in snapshot.workers}
    assert Counter((types[binding.worker], shape_of(binding)) for binding in rebound.bindings) == Counter(
        (types[binding.worker], shape_of(binding)) for binding in proposed
    )
    assert rebound.loads == loads(rebound.bindings, snapshot) <= loads(proposed, snapshot)
    lanes = [(binding.accelerator, binding.lane) for binding in rebound.bindings]
    assert len(set(lanes)) == len(lanes)
    workers = {worker.name: worker for worker in snapshot.workers}
    kept = [(workers[binding.worker].binding, binding) for binding in rebound.bindings]
    assert all(before is None or before.lane == after.lane for before, after in kept)


@given(workers_drawn.map(lambda drawn: drawn[:5]))
@settings(max_examples=80, deadline=None)
def test_no_exchange_whatever_needs_fewer_or_cheaper_loads(drawn: Any) -> None:
    drawn = [("small", has, wanted) for _, has, wanted in drawn]
    snapshot, proposed = world(drawn, 0)

    def cost(names: tuple[str, ...]) -> tuple[int, float]:
        crew = {worker.name: worker for worker in snapshot.workers}
        missing = [loads_of(binding, crew[name]) for name, binding in zip(names, proposed, strict=False)]
        return sum(map(len, missing)), sum(LOAD_MS[key] for keys in missing for key in keys)

    names = [worker.name for worker in snapshot.workers]
    best = min(cost(order) for order in permutations(names, len(proposed)))
    rebound = rebind(proposed, snapshot)
    assert (rebound.loads, round(rebound.load_ms, 6)) == (best[0], round(best[1], 6))


@given(workers_drawn, st.sampled_from((0, 0, 60, 130, 200)), levels)
@settings(max_examples=200, deadline=None)
def test_capacity_never_falls_below_what_was_there_will_be_there_and_is_needed(
    drawn: Any, memory: int, needed: dict[tuple[str, float], float]
) -> None:
    snapshot, proposed = world(drawn, memory)
    sequence = steps(proposed, snapshot, needed)
    order = Rates(snapshot.variants).levels
    cluster = Cluster(snapshot)
    before, began_within = cluster.serving(), cluster.fits()
    after = Cluster(snapshot)
    after.hear(tuple(proposed))
    after.load()
    least = np.minimum(np.minimum(before, after.serving()), [needed.get(level, 0.0) for level in order])
    for step in sequence:
        loading = cluster.hear(step.bindings)
        assert loading <= step.awaited
        assert step.forced or np.all(cluster.serving() >= least - 1e-6)
        cluster.load()
        assert np.all(cluster.serving() >= least - 1e-6) or any(each.forced for each in sequence)
        assert cluster.fits() or not began_within or not after.fits()
    assert sequence[-1].bindings == tuple(sorted(proposed, key=lambda binding: binding.worker))
    assert memory or not any(step.forced for step in sequence)


def test_a_worker_alone_changes_variant_and_threads_without_a_gap() -> None:
    before = Binding(worker="w0", accelerator="cpu", lane=0, variants=("a/1",), batch_size_max=8, threads=1)
    after = msgspec.structs.replace(before, variants=("a/2",), threads=2)
    worker = Worker(name="w0", accelerator="cpu", type="small", threads_max=2, binding=before, hosted=("a/1",))
    snapshot = Snapshot(at_ms=0.0, endpoints=(), variants=variants(), workers=(worker,))
    first, last = steps([after], snapshot, {("a", 0.7): 1.0})
    assert (set(first.bindings[0].variants), first.awaited, first.forced) == ({"a/1", "a/2"}, frozenset({"w0"}), False)
    assert (last.bindings, last.forced) == ((after,), False)


def test_a_worker_that_came_back_as_another_class_has_nothing_of_the_old_ones_lanes() -> None:
    """Its lane-to-be, of the class that it is now, is somebody else's in the class that it was."""
    was = Binding(worker="w0", accelerator="gpu", lane=1, variants=("a/1",))
    other = Binding(worker="w1", accelerator="gpu", lane=0, variants=("a/1",))
    now = Binding(worker="w0", accelerator="cpu", lane=0, variants=("a/1",))
    workers = (
        Worker(name="w0", accelerator="cpu", type="small", binding=was, hosted=("a/1",)),
        Worker(name="w1", accelerator="gpu", type="small", binding=other, hosted=("a/1",)),
    )
    snapshot = Snapshot(at_ms=0.0, endpoints=(), variants=variants(), workers=workers)
    sequence = steps([now, msgspec.structs.replace(other, variants=("a/1", "a/2"))], snapshot, None)
    for step in sequence:
        lanes = [(binding.accelerator, binding.lane) for binding in step.bindings]
        assert len(set(lanes)) == len(lanes)


def full(worker: str, keys: tuple[str, ...], lane: int) -> Worker:
    binding = Binding(worker=worker, accelerator="cpu", lane=lane, variants=keys)
    return Worker(name=worker, accelerator="cpu", type="small", memory_bytes_max=50, threads_max=1, binding=binding, hosted=keys)


def test_where_nothing_fits_beside_workers_change_in_waves_that_leave_what_is_needed() -> None:
    workers = tuple(full(f"w{at}", ("a/3",), at) for at in range(8))
    snapshot = Snapshot(at_ms=0.0, endpoints=(), variants=variants(), workers=workers)
    wanted = [Binding(worker=worker.name, accelerator="cpu", lane=at, variants=("b/2",) if at < 4 else ("a/3",)) for at, worker in enumerate(workers)]
    one = float(Rates(variants()).of("small", frozenset({"a/3"})).max())
    sequence = steps(wanted, snapshot, {("a", 0.9): 6.0 * one, ("a", 0.8): 6.0 * one, ("a", 0.7): 6.0 * one})
    # Four are left in the end, so that four are enough meanwhile: all change at once.
    assert [(len(step.awaited), step.forced) for step in sequence] == [(4, False)]
    swapped = [Binding(worker=worker.name, accelerator="cpu", lane=at, variants=("a/2",)) for at, worker in enumerate(workers)]
    sequence = steps(swapped, snapshot, {("a", 0.7): 6.0 * one})
    assert sum(len(step.awaited) for step in sequence) == 8
    assert len(sequence[0].awaited) == 2
    assert not any(step.forced for step in sequence)


def test_two_that_swap_with_no_room_are_forced_one_after_the_other() -> None:
    workers = (full("w0", ("a/3",), 0), full("w1", ("b/2",), 1))
    snapshot = Snapshot(at_ms=0.0, endpoints=(), variants=variants(), workers=workers)
    wanted = [
        Binding(worker="w0", accelerator="cpu", lane=0, variants=("b/2",)),
        Binding(worker="w1", accelerator="cpu", lane=1, variants=("a/3",)),
    ]
    sequence = steps(wanted, snapshot)
    assert [step.forced for step in sequence] == [True, False]
    assert [set(step.awaited) for step in sequence] in ([{"w0"}, {"w1"}], [{"w1"}, {"w0"}])
    assert steps(list(rebind(wanted, snapshot).bindings), snapshot) == [
        Step(bindings=tuple(worker.binding for worker in workers if worker.binding is not None))
    ]


@pytest.mark.parametrize("units", [ASSIGNED_MAX // 3, 4 * ASSIGNED_MAX])
def test_few_units_and_many_cost_the_same_for_each(units: int) -> None:
    rng = np.random.default_rng(units)
    costs = rng.integers(0, 9, (6, 7)).astype(float)
    wanted = [units // 6] * 6
    room = [units // 6] * 7
    found = transport(costs, wanted, room)
    total = sum(costs[source, sink] * count for source, sink, count in found)
    scaled = transport(costs, [10] * 6, [10] * 7)
    assert total / (units // 6) == pytest.approx(sum(costs[source, sink] * count for source, sink, count in scaled) / 10.0)
    assert [sum(count for source, _, count in found if source == at) for at in range(6)] == wanted


def test_many_kinds_of_many_are_placed_whole_and_near_the_best() -> None:
    rng = np.random.default_rng(3)
    costs = rng.integers(0, 5, (300, 300)).astype(float)
    wanted, room = [7] * 300, [8] * 300
    found = transport(costs, wanted, room)
    assert [sum(count for source, _, count in found if source == at) for at in range(300)] == wanted
    assert max(Counter({at: sum(count for _, sink, count in found if sink == at) for at in range(300)}).values()) <= 8
    assert sum(costs[source, sink] * count for source, sink, count in found) <= 0.02 * 7 * 300
    with pytest.raises(ValueError, match="room for"):
        transport(costs, wanted, [1] * 300)

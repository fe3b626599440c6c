"""What a cluster can do: batches within budgets, odd profiles, threads, memory, crews."""

from __future__ import annotations

import msgspec
import pytest
from optimizer_stage import endpoint, flat, snapshot, variant, workers

from scaler.optimizers.capacity import (
    BAD_ACCURACY,
    NOT_FINITE,
    NOT_POSITIVE,
    UNMEASURED,
    Capacity,
    best_batch,
    monotone,
)
from scaler.optimizers.snapshot import LOST, Cost, Variant
from schemas.plan import Binding
from schemas.profile import Latency

NAN = float("nan")
LINEAR = {1: Latency(5.0, 10.0), 2: Latency(7.0, 14.0), 8: Latency(19.0, 38.0)}
"""p95 = 6 + 4 b."""


def capacity_of(costs, *, fleet=None, accuracy=0.9, batch_size_max=32):
    return Capacity(snapshot([Variant(key="t/v", task="t", accuracy=accuracy, batch_size_max=batch_size_max, costs=costs)], fleet or workers(1)))


@pytest.mark.parametrize(("budget_ms", "batch"), [(9.9, 0), (10.0, 1), (14.0, 2), (21.9, 3), (22.0, 4), (38.0, 8), (46.0, 10), (1e9, 32), (NAN, 0)])
def test_the_largest_batch_that_fits_is_interpolated_and_continued(budget_ms, batch):
    assert best_batch(LINEAR, budget_ms, 32) == batch


def test_a_batch_that_slows_its_rows_is_not_taken():
    curve = {1: Latency(10.0, 10.0), 2: Latency(11.0, 11.0), 4: Latency(80.0, 80.0)}
    assert best_batch(curve, 1000.0, 32) == 2


def test_a_flat_end_is_not_believed_beyond_what_was_measured():
    assert best_batch({1: Latency(10.0, 10.0), 4: Latency(10.0, 10.0)}, 1000.0, 32) == 4


def test_a_profile_that_is_faster_at_larger_sizes_is_made_monotone():
    curve = monotone({1: Latency(10.0, 12.0), 2: Latency(4.0, 3.0), 4: Latency(20.0, 15.0)})
    assert [(curve[size].p50_ms, curve[size].p95_ms) for size in (1, 2, 4)] == [(10.0, 12.0), (10.0, 12.0), (20.0, 20.0)]


def test_the_rate_is_that_of_the_p95():
    found = capacity_of({"a": Cost(latency={1: LINEAR})})
    operation = found.operation(found.crews[0], "t/v", 22.0)
    assert operation is not None
    assert (operation.batch_size, operation.latency_ms) == (4, 22.0)
    assert operation.rate_rps == pytest.approx(1000.0 * 4 / 22.0)


@pytest.mark.parametrize(
    ("batches", "code"),
    [
        ({1: Latency(NAN, 1.0)}, NOT_FINITE),
        ({1: Latency(1.0, float("inf"))}, NOT_FINITE),
        ({1: Latency(0.0, 0.0)}, NOT_POSITIVE),
        ({1: Latency(-1.0, 1.0)}, NOT_POSITIVE),
        ({}, UNMEASURED),
        ({0: Latency(1.0, 1.0)}, UNMEASURED),
    ],
)
def test_a_profile_that_cannot_be_is_refused_and_others_are_not(batches, code):
    found = capacity_of({"a": Cost(latency={1: batches}), "b": Cost(latency={1: flat(5.0)})}, fleet=(*workers(1), *workers(1, "b")))
    assert [(entry.variant, entry.type, entry.code) for entry in found.refused] == [("t/v", "a", code)]
    assert [crew.type for crew in found.crews if found.can_host(crew, "t/v")] == ["b"]
    assert any("t/v on a" in note for note in found.notes)


@pytest.mark.parametrize("accuracy", [NAN, -0.1, 1.1])
def test_an_accuracy_that_cannot_be_is_refused(accuracy):
    found = capacity_of({"a": Cost(latency={1: flat(5.0)})}, accuracy=accuracy)
    assert [entry.code for entry in found.refused] == [BAD_ACCURACY]
    assert found.tasks == {}


def test_threads_are_those_measured_and_there():
    cost = Cost(latency={1: flat(10.0), 2: flat(6.0), 8: flat(2.0)})
    found = capacity_of({"a": cost}, fleet=workers(1, threads_max=4))
    crew = found.crews[0]
    assert found.threads_of(crew, "t/v") == (1, 2)
    best, alone = found.operation(crew, "t/v", 100.0), found.operation(crew, "t/v", 100.0, threads=1)
    assert best is not None
    assert alone is not None
    assert (best.threads, alone.threads) == (2, 1)
    assert found.operation(crew, "t/v", 100.0, threads=8) is None
    none = capacity_of({"a": Cost(latency={8: flat(2.0)})}, fleet=workers(1, threads_max=4))
    assert not none.can_host(none.crews[0], "t/v")


def test_memory_counts_each_variant_once_and_zero_means_no_limit():
    pair = [variant("x", 0.9, {"a": 10.0}, memory=600), variant("y", 0.8, {"a": 10.0}, memory=500)]
    tight = Capacity(snapshot(pair, workers(1, memory_bytes_max=1000)))
    crew = tight.crews[0]
    assert tight.fits(crew, ["t/x", "t/x"])
    assert not tight.fits(crew, ["t/x", "t/y"])
    free = Capacity(snapshot(pair, workers(1)))
    assert free.fits(free.crews[0], ["t/x", "t/y"])


def test_crews_are_of_those_who_are_ready_and_alike():
    fleet = list(workers(5))
    fleet[1] = msgspec.structs.replace(fleet[1], state=LOST)
    fleet[2] = msgspec.structs.replace(fleet[2], refused={"t/v": "out of memory"})
    found = Capacity(snapshot([variant("v", 0.9, {"a": 10.0})], fleet))
    assert sorted((crew.size, tuple(crew.refused)) for crew in found.crews) == [(1, ("t/v",)), (3, ())]
    assert [crew.size for crew in found.crews if found.can_host(crew, "t/v")] == [3]


def test_workers_beyond_the_lanes_are_left_out_and_those_that_hold_one_are_not():
    fleet = list(workers(3))
    fleet[2] = msgspec.structs.replace(fleet[2], binding=Binding(worker="a002", accelerator="cpu", lane=0))
    found = Capacity(snapshot([variant("v", 0.9, {"a": 10.0})], fleet, lanes_per_class=2))
    assert [worker.name for crew in found.crews for worker in crew.workers] == ["a000", "a002"]
    assert found.notes == ["class cpu has 2 lanes for 3 workers"]


def test_variants_of_a_task_are_those_that_somebody_can_host_most_accurate_first():
    some = [variant("x", 0.7, {"a": 10.0}), variant("y", 0.9, {"a": 5.0}), variant("z", 0.95, {"elsewhere": 9.0})]
    found = Capacity(snapshot(some, workers(1), endpoint("e", "t")))
    assert [each.key for each in found.tasks["t"]] == ["t/y", "t/x"]
    assert found.fastest_ms("t") == pytest.approx(100.0)
    assert found.fastest_ms("none") == float("inf")

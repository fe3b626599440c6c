"""Loki: fewest servers, the curve of accuracy against demand, latencies of paths, and where requests are routed."""

from __future__ import annotations

from itertools import product

import pytest
from optimizer_stage import ample, endpoint, flat, hosted, snapshot, variant, workers

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.checking import faults_of
from scaler.optimizers.loki import Loki, chains_of
from scaler.optimizers.loki_routing import most_accurate_first
from scaler.optimizers.optimizer import ALWAYS, FALLBACK, FEASIBLE, INFEASIBLE, OPTIMAL, Limits
from scaler.optimizers.snapshot import Cost, StageDemand, Variant
from schemas.profile import Latency

DETECTORS = {"x": (0.689, 25.0), "l": (0.673, 40.0), "m": (0.641, 66.0), "s": (0.568, 125.0), "n": (0.457, 200.0)}
CLASSIFIERS = {"b5": (0.834, 20.0), "b3": (0.816, 55.0), "b1": (0.788, 110.0), "b0": (0.771, 160.0)}
"""(accuracy, rows/s): ladders of the shape of YOLOv5's and EfficientNet's."""
FAN_OUT = {"d/x": 2.0, "d/l": 1.95, "d/m": 1.85, "d/s": 1.6, "d/n": 1.3}
SERVERS = 20


def pipeline(rate, **more):
    ladder = [variant(name, accuracy, {"a": speed}, task="d") for name, (accuracy, speed) in DETECTORS.items()]
    ladder += [variant(name, accuracy, {"a": speed}, task="c") for name, (accuracy, speed) in CLASSIFIERS.items()]
    stages = (StageDemand(name="detect", task="d"), StageDemand(name="classify", task="c", after="detect", rows=FAN_OUT))
    return snapshot(ladder, workers(more.pop("servers", SERVERS)), endpoint("traffic", *stages, rate=rate), **more)


def accurate_capacity():
    """The most that 20 servers carry with the most accurate variants, by trying every division."""
    return max(min(n * 25.0, (SERVERS - n) * 20.0 / 2.0) for n in range(1, SERVERS))


def test_below_the_capacity_of_the_most_accurate_it_uses_as_few_servers_as_possible():
    proposal = Loki(room=1.0).propose(pipeline(40.0), ample())
    assert hosted(proposal) == {("d/x",): 2, ("c/b5",): 4}
    assert proposal.explanation.status == OPTIMAL
    assert proposal.adopted == ALWAYS
    assert proposal.shares == {"d": {"d/x": 1.0}, "c": {"c/b5": 1.0}}
    assert proposal.explanation.accuracy["traffic"] == pytest.approx(0.689 * 0.834)


def test_beyond_it_accuracy_falls_along_a_curve_and_capacity_grows_as_published():
    base, best = accurate_capacity(), 0.689 * 0.834
    curve = {}
    for factor in (1.0, 1.5, 2.0, 2.7, 4.0):
        proposal = Loki(room=1.0).propose(pipeline(base * factor), ample())
        assert proposal.explanation.served["traffic"] == pytest.approx(1.0, abs=1e-3), factor
        curve[factor] = proposal.explanation.accuracy["traffic"] / best
    assert curve[1.0] == pytest.approx(1.0)
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    assert curve[1.5] > 0.96
    assert curve[2.7] >= 0.87
    assert curve[4.0] < 0.9
    # The further, the dearer: each step of capacity costs more accuracy than the one before.
    assert (1.0 - curve[1.5]) / 0.5 < (curve[1.5] - curve[4.0]) / 2.5


def brute_force(rate, servers):
    """Best mean accuracy over all hostings of a small cluster, with flows divided in steps of a hundredth over at most two paths."""
    names = [*DETECTORS, *CLASSIFIERS]
    speeds = {name: speed for name, (_, speed) in {**DETECTORS, **CLASSIFIERS}.items()}
    best = 0.0
    paths = list(product(DETECTORS, CLASSIFIERS))
    for one, other in product(paths, paths):
        for part in range(101):
            share = part / 100.0
            work = dict.fromkeys(names, 0.0)
            for (detector, classifier), portion in ((one, share), (other, 1.0 - share)):
                work[detector] += portion * rate / speeds[detector]
                work[classifier] += portion * rate * FAN_OUT[f"d/{detector}"] / speeds[classifier]
            needed = sum(-(-value // 1) if value - int(value) > 1e-9 else int(value) for value in work.values() if value > 1e-9)
            if needed <= servers:
                mean = sum(
                    portion * DETECTORS[detector][0] * CLASSIFIERS[classifier][0]
                    for (detector, classifier), portion in ((one, share), (other, 1.0 - share))
                )
                best = max(best, mean)
    return best


@pytest.mark.parametrize(("rate", "servers"), [(60.0, 4), (100.0, 5), (90.0, 3)])
def test_it_is_at_least_as_good_as_the_best_pair_of_paths(rate, servers):
    proposal = Loki(room=1.0).propose(pipeline(rate, servers=servers), ample())
    assert proposal.explanation.accuracy["traffic"] >= brute_force(rate, servers) * (1.0 - 2e-3)


def batching(name, accuracy, fixed_ms, row_ms, task):
    latency = {size: Latency(fixed_ms + row_ms * size, fixed_ms + row_ms * size) for size in (1, 2, 4, 8)}
    return Variant(key=f"{task}/{name}", task=task, accuracy=accuracy, batch_size_max=8, costs={"a": Cost(latency={1: latency})})


def test_the_batches_of_a_path_take_half_of_its_time_at_most():
    ladder = [batching("v", 0.9, 20.0, 2.0, "d"), batching("w", 0.8, 20.0, 2.0, "c")]
    for timeout_ms in (90.0, 120.0, 160.0):
        asked = snapshot(ladder, workers(20), endpoint("e", "d", "c", rate=200.0, timeout_ms=timeout_ms))
        proposal = Loki(room=1.0).propose(asked, ample())
        largest = {binding.variants[0]: binding.batch_size_max for binding in proposal.bindings}
        assert 40.0 + 2.0 * sum(largest.values()) <= timeout_ms / 2.0
        assert sum(proposal.budgets["e"].values()) <= timeout_ms + 1e-6
        assert proposal.budgets["e"]["s0"] == pytest.approx(2.0 * (20.0 + 2.0 * largest["d/v"]))
    assert max(largest.values()) > 4, "with time to spare batches grow"


def test_a_path_that_cannot_be_in_time_is_not_used():
    slow = Variant(key="d/slow", task="d", accuracy=0.99, costs={"a": Cost(latency={1: flat(60.0)})})
    ladder = [slow, variant("quick", 0.7, {"a": 100.0}, task="d"), variant("c", 0.8, {"a": 100.0}, task="c")]
    proposal = Loki(room=1.0).propose(snapshot(ladder, workers(6), endpoint("e", "d", "c", rate=20.0, timeout_ms=100.0)), ample())
    assert set(hosted(proposal)) == {("d/quick",), ("c/c",)}


def test_demand_beyond_the_least_accurate_is_cut_and_said():
    asked = pipeline(accurate_capacity() * 20.0)
    proposal = Loki(room=1.0).propose(asked, ample())
    assert proposal.explanation.status == INFEASIBLE
    assert 0.2 < proposal.explanation.served["traffic"] < 0.9
    assert any("demand was cut" in note for note in proposal.explanation.bound_by)


def test_there_is_room_for_a_quarter_more_as_far_as_the_cluster_has_it():
    proposal = Loki().propose(pipeline(40.0), ample())
    assert hosted(proposal) == hosted(Loki(room=1.0).propose(pipeline(50.0), ample())) == {("d/x",): 2, ("c/b5",): 5}
    assert proposal.explanation.status == OPTIMAL
    assert proposal.explanation.objective == pytest.approx(40.0 * 0.689 * 0.834)
    most = next(rate for rate in range(2_000, 100, -10) if Loki(room=1.0).propose(pipeline(rate), ample()).explanation.status == OPTIMAL)
    tight = Loki().propose(pipeline(most / 1.1), ample())
    assert tight.explanation.status == FEASIBLE
    assert tight.explanation.served["traffic"] == pytest.approx(1.0, abs=1e-3)
    assert any(note.startswith("room for 1") and note.endswith("and not for 125%") for note in tight.explanation.bound_by)


def test_without_time_greedy_decides():
    asked = pipeline(100.0)
    proposal = Loki(room=1.0).propose(asked, Limits(time_s=0.0, seed=1, clock_s=lambda: 0.0))
    assert proposal.explanation.status == FALLBACK
    assert faults_of(proposal, asked) == []


def test_most_accurate_first_fills_workers_in_decreasing_accuracy_and_follows_the_fan_out():
    asked = pipeline(100.0)
    shares = most_accurate_first(asked, Capacity(asked), {"d/x": 25.0, "d/m": 66.0, "d/n": 200.0, "c/b5": 80.0, "c/b0": 160.0})
    assert shares["d"] == {"d/x": pytest.approx(0.25), "d/m": pytest.approx(0.66), "d/n": pytest.approx(0.09)}
    rows = 25.0 * 2.0 + 66.0 * 1.85 + 9.0 * 1.3
    assert shares["c"] == {"c/b5": pytest.approx(80.0 / rows), "c/b0": pytest.approx(1.0 - 80.0 / rows)}


def test_chains_lead_from_the_root_to_each_leaf():
    tree = (StageDemand(name="r", task="t"), StageDemand(name="x", task="t", after="r"), StageDemand(name="y", task="t", after="r"))
    assert chains_of(endpoint("e", *tree)) == [["r", "x"], ["r", "y"]]

"""Random snapshots through every optimizer: valid plans, honest explanations, and nobody below what a simpler rule would do."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.optimizers.capacity import Capacity, best_batch, monotone
from scaler.optimizers.checking import faults_of
from scaler.optimizers.evaluation import flows_of
from scaler.optimizers.lanes import give_lanes
from scaler.optimizers.optimizer import Limits
from scaler.optimizers.paths import compute_ms, demand_by_floor, paths_of, stage_budgets
from scaler.optimizers.random_snapshots import Shape, random_snapshot
from scaler.optimizers.registry import BUILT_IN, create_optimizer
from schemas.profile import Latency, latency_at

SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SHAPES = st.builds(
    Shape,
    types=st.integers(1, 4),
    workers=st.integers(0, 30),
    tasks=st.integers(1, 5),
    variants=st.integers(1, 6),
    endpoints=st.integers(1, 4),
    stages=st.integers(1, 4),
    odd=st.sampled_from([0.0, 0.2, 0.7]),
    load=st.sampled_from([0.05, 0.5, 2.0, 20.0]),
)


def limits(time_s=0.15):
    return Limits(time_s=time_s, seed=3, clock_s=time.monotonic)


@pytest.mark.parametrize("name", BUILT_IN)
@QUICK
@given(seed=SEEDS, shape=SHAPES)
def test_every_plan_is_valid_and_its_explanation_possible(name, seed, shape):
    snapshot = random_snapshot(np.random.default_rng(seed), shape)
    proposal = create_optimizer(name).propose(snapshot, limits())
    assert faults_of(proposal, snapshot) == []
    explanation = proposal.explanation
    assert set(explanation.served) <= {endpoint.endpoint for endpoint in snapshot.endpoints}
    assert all(-1e-9 <= part <= 1.0 + 1e-6 for part in (*explanation.served.values(), *explanation.accuracy.values(), *explanation.load.values()))
    assert msgspec.json.decode(msgspec.json.encode(proposal), type=type(proposal)) == proposal


@QUICK
@given(seed=SEEDS, shape=SHAPES)
def test_a_plan_in_force_is_taken_up_with_its_lanes(seed, shape):
    snapshot = random_snapshot(np.random.default_rng(seed), shape)
    proposal = create_optimizer("greedy").propose(snapshot, limits())
    bindings = {binding.worker: binding for binding in proposal.bindings}
    workers = tuple(msgspec.structs.replace(worker, binding=bindings.get(worker.name, worker.binding)) for worker in snapshot.workers)
    bound = [worker for worker in workers if worker.name in bindings]
    kept = give_lanes(bound, msgspec.structs.replace(snapshot, workers=workers))
    assert kept == {name: binding.lane for name, binding in bindings.items()}


@QUICK
@given(seed=SEEDS, shape=SHAPES)
def test_flows_never_exceed_demand_workers_or_accuracy(seed, shape):
    snapshot = random_snapshot(np.random.default_rng(seed), shape)
    capacity = Capacity(snapshot)
    bindings = create_optimizer("static-accurate").propose(snapshot, limits()).bindings
    flows = flows_of(bindings, snapshot, capacity)
    asked = sum(floor.rate_rps for endpoint in snapshot.endpoints for floor in demand_by_floor(endpoint))
    assert flows.served_rps <= asked * (1.0 + 1e-6)
    assert all(sum(shares.values()) <= 1.0 + 1e-6 for shares in flows.shares.values())
    best = {endpoint.endpoint: max((path.accuracy for path in paths_of(endpoint, capacity)), default=0.0) for endpoint in snapshot.endpoints}
    assert all(accuracy <= best[name] + 1e-6 for name, accuracy in flows.accuracy.items())


@QUICK
@given(seed=SEEDS, shape=SHAPES)
def test_budgets_never_add_up_to_more_than_the_time(seed, shape):
    snapshot = random_snapshot(np.random.default_rng(seed), shape)
    capacity = Capacity(snapshot)
    for endpoint in snapshot.endpoints:
        time_ms = compute_ms(endpoint, snapshot.hop_ms)
        budgets = stage_budgets(endpoint, capacity, time_ms)
        spent = {}
        for stage in endpoint.stages:
            spent[stage.name] = budgets[stage.name] + (spent[stage.after] if stage.after else 0.0)
            assert spent[stage.name] <= time_ms * (1.0 + 1e-9) + 1e-9


@QUICK
@given(
    p50s=st.dictionaries(st.integers(1, 64), st.floats(0.1, 100.0), min_size=1, max_size=6),
    budget_ms=st.floats(0.0, 500.0),
    largest=st.integers(1, 128),
)
def test_the_best_batch_is_the_best_of_all_that_fit(p50s, budget_ms, largest):
    curve = monotone({size: Latency(p50, p50 * 1.2) for size, p50 in p50s.items()})
    found = best_batch(curve, budget_ms, largest)
    sizes = sorted(curve)
    flat = len(sizes) > 1 and curve[sizes[-1]].p95_ms <= curve[sizes[-2]].p95_ms
    top = min(largest, sizes[-1]) if flat else largest
    rates = [size / latency_at(curve, size).p95_ms for size in range(1, top + 1) if latency_at(curve, size).p95_ms <= budget_ms]
    if not rates:
        assert found == 0
    else:
        assert latency_at(curve, found).p95_ms <= budget_ms
        assert found / latency_at(curve, found).p95_ms >= max(rates) * (1.0 - 1e-9)

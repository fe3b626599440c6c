"""What a run costs: it follows from the requests, and hardly from how many workers there are; memory does not follow from how many have finished."""

from __future__ import annotations

import cProfile
import gc
import tracemalloc
from functools import partial

import msgspec
import pytest
from simulator_stage import LADDER, catalog, scenario, variants

from scaler.simulator import cluster
from scaler.simulator.result import EndpointResult
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Scenario
from schemas.limits import Limits

CALLS_EACH_MAX = 400.0
"""Calls of functions for each request, with the reports of 1,000 workers at 4,000 requests a second; looking at every lane in every step takes
several thousand."""

KEPT_BYTES_MAX = 40.0


def crowd(workers: int, duration_s: float) -> Scenario:
    """One variant, so that they are ready soon."""
    one = LADDER[:1]
    whole = scenario(rate_rps=4_000.0, workers=workers, duration_s=duration_s, floors=(0.5,))
    return msgspec.structs.replace(whole, catalog=catalog(one), variants=variants(one, tail=1.2))


def counted(workers: int, duration_s: float) -> tuple[EndpointResult, int]:
    profile = cProfile.Profile(builtins=False)
    total = profile.runcall(simulate, crowd(workers, duration_s), 1).total
    return total, sum(entry.callcount for entry in profile.getstats())


def test_a_thousand_workers_cost_little_more_for_each_request() -> None:
    (short, before), (whole, calls) = counted(1_000, 0.1), counted(1_000, 0.6)
    assert whole.completed == whole.offered > 2_000
    assert (calls - before) / (whole.offered - short.offered) < CALLS_EACH_MAX


def peak_bytes(wanted: Scenario) -> tuple[int, int]:
    """(requests, the most that Python held)"""
    gc.collect()
    tracemalloc.start()
    offered = simulate(wanted, 1).total.offered
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return offered, peak


def test_memory_is_flat_in_the_number_of_finished_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "Limits", partial(Limits, recent_ids_max=500))
    (few, short), (many, long) = (peak_bytes(scenario(rate_rps=1_000.0, duration_s=duration_s)) for duration_s in (4.0, 16.0))
    # Buffers of random numbers and latencies fill and empty; who remembers a request keeps its id at least.
    assert (long - short) / (many - few) < KEPT_BYTES_MAX

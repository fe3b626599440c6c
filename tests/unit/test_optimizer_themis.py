"""Themis's dynamic programs against every combination, its rule between them, and what becomes of it on a fixed cluster."""

from __future__ import annotations

from itertools import product
from math import ceil

import msgspec
import numpy as np
import pytest
from optimizer_stage import ample, endpoint, flat, hosted, snapshot, workers

from scaler.optimizers.optimizer import INFEASIBLE
from scaler.optimizers.snapshot import Cost, Variant
from scaler.optimizers.themis import Themis
from scaler.optimizers.themis_programs import (
    CALM_DECISIONS,
    HORIZONTAL,
    VERTICAL,
    Option,
    StageLoad,
    Transition,
    advance,
    horizontal,
    vertical,
    vertical_and_more,
    wait_ms,
)


def options(random):
    a, b, g, z = random.uniform(1.0, 10.0), random.uniform(0.1, 2.0), random.uniform(1.0, 20.0), random.uniform(0.0, 5.0)
    return tuple(
        Option(batch_size=batch, cores=cores, latency_ms=a * batch / cores + b * batch + g / cores + z) for batch in (1, 2, 4) for cores in (1, 2, 4)
    )


def chain(seed, tree=False):
    random = np.random.default_rng(seed)
    names = ["r", "x", "y"]
    above = {"r": None, "x": "r", "y": "r" if tree else "x"}
    rate = float(random.uniform(20.0, 200.0))
    return [
        StageLoad(name=name, after=above[name], rate_rps=rate, options=options(random), replicas=int(random.integers(1, 6))) for name in names
    ], float(random.uniform(15.0, 90.0))


def brute_force(stages, time_ms, *, up):
    """The least cost of every combination of options, times rounded up to whole milliseconds."""
    best = None
    for picks in product(*(stage.options for stage in stages)):
        cost, spent = 0, {}
        for stage, option in zip(stages, picks, strict=True):
            own = option.latency_ms + wait_ms(option.batch_size, stage.rate_rps)
            spent[stage.name] = ceil(own - 1e-9) + (spent[stage.after] if stage.after else 0)
            if up and stage.replicas * option.rate_rps < stage.rate_rps * (1 - 1e-9):
                break
            if not up and option.cores > 1:
                break
            cost += stage.replicas * option.cores if up else ceil(stage.rate_rps / option.rate_rps - 1e-9)
        else:
            if max(spent.values()) <= int(time_ms) and (best is None or cost < best):
                best = cost
    return best


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_both_programs_find_the_least_cost(seed, tree):
    stages, time_ms = chain(seed, tree)
    wide, tall = horizontal(stages, time_ms), vertical(stages, time_ms)
    assert (None if wide is None else sum(each.replicas for each in wide.stages.values())) == brute_force(stages, time_ms, up=False)
    assert (None if tall is None else tall.cores) == brute_force(stages, time_ms, up=True)


def test_some_of_those_chains_can_be_served_and_some_cannot():
    found = [program(*chain(seed)) is not None for seed in range(25) for program in (horizontal, vertical)]
    assert 5 < sum(found) < 45


def test_where_cores_are_not_enough_replicas_cover_the_rest():
    option = Option(batch_size=1, cores=2, latency_ms=10.0)
    stage = StageLoad(name="s", rate_rps=250.0, options=(option,), replicas=1)
    assert vertical([stage], 100.0) is None
    found = vertical_and_more([stage], 100.0)
    assert found is not None
    assert found.stages["s"].replicas == 3
    assert found.cores == 6
    assert vertical_and_more([stage], 5.0) is None


def test_a_batch_waits_for_its_last_row():
    assert wait_ms(1, 0.0) == 0.0
    assert wait_ms(5, 100.0) == 40.0
    assert wait_ms(2, 0.0) == float("inf")


def test_it_goes_vertical_at_once_and_horizontal_after_ten_calm_decisions():
    state = advance(Transition(), replicas_now=2, replicas_needed=3, rising=True)
    assert state == Transition(VERTICAL, 0)
    for calm in range(1, CALM_DECISIONS):
        state = advance(state, replicas_now=3, replicas_needed=3, rising=False)
        assert state == Transition(VERTICAL, calm)
    assert advance(state, replicas_now=3, replicas_needed=4, rising=False) == Transition(VERTICAL, 0)
    assert advance(state, replicas_now=3, replicas_needed=3, rising=False).mode == HORIZONTAL


THREADED = Variant(key="t/v", task="t", accuracy=0.9, batch_size_max=1, costs={"a": Cost(latency={1: flat(40.0), 2: flat(20.0), 4: flat(10.0)})})


def asked(rate, fleet=None, **more):
    return snapshot([THREADED], fleet or workers(6, threads_max=4), endpoint("e", "t", rate=rate, timeout_ms=200.0), **more)


def carried_on(before, proposal, rate):
    """The next snapshot, when the proposal is in force."""
    bindings = {binding.worker: binding for binding in proposal.bindings}
    fleet = tuple(msgspec.structs.replace(worker, binding=bindings.get(worker.name)) for worker in before.workers)
    return asked(rate, fleet, memory=proposal.memory)


def threads(proposal):
    return sorted(binding.threads for binding in proposal.bindings)


def test_on_a_cluster_load_raises_threads_first_and_becomes_workers_when_it_settles():
    first = asked(50.0)
    proposal = Themis().propose(first, ample())
    assert threads(proposal) == [1, 1]
    before = carried_on(first, proposal, 90.0)
    proposal = Themis().propose(before, ample())
    assert threads(proposal) == [2, 2]
    for _ in range(CALM_DECISIONS - 1):
        # Two workers of one thread would carry this: but it has not been calm for long.
        before = carried_on(before, proposal, 40.0)
        proposal = Themis().propose(before, ample())
        assert threads(proposal) == [2, 2]
    proposal = Themis().propose(carried_on(before, proposal, 40.0), ample())
    assert threads(proposal) == [1, 1]


def test_more_replicas_than_workers_are_shed_and_said():
    proposal = Themis().propose(asked(2_000.0), ample())
    assert proposal.explanation.status == INFEASIBLE
    assert hosted(proposal) == {("t/v",): 6}
    assert threads(proposal) == [4] * 6
    assert any("more replicas" in note for note in proposal.explanation.bound_by)


def test_with_one_of_its_two_ways_taken_away_it_never_goes_the_other():
    calm, rising = asked(20.0), asked(90.0)
    first = Themis(vertical=0.0).propose(calm, ample())
    assert set(threads(Themis(vertical=0.0).propose(carried_on(calm, first, 90.0), ample()))) == {1}
    assert set(threads(Themis(horizontal=0.0).propose(rising, ample()))) != {1}
    with pytest.raises(ValueError, match="both 0"):
        Themis(horizontal=0.0, vertical=0.0)

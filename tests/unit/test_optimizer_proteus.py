"""Proteus against all placements of small clusters, and where the paper says nothing."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from optimizer_stage import ample, endpoint, hosted, snapshot, variant, workers

from scaler.optimizers.checking import faults_of
from scaler.optimizers.optimizer import FALLBACK, INFEASIBLE, OPTIMAL, Limits
from scaler.optimizers.proteus import Proteus

FAMILIES = ("s", "t")


def best_by_brute_force(rates, accuracies, sizes, demand):
    """Highest mean accuracy over every placement; None where none serves all. `rates[type][variant]`; accuracies by variant, per family."""
    best = None
    choices = [list(product([None, *rates[type_]], repeat=count)) for type_, count in sizes.items()]
    for placement in product(*choices):
        capacity = dict.fromkeys(accuracies, 0.0)
        for type_, hosts in zip(sizes, placement, strict=True):
            for key in hosts:
                if key is not None:
                    capacity[key] += rates[type_][key]
        total = 0.0
        for family in FAMILIES:
            left = demand[family]
            for key in sorted((key for key in accuracies if key.startswith(family)), key=lambda key: -accuracies[key]):
                flow = min(left, capacity[key])
                total += flow * accuracies[key]
                left -= flow
            if left > 1e-9:
                break
        else:
            best = total if best is None else max(best, total)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_good_as_every_placement(seed):
    random = np.random.default_rng(seed)
    sizes = {"a": 3, "b": 2}
    names = [f"{family}{step}" for family in FAMILIES for step in range(2)]
    accuracies = {name: round(float(random.uniform(0.5, 1.0)), 3) for name in names}
    rates = {type_: {name: float(random.uniform(5.0, 50.0)) for name in names} for type_ in sizes}
    demand = {family: float(random.uniform(5.0, 60.0)) for family in FAMILIES}
    ladder = [variant(name, accuracies[name], {type_: rates[type_][name] for type_ in sizes}, task=name[0]) for name in names]
    fleet = [worker for type_, count in sizes.items() for worker in workers(count, type_)]
    asked = snapshot(ladder, fleet, *(endpoint(family, family, rate=demand[family]) for family in FAMILIES))
    proposal = Proteus(room=1.0).propose(asked, ample())
    best = best_by_brute_force(rates, accuracies, sizes, demand)
    assert faults_of(proposal, asked) == []
    if best is None:
        assert proposal.explanation.status == INFEASIBLE
    else:
        assert proposal.explanation.status == OPTIMAL
        assert proposal.explanation.objective == pytest.approx(best, rel=2e-3)
        assert all(served == pytest.approx(1.0, abs=1e-4) for served in proposal.explanation.served.values())


LADDER = [variant("slow", 0.9, {"a": 10.0}), variant("fast", 0.6, {"a": 40.0})]


def test_shares_are_the_flows_of_the_solution():
    # Two slow and one fast carry 60; 20 of them by the slow ones.
    proposal = Proteus(room=1.0).propose(snapshot(LADDER, workers(3), endpoint("e", "t", rate=50.0)), ample())
    assert hosted(proposal) == {("t/slow",): 2, ("t/fast",): 1}
    assert proposal.shares["t"] == {"t/fast": pytest.approx(0.6), "t/slow": pytest.approx(0.4)}
    assert proposal.explanation.accuracy["e"] == pytest.approx(0.4 * 0.9 + 0.6 * 0.6)


def test_what_cannot_be_served_is_cut_for_all_alike():
    ladder = [*LADDER, variant("only", 0.8, {"a": 40.0}, task="u")]
    asked = snapshot(ladder, workers(4), endpoint("e", "t", rate=160.0), endpoint("f", "u", rate=160.0))
    proposal = Proteus(room=1.0).propose(asked, ample())
    assert proposal.explanation.status == INFEASIBLE
    assert proposal.explanation.served == {"e": pytest.approx(0.5, abs=0.01), "f": pytest.approx(0.5, abs=0.01)}
    assert any("cut to 50.0%" in note for note in proposal.explanation.bound_by)


def test_where_whole_workers_leave_somebody_nothing_as_much_as_possible_is_served():
    ladder = [*LADDER, variant("only", 0.8, {"a": 40.0}, task="u")]
    asked = snapshot(ladder, workers(1), endpoint("e", "t", rate=10.0), endpoint("f", "u", rate=30.0))
    proposal = Proteus(room=1.0).propose(asked, ample())
    assert hosted(proposal) == {("u/only",): 1}
    assert proposal.explanation.served == {"e": 0.0, "f": pytest.approx(1.0)}


def test_variants_below_the_floor_of_most_requests_are_left_out():
    asked = snapshot(LADDER, workers(3), endpoint("e", "t", floors={0.0: 5.0, 0.8: 45.0}))
    proposal = Proteus(room=1.0).propose(asked, ample())
    assert hosted(proposal) == {("t/slow",): 3}


def test_without_time_greedy_decides_and_it_says_so():
    asked = snapshot(LADDER, workers(3), endpoint("e", "t", rate=50.0))
    proposal = Proteus(room=1.0).propose(asked, Limits(time_s=0.0, seed=1, clock_s=lambda: 0.0))
    assert proposal.explanation.status == FALLBACK
    assert faults_of(proposal, asked) == []
    assert proposal.bindings


def test_idle_workers_stand_by():
    proposal = Proteus(room=1.0).propose(snapshot(LADDER, workers(5), endpoint("e", "t", rate=10.0)), ample())
    assert hosted(proposal) == {("t/slow",): 5}

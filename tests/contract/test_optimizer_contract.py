"""One contract suite over every built-in optimizer, and optimizers that break it, to see that the suite would notice."""

from __future__ import annotations

import time

import msgspec
import pytest

from scaler.optimizers.contract import (
    CHECKS,
    ContractBroken,
    copes_with_nothing,
    decides_the_same_again,
    gives_valid_plans,
    is_in_time,
    never_exceeds_memory,
    says_what_it_is,
    says_when_it_is_not_enough,
    serves_no_less_than_static,
)
from scaler.optimizers.greedy import Greedy
from scaler.optimizers.optimizer import Explanation, Proposal
from scaler.optimizers.registry import BUILT_IN, create_optimizer


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", BUILT_IN)
def test_contract(name, check):
    check(create_optimizer(name), time.monotonic)


class Changed:
    """Greedy, with one thing wrong."""

    name, source = "changed", "test"

    def __init__(self, change):
        self._change = change

    def propose(self, snapshot, limits):
        return self._change(Greedy().propose(snapshot, limits), snapshot)


def bindings_with(**changes):
    def change(proposal, snapshot):
        return msgspec.structs.replace(proposal, bindings=tuple(msgspec.structs.replace(binding, **changes) for binding in proposal.bindings))

    return change


def everything_everywhere(proposal, snapshot):
    costs = {variant.key: variant.costs for variant in snapshot.variants}
    types = {worker.name: worker for worker in snapshot.workers}
    bindings = tuple(
        msgspec.structs.replace(
            binding,
            variants=tuple(k for k, cost in costs.items() if types[binding.worker].type in cost and k not in types[binding.worker].refused),
        )
        for binding in proposal.bindings
    )
    return msgspec.structs.replace(proposal, bindings=bindings)


def explained(**changes):
    return lambda proposal, snapshot: msgspec.structs.replace(proposal, explanation=msgspec.structs.replace(proposal.explanation, **changes))


class Counting:
    """Remembers in itself how often it was asked."""

    name, source = "counting", "test"

    def __init__(self):
        self._asked = 0

    def propose(self, snapshot, limits):
        self._asked += 1
        return Proposal(bindings=(), explanation=Explanation(status="feasible", objective=float(self._asked), bound_by=("counting",)))


class Slow(Counting):
    name = "slow"

    def propose(self, snapshot, limits):
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass
        return super().propose(snapshot, limits)


class Nameless(Counting):
    name = ""


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (Nameless(), says_what_it_is, "named"),
        (Changed(bindings_with(lane=0)), gives_valid_plans, "share lane"),
        (Changed(bindings_with(threads=99)), gives_valid_plans, "threads"),
        (Changed(bindings_with(batch_size_max=0)), gives_valid_plans, "batches of 0"),
        (Changed(bindings_with(variants=("task0/none",))), gives_valid_plans, "unknown"),
        (Changed(explained(status="great")), gives_valid_plans, "status"),
        (Changed(explained(objective=float("nan"))), gives_valid_plans, "objective"),
        (Changed(lambda proposal, snapshot: 1 / 0), gives_valid_plans, "ZeroDivisionError"),
        (Changed(lambda proposal, snapshot: None), gives_valid_plans, "NoneType"),
        (Changed(everything_everywhere), never_exceeds_memory, "bytes"),
        (Changed(explained(bound_by=())), copes_with_nothing, "why nothing is served"),
        (Counting(), decides_the_same_again, "second time"),
        (Slow(), is_in_time, "took"),
        (Counting(), serves_no_less_than_static, "serves 0"),
        (Changed(explained(status="optimal")), says_when_it_is_not_enough, "optimal"),
    ],
)
def test_a_broken_optimizer_is_noticed(broken, check, said):
    with pytest.raises(ContractBroken, match=said):
        check(broken, time.monotonic)

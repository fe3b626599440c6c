"""The contract suite of optimizers: what every optimizer must do, as checks that a third party runs over its own.

With pytest, in the plug-in's own tests:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(MyOptimizer(), time.monotonic)

or `check_optimizer(MyOptimizer(), time.monotonic)` for all at once. A check raises ContractBroken with one sentence where the optimizer breaks the
contract. The clock is the caller's: this package has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite

import msgspec
import numpy as np

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.checking import faults_of
from scaler.optimizers.evaluation import flows_of
from scaler.optimizers.optimizer import FALLBACK, FEASIBLE, INFEASIBLE, OPTIMAL, Limits, Optimizer, Proposal
from scaler.optimizers.random_snapshots import Shape, large_snapshot, random_snapshot
from scaler.optimizers.snapshot import LOST, FloorDemand, Snapshot
from scaler.optimizers.static import StaticAccurate

Clock = Callable[[], float]
"""Seconds, as time.monotonic counts them."""
Check = Callable[[Optimizer, Clock], None]
STATUSES = (OPTIMAL, FEASIBLE, FALLBACK, INFEASIBLE)
RANDOM_SNAPSHOTS = 25
TIME_S = 0.3
LATE_S = 0.7
"""A busy machine may be so late; an optimizer that does not look at its limit is later."""
AMPLE_S = 30.0
SERVED_PART = 0.98
"""Of what static-accurate serves."""
SMALL = Shape(types=2, workers=6, tasks=2, variants=3, endpoints=2, stages=2, floors=2)


class ContractBroken(AssertionError):
    """The optimizer does not do what its protocol says."""


def says_what_it_is(optimizer: Optimizer, clock_s: Clock) -> None:
    """A name to ask for it by, and where it comes from."""
    del clock_s
    _require(bool(optimizer.name) and optimizer.name == optimizer.name.strip(), f"is named {optimizer.name!r}")
    _require(bool(optimizer.source), "does not say where it comes from (`source`)")


def gives_valid_plans(optimizer: Optimizer, clock_s: Clock) -> None:
    """For any snapshot that is well formed: a plan that may come into force, with an explanation of possible numbers. It raises nothing."""
    for seed in range(RANDOM_SNAPSHOTS):
        snapshot = random_snapshot(np.random.default_rng(seed))
        _valid(optimizer, snapshot, _limits(clock_s), f"random snapshot {seed}")


def never_exceeds_memory(optimizer: Optimizer, clock_s: Clock) -> None:
    """On workers with memory for one variant, for a few, and for none."""
    for seed in range(4):
        snapshot = random_snapshot(np.random.default_rng(1_000 + seed), Shape(odd=0.0))
        for memory_bytes in (1, 300 << 20, 1_000 << 20):
            workers = tuple(msgspec.structs.replace(worker, memory_bytes_max=memory_bytes) for worker in snapshot.workers)
            tight = msgspec.structs.replace(snapshot, workers=workers)
            _valid(optimizer, tight, _limits(clock_s), f"random snapshot {1_000 + seed} on workers of {memory_bytes} bytes")


def copes_with_nothing(optimizer: Optimizer, clock_s: Clock) -> None:
    """No workers, only dead ones, no variants, endpoints, demand or lanes: a valid plan, which says what is missing where nothing is served."""
    for what, snapshot in _poor_snapshots():
        proposal = _valid(optimizer, snapshot, _limits(clock_s), f"a snapshot with {what}")
        served = any(part > 0.0 for part in proposal.explanation.served.values())
        _require(served or bool(proposal.explanation.bound_by), f"does not say why nothing is served (`bound_by`), for a snapshot with {what}")


def copes_with_impossible_numbers(optimizer: Optimizer, clock_s: Clock) -> None:
    """Demand that is negative, no number or endless; profiles that cannot be."""
    for rate in (-5.0, float("nan"), float("inf"), 1e12):
        snapshot = _with_rate(_plain(1.0), rate)
        _valid(optimizer, snapshot, _limits(clock_s), f"a demand of {rate} requests/s")
    for seed in range(5):
        snapshot = random_snapshot(np.random.default_rng(2_000 + seed), Shape(odd=0.9))
        _valid(optimizer, snapshot, _limits(clock_s), f"random snapshot {2_000 + seed}, a very odd one")


def decides_the_same_again(optimizer: Optimizer, clock_s: Clock) -> None:
    """The same snapshot and seed, with enough time, give the same proposal, whatever was asked in between; the snapshot stays as it was."""
    del clock_s
    snapshots = [random_snapshot(np.random.default_rng(3_000 + seed), SMALL) for seed in range(4)] + [_plain(1.0)]
    before = [msgspec.json.encode(snapshot) for snapshot in snapshots]
    first, second = ([optimizer.propose(snapshot, _ample()) for snapshot in order] for order in (snapshots, snapshots[::-1]))
    for number, (one, other) in enumerate(zip(first, second[::-1], strict=True)):
        _require(_same(one, other), f"gives another proposal the second time, for snapshot {number}")
    _require([msgspec.json.encode(snapshot) for snapshot in snapshots] == before, "changes its snapshot")


def is_in_time(optimizer: Optimizer, clock_s: Clock) -> None:
    """With little time, or none, it returns the best that it has: a valid plan."""
    snapshot = large_snapshot(np.random.default_rng(0), workers=200, endpoints=12, variants=6, load=1.0)
    for time_s in (TIME_S, 0.0):
        began_s = clock_s()
        proposal = optimizer.propose(snapshot, Limits(time_s=time_s, seed=1, clock_s=clock_s))
        took_s = clock_s() - began_s
        _require(took_s <= time_s + LATE_S, f"took {took_s:.2f} s of {time_s:g} s, for 200 workers and 12 endpoints")
        faults = faults_of(proposal, snapshot)
        _require(not faults, f"gives an invalid plan in {time_s:g} s: {'; '.join(faults[:3])}")


def serves_no_less_than_static(optimizer: Optimizer, clock_s: Clock) -> None:
    """On plain clusters (one stage, no floors, everything known) as many requests as the most accurate variants alone would."""
    for load in (0.3, 1.0, 2.0):
        snapshot = _plain(load)
        capacity = Capacity(snapshot)
        own = flows_of(optimizer.propose(snapshot, _limits(clock_s, 1.0)).bindings, snapshot, capacity)
        static = flows_of(StaticAccurate().propose(snapshot, _limits(clock_s, 1.0)).bindings, snapshot, capacity)
        _require(
            own.served_rps >= SERVED_PART * static.served_rps,
            f"serves {own.served_rps:.0f} requests/s where static-accurate serves {static.served_rps:.0f} (load {load:g})",
        )


def says_when_it_is_not_enough(optimizer: Optimizer, clock_s: Clock) -> None:
    """Where demand is far beyond the cluster: a valid plan all the same, called infeasible or a fallback, with what bound it."""
    proposal = _valid(optimizer, _plain(200.0), _limits(clock_s, 1.0), "a demand 200 times too large")
    status = proposal.explanation.status
    _require(status in (INFEASIBLE, FALLBACK), f"calls a plan for a demand 200 times too large {status}")
    _require(bool(proposal.explanation.bound_by), "does not say what bound it (`bound_by`), for a demand 200 times too large")
    _require(any(binding.variants for binding in proposal.bindings), "hosts nothing, for a demand 200 times too large")


CHECKS: tuple[Check, ...] = (
    says_what_it_is,
    gives_valid_plans,
    never_exceeds_memory,
    copes_with_nothing,
    copes_with_impossible_numbers,
    decides_the_same_again,
    is_in_time,
    serves_no_less_than_static,
    says_when_it_is_not_enough,
)


def check_optimizer(optimizer: Optimizer, clock_s: Clock) -> None:
    """All checks. Raises ContractBroken at the first that fails."""
    for check in CHECKS:
        check(optimizer, clock_s)


def _valid(optimizer: Optimizer, snapshot: Snapshot, limits: Limits, what: str) -> Proposal:
    try:
        proposal = optimizer.propose(snapshot, limits)
    except Exception as error:  # somebody's optimizer may raise anything: whatever it is, it broke the contract
        raise ContractBroken(f"raises {type(error).__name__} ({error}), for {what}") from error
    _require(isinstance(proposal, Proposal), f"gives {type(proposal).__name__}, not a Proposal, for {what}")  # pyright: ignore[reportUnnecessaryIsInstance] - somebody's optimizer may
    faults = faults_of(proposal, snapshot)
    _require(not faults, f"gives an invalid plan for {what}: {'; '.join(faults[:3])}")
    explanation = proposal.explanation
    _require(explanation.status in STATUSES, f"gives status {explanation.status!r}, not one of {', '.join(STATUSES)}, for {what}")
    _require(isfinite(explanation.objective), f"gives an objective of {explanation.objective}, for {what}")
    for name, parts in (("served", explanation.served), ("accuracy", explanation.accuracy), ("load", explanation.load)):
        wrong = {key: part for key, part in parts.items() if not -1e-6 <= part <= 1.0 + 1e-6}
        _require(not wrong, f"gives {name} parts that are not between 0 and 1 ({wrong}), for {what}")
    unknown = set(explanation.served) - {endpoint.endpoint for endpoint in snapshot.endpoints}
    _require(not unknown, f"serves endpoints that are not there ({', '.join(sorted(unknown))}), for {what}")
    return proposal


def _poor_snapshots() -> Iterator[tuple[str, Snapshot]]:
    plain = _plain(1.0)
    replace = msgspec.structs.replace
    yield "nothing at all", Snapshot(at_ms=0.0, endpoints=(), variants=(), workers=())
    yield "no workers", replace(plain, workers=())
    yield "dead workers only", replace(plain, workers=tuple(replace(worker, state=LOST) for worker in plain.workers))
    yield "no variants", replace(plain, variants=())
    yield "a class without variants", replace(plain, workers=tuple(replace(worker, type="unheard-of") for worker in plain.workers))
    yield "no endpoints", replace(plain, endpoints=())
    yield "no demand", _with_rate(plain, 0.0)
    yield "no lanes", replace(plain, lanes_per_class=0)
    yield "no time", replace(plain, endpoints=tuple(replace(endpoint, timeout_ms=1.0) for endpoint in plain.endpoints))
    yield (
        "a floor above every variant",
        replace(
            plain,
            endpoints=tuple(replace(endpoint, floors=(FloorDemand(floor=1.0, rate_rps=9.0, forecast_rps=9.0),)) for endpoint in plain.endpoints),
        ),
    )


def _plain(load: float) -> Snapshot:
    snapshot = large_snapshot(np.random.default_rng(7), workers=40, endpoints=4, variants=5, load=load)
    replace = msgspec.structs.replace
    endpoints = tuple(
        replace(endpoint, floors=(FloorDemand(floor=0.0, rate_rps=endpoint.forecast_rps, forecast_rps=endpoint.forecast_rps),))
        for endpoint in snapshot.endpoints
    )
    return replace(snapshot, endpoints=endpoints)


def _with_rate(snapshot: Snapshot, rate_rps: float) -> Snapshot:
    replace = msgspec.structs.replace
    floors = (FloorDemand(floor=0.0, rate_rps=rate_rps, forecast_rps=rate_rps),)
    return replace(snapshot, endpoints=tuple(replace(endpoint, floors=floors) for endpoint in snapshot.endpoints))


def _limits(clock_s: Clock, time_s: float = TIME_S) -> Limits:
    return Limits(time_s=time_s, seed=1, clock_s=clock_s)


def _ample() -> Limits:
    """Time enough, on a clock that stands: nothing may depend on how fast the machine is."""
    return Limits(time_s=AMPLE_S, seed=1, clock_s=lambda: 0.0)


def _same(one: Proposal, other: Proposal) -> bool:
    return msgspec.json.encode(one) == msgspec.json.encode(other)


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not condition:
        raise ContractBroken(f"the optimizer {otherwise}")

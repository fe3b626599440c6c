"""What an optimizer is: `propose(snapshot, limits) -> proposal`, found by name through the entry-point group `headrace.optimizers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from scaler.optimizers.snapshot import Snapshot
from schemas.plan import Binding
from schemas.plan_journal import Explanation

ENTRY_POINTS = "headrace.optimizers"
WORTHWHILE, WITHOUT_LOADS, ALWAYS = "worthwhile", "without loads", "always"
OPTIMAL, FEASIBLE, FALLBACK, INFEASIBLE = "optimal", "feasible", "fallback", "infeasible"


class Limits:
    """What a proposal may take. The caller owns the clock, so that an optimizer needs none of its own."""

    __slots__ = ("_clock_s", "_until_s", "patience", "seed")

    def __init__(self, *, time_s: float, seed: int, clock_s: Callable[[], float], patience: float = 1.0) -> None:
        """`patience`: a solver that looks at the machine's own clock may take so many times what is left. With more than 1 it is to end by what it
        has done (`STEADY_NODES`), so that a proposal is the same on a slow or busy machine: of a simulation, whose clock stands still meanwhile."""
        self.seed = seed
        self.patience = patience
        self._clock_s = clock_s
        self._until_s = clock_s() + time_s

    @property
    def left_s(self) -> float:
        """Seconds left; whoever has none returns the best that it has."""
        return max(self._until_s - self._clock_s(), 0.0)


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A plan without an epoch."""

    bindings: tuple[Binding, ...]
    """One for each worker that is to host something."""
    shares: dict[str, dict[str, float]] = {}
    """By task: the part of its requests that each variant key should answer; a task that is missing leaves it to the dispatcher."""
    budgets: dict[str, dict[str, float]] = {}
    """By endpoint: milliseconds for each stage."""
    adopted: str = WORTHWHILE
    """When it comes into force in place of a plan that is as good: where the control loop finds that it gains more than its loads cost; or also where
    nothing has to be loaded for it; or always, as the optimizer's source weighs no loads."""
    memory: dict[str, float] = {}
    """What the optimizer wants to find in `Snapshot.memory` the next time (a count of calm decisions, say)."""
    explanation: Explanation


class Optimizer(Protocol):
    """Pure: the same snapshot, seed and enough time give the same proposal."""

    name: str
    source: str
    """Paper and section; "Headrace" for ours."""

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """Never later than the limit. Raises nothing for any snapshot that is well formed: what cannot be met is cut, and said."""
        ...

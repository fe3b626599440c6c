"""What a simulated run reports, with the definitions of schemas/slo.py."""

from __future__ import annotations

import msgspec

from scaler.optimizers.optimizer import Explanation


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One window of the timeline; requests count in the window in which they arrived."""

    at_s: float
    offered: int = 0
    completed: int = 0
    expired: int = 0
    rejected: int = 0
    failed: int = 0
    accuracy_sum: float = 0.0
    """Over the completed."""
    backlog: int = 0
    """At its end."""
    workers: int = 0
    """Alive at its end."""

    @property
    def attainment(self) -> float:
        return self.completed / self.offered if self.offered else 1.0

    @property
    def accuracy_served(self) -> float | None:
        return self.accuracy_sum / self.completed if self.completed else None


class EndpointResult(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint over the whole run (after the warm-up)."""

    offered: int = 0
    completed: int = 0
    expired: int = 0
    rejected: int = 0
    failed: int = 0
    accuracy_served: float | None = None
    accuracy_best: float = 0.0
    """What the most accurate path has."""
    latency_mean_ms: float | None = None
    """From the log's receipt of the request to its terminal record, of the completed; so are the quantiles."""
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    max_accuracy_drop: float = 0.0
    """1 - min over windows of effective accuracy / best."""
    windows: tuple[Window, ...] = ()

    @property
    def attainment(self) -> float:
        return self.completed / self.offered if self.offered else 1.0

    @property
    def violation_ratio(self) -> float:
        return 1.0 - self.attainment


class PlanMade(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that came into force."""

    at_s: float
    epoch: int
    reason: str
    loads: int
    """Variants that had to be loaded."""
    explanation: Explanation | None = None
    solve_ms: float = 0.0


class Violation(msgspec.Struct, frozen=True):
    """A checker saw something that must not be."""

    checker: str
    at_ms: float
    what: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one scenario under one seed."""

    scenario: str
    optimizer: str
    seed: int
    endpoints: dict[str, EndpointResult]
    total: EndpointResult
    utilisation: dict[str, float] = {}
    """By worker type: busy time / time."""
    variants: dict[str, int] = {}
    """Rows computed by variant key."""
    plans: tuple[PlanMade, ...] = ()
    violations: tuple[Violation, ...] = ()
    """Of the promises; must be empty."""
    virtual_s: float = 0.0
    real_s: float = 0.0
    """How long the simulation took, told by whoever ran it."""

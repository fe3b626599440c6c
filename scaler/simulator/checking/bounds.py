"""How much time the checkers grant: what is late, and what merely had a long way through the log."""

from __future__ import annotations

import msgspec

from scaler.simulator.scenario import Scenario
from schemas.limits import Limits
from schemas.profile import latency_at

TAIL = 4.0
"""A way through the log longer than this many times its 99th percentile is not expected in any run."""
HANGING = 10.0
"""A device that is slower by more than this hangs, and is waited for no longer."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """All times in milliseconds."""

    completed_late_ms: float = 40.0
    """A completion may come into the log this much after its deadline: it was finished in time and had its way to go."""
    expiry_late_ms: float = 100.0
    """Every request is answered this much after its deadline at the latest, where a dispatcher has its shard."""
    handover_ms: float = 12_000.0
    """Until another dispatcher has the shards of a dead one, and knows their terminal records."""
    recovery_ms: float = 4_000.0
    """Until a dispatcher that came back has its shards and knows their terminal records."""
    read_back_ms: float = 250.0
    """Until a dispatcher knows of a terminal record in the log."""
    news_ms: float = 5_000.0
    """Until every dispatcher knows that a worker has died, if only by its silence."""
    restart_news_ms: float = 1_500.0
    """Until every dispatcher knows that a worker has started anew: it says so at once, and each second."""
    resend_ms: float = 200.0
    """An order that came back is sent again within this time, where somebody has nothing to do."""
    idle_ms: float = 2_000.0
    """A worker that is ready gets work after this time, where there is any."""
    lease_ms: float = 6_000.0
    """An order that was lost is noticed by then, and goes elsewhere."""
    attempts_max: int = Limits().attempts_max
    same_attempt_max: int = 50
    """How often an attempt may be handed back unstarted and sent again."""
    finished_max: int = 120_000
    """Finished requests that are remembered, more than any dispatcher does: the checkers' memory does not grow with the run."""
    violations_max: int = 100
    """More of them say nothing more."""


def bounds_of(scenario: Scenario) -> Bounds:
    """What the scenario's hops, skews and delays make of the bounds."""
    delayed = max([fault.factor for fault in scenario.faults if fault.kind == "delays"], default=1.0)
    skew_ms = max([abs(fault.skew_ms) for fault in scenario.faults if fault.kind == "skew"], default=0.0)
    slower = max([fault.factor for fault in scenario.faults if fault.kind == "slow" and fault.factor <= HANGING], default=1.0)
    hop_ms = TAIL * scenario.hop.p99_ms * max(delayed, 1.0)
    least = Bounds()
    return Bounds(
        completed_late_ms=hop_ms + skew_ms + 10.0,
        expiry_late_ms=hop_ms + 60.0,
        read_back_ms=least.read_back_ms + 2.0 * hop_ms,
        idle_ms=least.idle_ms + 4.0 * hop_ms,
        news_ms=least.news_ms + 2.0 * hop_ms,
        restart_news_ms=least.restart_news_ms + 2.0 * hop_ms,
        resend_ms=least.resend_ms + 4.0 * hop_ms,
        lease_ms=least.lease_ms * max(slower, 1.0) + 4.0 * hop_ms,
    )


def p95_of(scenario: Scenario) -> dict[str, float]:
    """By variant: the 95th percentile of a request's own time on the slowest type of worker, slowed down as the scenario says."""
    slower = max([fault.factor for fault in scenario.faults if fault.kind == "slow"], default=1.0)
    rows = max([load.rows for load in scenario.loads], default=1)
    return {
        variant.key: slower * max(latency_at(batches, rows).p95_ms for cost in variant.costs.values() for batches in cost.latency.values())
        for variant in scenario.variants
        if variant.costs
    }


def memory_of(scenario: Scenario) -> dict[str, int]:
    """Memory limits by worker, as the simulator names workers: type, group and number."""
    return {f"{group.type}-{at}-{number}": group.memory_bytes for at, group in enumerate(scenario.workers) for number in range(group.count)}

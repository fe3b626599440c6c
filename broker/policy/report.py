"""What a dispatcher says of itself: the telemetry record, from its policy alone, so that shell and simulator say the same."""

from __future__ import annotations

from itertools import chain

from broker.policy.dispatcher import DispatcherPolicy
from schemas.telemetry import DispatcherReport, EndpointCounts

BELOW_EVERY_FLOOR = "-"


def dispatcher_report(policy: DispatcherPolicy, name: str, incarnation: int, now_ms: float, shards: tuple[int, ...]) -> DispatcherReport:
    """`shards`: those that it owns from now on; none where it stops."""
    fleet = policy.fleet
    waiting = chain.from_iterable(pool.waiting.entries() for pool in fleet.pools)
    endpoints = policy.counts.published(waiting, policy.waiting, fleet.catalog.endpoints)
    return DispatcherReport(
        dispatcher=name,
        incarnation=incarnation,
        at_ms=int(now_ms),
        shards=shards,
        epoch=fleet.plan.epoch,
        waiting=policy.waiting,
        leased=len(fleet.orders),
        arrived=_by_task(policy, endpoints),
        running=policy.graphs.running(),
        fan_out=policy.graphs.fan_out.published(),
        endpoints=endpoints,
    )


def _by_task(policy: DispatcherPolicy, endpoints: dict[str, EndpointCounts]) -> dict[str, dict[str, int]]:
    """Of endpoints of one stage."""
    found: dict[str, dict[str, int]] = {}
    for name, counts in endpoints.items():
        endpoint = policy.fleet.catalog.endpoints[name]
        ladder = policy.fleet.ladder(endpoint)
        if ladder is None:
            continue
        by_variant = found.setdefault(endpoint.task, {})
        for floor, count in counts.arrived.items():
            rung = ladder.rung(float(floor))
            key = ladder.keys[rung] if rung < len(ladder.keys) else BELOW_EVERY_FLOOR
            by_variant[key] = by_variant.get(key, 0) + count
    return found

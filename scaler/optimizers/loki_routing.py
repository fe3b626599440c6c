"""MostAccurateFirst: demand goes to the hosted variants in decreasing accuracy, each up to its capacity, task by task from the root."""

from __future__ import annotations

from collections.abc import Mapping

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.evaluation import normal_shares
from scaler.optimizers.paths import compute_ms, demand_rps, parents, rows_into
from scaler.optimizers.snapshot import Snapshot


def most_accurate_first(snapshot: Snapshot, capacity: Capacity, rates: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Shares by task (Loki's load balancer). `rates`: rows/s of the workers that host each variant.

    What exceeds all of a task's capacity goes nowhere. A stage's rows follow from what answered before it: better detectors find more. Endpoints
    take their turn in the snapshot's order.
    """
    left = dict(rates)
    flows: dict[str, dict[str, float]] = {}
    for endpoint in snapshot.endpoints:
        if compute_ms(endpoint, snapshot.hop_ms) <= 0.0:
            continue
        above = parents(endpoint)
        answered: dict[str, dict[str, float]] = {}
        for stage in endpoint.stages:
            before = above[stage.name]
            if before is None:
                rows = demand_rps(endpoint) * rows_into(stage, None)
            else:
                rows = sum(flow * rows_into(stage, key) for key, flow in answered[before].items())
            answered[stage.name] = _fill(stage.task, rows, capacity, left)
            into = flows.setdefault(stage.task, {})
            for key, flow in answered[stage.name].items():
                into[key] = into.get(key, 0.0) + flow
    return normal_shares(flows)


def _fill(task: str, rows: float, capacity: Capacity, left: dict[str, float]) -> dict[str, float]:
    """Takes from `left` what it uses."""
    taken: dict[str, float] = {}
    for variant in capacity.tasks.get(task, ()):
        flow = min(rows, left.get(variant.key, 0.0))
        if flow > 0.0:
            taken[variant.key] = flow
            left[variant.key] -= flow
            rows -= flow
    return taken

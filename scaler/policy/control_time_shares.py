"""Which part of a shared device's time each task needs, by what was forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from scaler.optimizers.snapshot import Cost, Snapshot
from schemas.plan import Binding

PART_MIN = 0.05
"""Of the largest part: what was not foreseen gets time, too."""
PARTS_APART = 0.05
"""Parts that differ by less are the same."""


def time_shares(bindings: Sequence[Binding], snapshot: Snapshot) -> dict[str, float]:
    """Parts that add up to 1, by task, of all tasks that share a worker with another one; empty where none does."""
    shared = set[str]().union(*(tasks for binding in bindings if len(tasks := {key.partition("/")[0] for key in binding.variants}) > 1))
    if not shared:
        return {}
    hosted = {key for binding in bindings for key in binding.variants}
    row_ms: dict[str, list[float]] = {}
    for variant in snapshot.variants:
        if variant.key in hosted and variant.costs:
            row_ms.setdefault(variant.task, []).append(fmean(_row_ms(cost) for cost in variant.costs.values()))
    needed = dict.fromkeys(shared, 0.0)
    for endpoint in snapshot.endpoints:
        rows: dict[str | None, float] = {None: 1.0}
        for stage in endpoint.stages:
            rows[stage.name] = rows.get(stage.after, 1.0) * max(stage.rows.values(), default=1.0)
            if stage.task in needed and stage.task in row_ms:
                needed[stage.task] += endpoint.forecast_rps * rows[stage.name] * fmean(row_ms[stage.task])
    most = max(needed.values())
    if most <= 0.0:
        return {}
    raised = {task: max(each, PART_MIN * most) for task, each in needed.items()}
    total = sum(raised.values())
    return {task: round(each / total, 4) for task, each in sorted(raised.items())}


def same_parts(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether a plan with `other` instead is not worth its epoch: nothing is asked for, or no part is another one by much."""
    return not other or (one.keys() == other.keys() and all(abs(one[task] - part) < PARTS_APART for task, part in other.items()))


def _row_ms(cost: Cost) -> float:
    return min(latency.p50_ms / size for sizes in cost.latency.values() for size, latency in sizes.items())

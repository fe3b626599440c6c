"""What a leader leaves to the next one of what variants cost: variants that nobody hosts now would else have to be tried again."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from scaler.optimizers.snapshot import Cost, Variant
from schemas.catalog import Catalog, VariantSpec
from schemas.learned_costs import LearnedCost, LearnedCosts

DIFFERS = 1.5
"""Costs that are off by more than this factor are worth another record: all who follow the catalog read it, and telemetry soon says the rest."""
Costs = Mapping[tuple[str, str], Cost]
"""By variant key and worker type."""


def kept(costs: Costs, catalog: Catalog, *, at_ms: float, by: str) -> LearnedCosts:
    """The record of these costs, without those of variants that the catalog does not have."""
    specs = catalog.variants()
    found = [
        LearnedCost(variant=key, model=model_of(specs[key]), type=type_, latency=cost.latency, load_ms=cost.load_ms, memory_bytes=cost.memory_bytes)
        for (key, type_), cost in sorted(costs.items())
        if key in specs
    ]
    return LearnedCosts(costs=tuple(found), at_ms=int(at_ms), by=by)


def differs(before: LearnedCosts, now: LearnedCosts) -> bool:
    """Whether the record is worth writing anew: something else is known, or what is known has changed."""
    old, new = _by_place(before), _by_place(now)
    return old.keys() != new.keys() or any(_changed(old[place], cost) for place, cost in new.items())


def known(record: LearnedCosts, catalog: Catalog, latency_ms_max: float) -> tuple[Variant, ...]:
    """The catalog's variants with the costs of the record that still hold and that can be."""
    specs = catalog.variants()
    found: dict[str, dict[str, Cost]] = {}
    for each in record.costs:
        spec = specs.get(each.variant)
        if spec is not None and each.model == model_of(spec) and _possible(each, latency_ms_max):
            cost = Cost(latency=each.latency, load_ms=each.load_ms, memory_bytes=max(each.memory_bytes, 0))
            found.setdefault(each.variant, {})[each.type] = cost
    return tuple(
        Variant(key=key, task=key.partition("/")[0], accuracy=specs[key].accuracy, batch_size_max=max(specs[key].batch_size_max, 1), costs=costs)
        for key, costs in found.items()
    )


def model_of(spec: VariantSpec) -> str:
    """What was measured."""
    return spec.sha256 or spec.call or ""


def _by_place(record: LearnedCosts) -> dict[tuple[str, str, str], LearnedCost]:
    return {(each.variant, each.model, each.type): each for each in record.costs}


def _changed(before: LearnedCost, now: LearnedCost) -> bool:
    old, new = _p95s_ms(before), _p95s_ms(now)
    return old.keys() != new.keys() or any(max(old[at], new[at]) > DIFFERS * min(old[at], new[at]) for at in new)


def _p95s_ms(cost: LearnedCost) -> dict[tuple[int, int], float]:
    return {(threads, size): each.p95_ms for threads, sizes in cost.latency.items() for size, each in sizes.items()}


def _possible(cost: LearnedCost, latency_ms_max: float) -> bool:
    latencies = [each for sizes in cost.latency.values() for each in sizes.values()]
    return (
        bool(latencies)
        and isfinite(cost.load_ms)
        and all(isfinite(each.p95_ms) and 0.0 < each.p50_ms <= each.p95_ms <= latency_ms_max for each in latencies)
        and all(threads >= 1 and sizes and min(sizes) >= 1 for threads, sizes in cost.latency.items())
    )

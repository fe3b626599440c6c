"""What of a plan's bindings can be: somebody else's plan may say anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from schemas.catalog import Catalog
from schemas.plan import Binding


def with_lanes(bindings: Iterable[Binding], lanes_per_class: int) -> dict[str, Binding]:
    """By worker: those with a lane that there is, the first one of each lane."""
    by_lane: dict[tuple[str, int], Binding] = {}
    for binding in bindings:
        if 0 <= binding.lane < lanes_per_class:
            by_lane.setdefault((binding.accelerator, binding.lane), binding)
    return {binding.worker: binding for binding in by_lane.values()}


def of_catalog(bindings: Mapping[str, Binding], catalog: Catalog) -> dict[str, Binding]:
    """With the variants that the catalog has; what none is left of is out of it. As they are where no catalog was read yet."""
    known = catalog.variants()
    if not known:
        return dict(bindings)
    found: dict[str, Binding] = {}
    for worker, binding in bindings.items():
        variants = tuple(key for key in binding.variants if key in known)
        if variants:
            found[worker] = binding if len(variants) == len(binding.variants) else replace(binding, variants=variants)
    return found

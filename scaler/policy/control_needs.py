"""What must be hosted, whatever an optimizer gains by something else: of each need, one variant.

An optimizer is shown what is asked of tasks, not which variants a graph allows where: a canary's candidate may be a variant that nobody would choose.
And it is shown how much is asked: a floor that nobody asks for at the moment would be refused until the next plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from scaler.optimizers.snapshot import READY, Snapshot, Variant, Worker
from schemas.catalog import EndpointSpec, variant_key
from schemas.graph import ForEachNode, Node, StageNode
from schemas.plan import Binding

Need = frozenset[str]
"""Variant keys, one of which has to be hosted."""


def needs_of(endpoints: Iterable[EndpointSpec]) -> tuple[Need, ...]:
    """In an order of their own."""
    found = {need for endpoint in endpoints if endpoint.graph is not None for need in _needs(endpoint.graph.nodes)}
    return tuple(sorted(found, key=sorted))


def floor_needs(endpoints: Iterable[EndpointSpec], snapshot: Snapshot) -> tuple[Need, ...]:
    """For each endpoint of one task: what meets the highest floor that is asked of it, or that it has by default, as far as anything does."""
    specs = {spec.name: spec for spec in endpoints if spec.graph is None}
    found: set[Need] = set()
    for demand in snapshot.endpoints:
        spec = specs.get(demand.endpoint)
        if spec is None:
            continue
        floors = {spec.defaults.min_accuracy, *(asked.floor for asked in demand.floors)}
        variants = [variant for variant in snapshot.variants if variant.task == spec.task]
        needs = (frozenset(variant.key for variant in variants if variant.accuracy >= floor) for floor in sorted(floors, reverse=True))
        found |= {need for need in [next((need for need in needs if need), None)] if need is not None}
    return tuple(sorted(found, key=sorted))


def _needs(nodes: Mapping[str, Node]) -> Iterable[Need]:
    for node in nodes.values():
        if isinstance(node, ForEachNode):
            yield from _needs(node.nodes)
        elif isinstance(node, StageNode) and node.variants:
            yield frozenset(variant_key(node.task, name) for name in node.variants)


def with_needs(bindings: Sequence[Binding], needs: Sequence[Need], snapshot: Snapshot) -> tuple[Binding, ...]:
    """With a variant more where none of a need is bound, on a worker that has room; where nobody has, the need waits."""
    bound = {binding.worker: binding for binding in bindings}
    variants = {variant.key: variant for variant in snapshot.variants}
    for need in needs:
        if any(key in binding.variants for binding in bound.values() for key in need):
            continue
        choices = [
            (key not in worker.hosted, len(bound[worker.name].variants), worker.name, key)
            for worker in snapshot.workers
            if worker.state == READY and worker.name in bound
            for key in sorted(need)
            if key in variants and key not in worker.refused and _fits(worker, bound[worker.name], key, variants)
        ]
        if choices:
            _, _, name, key = min(choices)
            bound[name] = replace(bound[name], variants=(*bound[name].variants, key))
    return tuple(bound[name] for name in sorted(bound))


def _fits(worker: Worker, binding: Binding, key: str, variants: Mapping[str, Variant]) -> bool:
    costs = [variants[each].costs.get(worker.type) for each in (*binding.variants, key) if each in variants]
    if variants[key].costs.get(worker.type) is None:
        return False
    return not worker.memory_bytes_max or sum(cost.memory_bytes for cost in costs if cost is not None) <= worker.memory_bytes_max

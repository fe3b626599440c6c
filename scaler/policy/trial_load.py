"""The loads of a simulated interval: what was measured of each endpoint, second by second, and how its graph's rows and branches went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from scaler.optimizers.snapshot import ANY_VARIANT, EndpointDemand, Snapshot, StageDemand
from scaler.simulator.scenario import Arrivals, Choice, Load
from schemas.catalog import Catalog
from schemas.graph import ForEachNode, Node, SwitchNode

TIMEOUT_MS_MIN = 1.0


class IntervalDemand(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked between two snapshots."""

    duration_s: float
    rates: dict[str, dict[float, tuple[float, ...]]] = {}
    """By endpoint and floor: requests/s in each second."""

    @property
    def requests(self) -> float:
        """That are expected of it."""
        whole = sum(sum(rates) for floors in self.rates.values() for rates in floors.values())
        seconds = max((len(rates) for floors in self.rates.values() for rates in floors.values()), default=0)
        return whole * min(self.duration_s / seconds, 1.0) if seconds else 0.0

    def cut(self, requests_max: int) -> IntervalDemand:
        """Its beginning, with at most so many requests (but one second at least)."""
        if self.requests <= requests_max:
            return self
        return msgspec.structs.replace(self, duration_s=max(self.duration_s * requests_max / self.requests, min(self.duration_s, 1.0)))


def between(snapshot: Snapshot, following: Snapshot) -> IntervalDemand:
    """What must have been asked between two snapshots: from the rate that was measured at the first to that at the second, in a straight line."""
    duration_s = max((following.at_ms - snapshot.at_ms) / 1e3, 0.0)
    seconds = max(round(duration_s), 1)
    first, second = _rates(snapshot), _rates(following)
    found: dict[str, dict[float, tuple[float, ...]]] = {}
    for endpoint, floor in sorted(first.keys() | second.keys()):
        start, end = first.get((endpoint, floor), 0.0), second.get((endpoint, floor), 0.0)
        rates = tuple(start + (end - start) * (at + 0.5) / seconds for at in range(seconds))
        if any(rates):
            found.setdefault(endpoint, {})[floor] = rates
    return IntervalDemand(duration_s=duration_s, rates=found)


def _rates(snapshot: Snapshot) -> dict[tuple[str, float], float]:
    return {(endpoint.endpoint, floor.floor): floor.rate_rps for endpoint in snapshot.endpoints for floor in endpoint.floors}


def loads_of(snapshot: Snapshot, demand: IntervalDemand, catalog: Catalog) -> tuple[Load, ...]:
    """One for each endpoint and floor; endpoints that the catalog or the snapshot does not have are left out."""
    found: list[Load] = []
    for endpoint in snapshot.endpoints:
        spec = catalog.endpoints.get(endpoint.endpoint)
        if spec is None or not endpoint.stages:
            continue
        nodes: Mapping[str, Node] = spec.graph.nodes if spec.graph is not None else {}
        fan_out = dict(_fan_out(endpoint, nodes, ""))
        branches = dict(_branches(endpoint, nodes, ""))
        root = endpoint.stages[0].rows_after(ANY_VARIANT)
        for floor, rates in sorted(demand.rates.get(endpoint.endpoint, {}).items()):
            found.append(
                Load(
                    endpoint=endpoint.endpoint,
                    arrivals=Arrivals(kind="steps", rates_rps=rates, hold_s=1.0),
                    floors=(Choice(min(max(floor, 0.0), 1.0)),),
                    timeouts_ms=(Choice(max(endpoint.timeout_ms, TIMEOUT_MS_MIN)),),
                    rows=max(round(root), 1) if not fan_out else 1,
                    fan_out=fan_out,
                    branches=branches,
                )
            )
    return tuple(found)


def _fan_out(endpoint: EndpointDemand, nodes: Mapping[str, Node], prefix: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Mean rows of each for_each, by the variant that made them: those of the first stages in it."""
    for name, node in nodes.items():
        if not isinstance(node, ForEachNode):
            continue
        path = prefix + name
        inner = [stage for stage in endpoint.stages if stage.name.startswith(f"{path}/")]
        inside = {stage.name for stage in inner}
        first = next((stage for stage in inner if stage.after not in inside), None)
        if first is not None:
            yield path, {ANY_VARIANT: first.rows_after(ANY_VARIANT), **first.rows}
        yield from _fan_out(endpoint, node.nodes, f"{path}/")


def _branches(endpoint: EndpointDemand, nodes: Mapping[str, Node], prefix: str) -> Iterator[tuple[str, dict[str, float]]]:
    """The part that takes each branch of a switch: the rows of the stage that it leads to; what is left takes the last one."""
    stages: dict[str, StageDemand] = {stage.name: stage for stage in endpoint.stages}
    for name, node in nodes.items():
        if isinstance(node, ForEachNode):
            yield from _branches(endpoint, node.nodes, f"{prefix}{name}/")
        elif isinstance(node, SwitchNode):
            alike = 1.0 / (len(node.cases) + 1)
            parts: dict[str, float] = {}
            for case in node.cases:
                stage = stages.get(prefix + case.then)
                parts[case.then] = parts.get(case.then, 0.0) + (min(stage.rows_after(ANY_VARIANT), 1.0) if stage is not None else alike)
            rest = max(1.0 - sum(parts.values()), 0.0)
            parts[node.otherwise] = parts.get(node.otherwise, 0.0) + rest
            if sum(parts.values()) > 0.0:
                yield name, parts

"""What an endpoint asks for: its demand by floor, its paths (one variant per stage) with accuracy and multiplicity, and its stage budgets.

Stages form a tree (`StageDemand.after`); a path through it names one variant for every stage, so that on a chain it is Loki's path.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import cast

import msgspec

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.snapshot import ANY_VARIANT, EndpointDemand, StageDemand

PATHS_MAX = 512
"""More combinations than this are thinned: the cheapest of each step of accuracy stay."""
ROUNDING = 1e-9


class ModelPath(msgspec.Struct, frozen=True, kw_only=True):
    """One variant for each stage of an endpoint."""

    variants: dict[str, str]
    """Variant key by stage name."""
    accuracy: float
    """Of the answer: as measured, else the product."""
    rows: dict[str, float]
    """Loki's w(p, t): mean rows that reach each stage for each request."""


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """Demand for one floor, with bad numbers taken out."""

    floor: float
    rate_rps: float


def demand_by_floor(endpoint: EndpointDemand) -> tuple[Floor, ...]:
    """The forecast by floor, lowest floor first; a forecast that is no number is replaced by the measured rate, negative ones by 0."""
    rates: dict[float, float] = {}
    for asked in endpoint.floors:
        floor = asked.floor if asked.floor > 0.0 else 0.0
        forecast = asked.forecast_rps if isfinite(asked.forecast_rps) else asked.rate_rps
        rates[floor] = rates.get(floor, 0.0) + (max(forecast, 0.0) if isfinite(forecast) else 0.0)
    return tuple(Floor(floor=floor, rate_rps=rates[floor]) for floor in sorted(rates))


def demand_rps(endpoint: EndpointDemand) -> float:
    """The forecast over all floors."""
    return sum(floor.rate_rps for floor in demand_by_floor(endpoint))


def main_floor(endpoint: EndpointDemand) -> float:
    """The floor that most requests ask for (the higher of equals), for optimizers that know one floor only; 0 without demand."""
    floors = demand_by_floor(endpoint)
    return max(floors, key=lambda floor: (floor.rate_rps, floor.floor)).floor if floors else 0.0


def parents(endpoint: EndpointDemand) -> dict[str, str | None]:
    """The stage before each stage; one that names a stage which is not there stands at the root."""
    names: set[str] = set()
    found: dict[str, str | None] = {}
    for stage in endpoint.stages:
        found[stage.name] = stage.after if stage.after in names else None
        names.add(stage.name)
    return found


def rows_into(stage: StageDemand, before: str | None) -> float:
    """Mean rows of the stage for each row that variant `before` answered (None: at the root, or not known); what is no number counts as 1."""
    rows = stage.rows_after(before) if before is not None else stage.rows_after(ANY_VARIANT)
    if before is None and stage.after is not None and ANY_VARIANT not in stage.rows and stage.rows:
        rows = sum(stage.rows.values()) / len(stage.rows)
    return rows if isfinite(rows) and rows >= 0.0 else 1.0


def compute_ms(endpoint: EndpointDemand, hop_ms: float) -> float:
    """What the time-out leaves for computing and waiting, along the longest path: one hop to arrive, two for each stage; 0 where none is left."""
    above = parents(endpoint)
    depths: dict[str, int] = {}
    for name, before in above.items():
        depths[name] = 1 + (depths[before] if before is not None else 0)
    left_ms = endpoint.timeout_ms - max(hop_ms, 0.0) * (1 + 2 * max(depths.values(), default=0))
    return left_ms if isfinite(left_ms) and left_ms > 0.0 else 0.0


def stage_budgets(endpoint: EndpointDemand, capacity: Capacity, time_ms: float) -> dict[str, float]:
    """`time_ms` divided over the stages, in proportion to what their fastest variants need: no way from root to leaf gets more than all of it."""
    above = parents(endpoint)
    fastest = {stage.name: capacity.fastest_ms(stage.task) for stage in endpoint.stages}
    fastest = {name: time if isfinite(time) else 0.0 for name, time in fastest.items()}
    down: dict[str, float] = {}
    for name, before in above.items():
        down[name] = fastest[name] + (down[before] if before is not None else 0.0)
    below: dict[str, float] = dict.fromkeys(above, 0.0)
    for name, before in reversed(above.items()):
        if before is not None:
            below[before] = max(below[before], fastest[name] + below[name])
    return {name: time_ms * fastest[name] / (down[name] + below[name]) if fastest[name] > 0.0 else 0.0 for name in above}


def path_accuracy(endpoint: EndpointDemand, variants: Mapping[str, str], capacity: Capacity) -> float:
    """The least of the measured combinations that these variants contain; where none is measured, the product.

    Of the branches of a switch the mean counts, by the rows that take each: a row is answered by one of them.
    """
    fitting = [
        path.accuracy
        for path in endpoint.measured
        if path.variants and 0.0 <= path.accuracy <= 1.0 and all(variants.get(stage) == key for stage, key in path.variants.items())
    ]
    if fitting:
        return min(fitting)
    accuracy = 1.0
    switches: dict[str, list[tuple[float, float]]] = {}
    rows = multiplicity(endpoint, variants) if any(stage.switch for stage in endpoint.stages) else {}
    for stage in endpoint.stages:
        own = capacity.variants[variants[stage.name]].accuracy
        if stage.switch:
            switches.setdefault(stage.switch, []).append((max(rows[stage.name], ROUNDING), own))
        else:
            accuracy *= own
    for ends in switches.values():
        accuracy *= sum(weight * own for weight, own in ends) / sum(weight for weight, _ in ends)
    return accuracy


def multiplicity(endpoint: EndpointDemand, variants: Mapping[str, str]) -> dict[str, float]:
    """Loki's w(p, t): mean rows that reach each stage for each request, where these variants answer the stages before it."""
    above = parents(endpoint)
    rows: dict[str, float] = {}
    for stage in endpoint.stages:
        before = above[stage.name]
        rows[stage.name] = rows_into(stage, None) if before is None else rows[before] * rows_into(stage, variants[before])
    return rows


def paths_of(
    endpoint: EndpointDemand, capacity: Capacity, paths_max: int = PATHS_MAX, *, hosted: frozenset[str] | None = None
) -> tuple[ModelPath, ...]:
    """Every path of variants that some crew can host, most accurate first; none where a stage has no such variant.

    Variants that a more accurate one of the same task beats on every crew (rate and latency) could be left out, but are kept: more accurate detectors
    make more rows. Above `paths_max` the partial paths are thinned, stage by stage. `hosted`: of these variants only.
    """
    place = (id(endpoint), paths_max, hosted)
    known = capacity.paths.get(place)
    if known is None:
        # The endpoint is kept too: its number must not become another's.
        known = capacity.paths[place] = (endpoint, _paths_of(endpoint, capacity, paths_max, hosted))
    return cast("tuple[ModelPath, ...]", known[1])


def _paths_of(endpoint: EndpointDemand, capacity: Capacity, paths_max: int, hosted: frozenset[str] | None) -> tuple[ModelPath, ...]:
    if not endpoint.stages:
        return ()
    partial: list[tuple[float, float, tuple[str, ...]]] = [(1.0, 0.0, ())]
    for stage in endpoint.stages:
        variants = [
            (variant.accuracy, capacity.single_ms(variant.key), variant.key)
            for variant in capacity.tasks.get(stage.task, ())
            if hosted is None or variant.key in hosted
        ]
        partial = [(before * accuracy, so_far + time, (*keys, key)) for before, so_far, keys in partial for accuracy, time, key in variants]
        if len(partial) > paths_max:
            partial = _thinned(partial, paths_max)
    names = [stage.name for stage in endpoint.stages]
    combinations = [dict(zip(names, keys, strict=True)) for _, _, keys in partial]
    paths = [ModelPath(variants=path, accuracy=path_accuracy(endpoint, path, capacity), rows=multiplicity(endpoint, path)) for path in combinations]
    return tuple(sorted(paths, key=lambda path: (-path.accuracy, tuple(path.variants.values()))))


def demand_of_task(endpoint: EndpointDemand, rate_rps: float) -> dict[str, float]:
    """Rows/s of each task where nothing is known of the variants before it (`*`), for optimizers that know single models only."""
    above = parents(endpoint)
    rates: dict[str, float] = {}
    tasks: dict[str, float] = {}
    for stage in endpoint.stages:
        before = above[stage.name]
        rates[stage.name] = (rate_rps if before is None else rates[before]) * rows_into(stage, None)
        tasks[stage.task] = tasks.get(stage.task, 0.0) + rates[stage.name]
    return tasks


def _thinned(paths: list[tuple[float, float, tuple[str, ...]]], paths_max: int) -> list[tuple[float, float, tuple[str, ...]]]:
    """The quickest path of each of `paths_max` equal steps of accuracy."""
    quickest: dict[int, tuple[float, float, tuple[str, ...]]] = {}
    for path in paths:
        step = int(path[0] * (paths_max - 1))
        if step not in quickest or path[1] < quickest[step][1]:
            quickest[step] = path
    return list(quickest.values())

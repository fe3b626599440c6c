"""What may answer whom: the paths of every endpoint with what each stage costs on each crew, and the classes of requests that may take them."""

from __future__ import annotations

from math import inf

import msgspec
from msgspec.structs import replace

from scaler.optimizers.capacity import Capacity, Crew
from scaler.optimizers.headrace.settings import HeadraceSettings
from scaler.optimizers.paths import ROUNDING, Floor, ModelPath, compute_ms, demand_by_floor, parents, paths_of, rows_into
from scaler.optimizers.snapshot import EndpointDemand, Snapshot
from schemas.profile import latency_at

SURGE_RPS = 1_000.0


class Run(msgspec.Struct, frozen=True):
    """One stage of a route on one crew."""

    crew: int
    variant: str
    row_s: float
    """Seconds of a worker's planned time for one row."""
    batch_size: int
    latency_ms: float
    """95th percentile of one batch."""
    budget_ms: float


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A path that keeps its endpoint's time-out somewhere."""

    endpoint: int
    accuracy: float
    variants: dict[str, str]
    rows: tuple[float, ...]
    """By stage: rows for each request."""
    runs: tuple[tuple[Run, ...], ...]
    """By stage: where it may run; at least one each."""
    budgets_ms: tuple[float, ...]
    """By stage: for waiting and computing."""
    tight: bool
    """There is no room for a batch that waits."""


class Class(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one endpoint that ask for one floor."""

    endpoint: int
    floor: float
    rate_rps: float
    routes: tuple[int, ...]
    """Empty: nothing can answer them."""
    idle: bool = False
    """None are expected: something is hosted for them where it costs nobody else anything, and they count for nothing else."""


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The whole problem, but for who hosts what."""

    crews: tuple[Crew, ...]
    threads: tuple[int, ...]
    """By crew."""
    routes: tuple[Route, ...]
    classes: tuple[Class, ...]
    rate_rps: float
    """Of all classes."""


def surge_of(routes: Routes, settings: HeadraceSettings) -> Routes:
    """The same with much more demand, everywhere: where nothing is asked for at all, as much as any cluster would be busy with."""
    asked_rps = sum(each.rate_rps for each in routes.classes if not each.idle)
    least_rps = 0.1 * asked_rps / len(routes.classes) if asked_rps else SURGE_RPS
    classes = tuple(
        replace(each, rate_rps=settings.surge * max(0.0 if each.idle else each.rate_rps, least_rps), idle=False) for each in routes.classes
    )
    return replace(routes, classes=classes, rate_rps=sum(each.rate_rps for each in classes))


def routes_of(snapshot: Snapshot, capacity: Capacity, settings: HeadraceSettings) -> Routes:
    """All classes, and the routes that they may take."""
    threads = tuple(threads_of(crew, capacity) for crew in capacity.crews)
    timing = _Timing(capacity, threads, settings)
    routes: list[Route] = []
    classes: list[Class] = []
    for at, endpoint in enumerate(snapshot.endpoints):
        asked = _asked(endpoint)
        first = len(routes)
        routes += _routes(at, endpoint, snapshot.hop_ms, timing, asked[0].floor)
        for floor in asked:
            idle = floor.rate_rps <= 0.0
            rate_rps = settings.idle_rps if idle else floor.rate_rps + _overdue(endpoint, snapshot, len(asked))
            allowed = _allowed(routes, first, floor.floor)
            classes.append(Class(endpoint=at, floor=floor.floor, rate_rps=rate_rps, routes=allowed, idle=idle))
    total = sum(each.rate_rps for each in classes)
    return Routes(crews=capacity.crews, threads=threads, routes=tuple(routes), classes=tuple(classes), rate_rps=total)


def _asked(endpoint: EndpointDemand) -> tuple[Floor, ...]:
    """Demand by floor: the forecast, but no less than what is measured, for a forecast that still learns lags behind a rate that has risen."""
    now = replace(endpoint, floors=tuple(replace(floor, forecast_rps=floor.rate_rps) for floor in endpoint.floors))
    measured = {floor.floor: floor.rate_rps for floor in demand_by_floor(now)}
    asked = tuple(Floor(floor=floor.floor, rate_rps=max(floor.rate_rps, measured.get(floor.floor, 0.0))) for floor in demand_by_floor(endpoint))
    return asked or (Floor(floor=0.0, rate_rps=0.0),)


def _allowed(routes: list[Route], first: int, floor: float) -> tuple[int, ...]:
    """From `first` on, those that meet the floor; the tight ones only where there are no others, for the dispatcher would hardly choose them."""
    allowed = [number for number in range(first, len(routes)) if routes[number].accuracy >= floor - ROUNDING]
    return tuple(number for number in allowed if not routes[number].tight) or tuple(allowed)


def threads_of(crew: Crew, capacity: Capacity) -> int:
    """One thread count for all workers of a crew, so that a change of variants is never a change of threads: with which most variants were measured,
    the highest of equals."""
    counts: dict[int, int] = {}
    for key in capacity.variants:
        for count in capacity.threads_of(crew, key):
            counts[count] = counts.get(count, 0) + 1
    return max(counts, key=lambda count: (counts[count], count), default=1)


def _overdue(endpoint: EndpointDemand, snapshot: Snapshot, classes: int) -> float:
    """Requests/s that work off the backlog within the next plan, or within the time that its requests have."""
    seconds = max(snapshot.interval_ms, endpoint.timeout_ms) / 1000.0
    return max(endpoint.backlog, 0) / seconds / classes if 0.0 < seconds < inf else 0.0


def _routes(at: int, endpoint: EndpointDemand, hop_ms: float, timing: _Timing, lowest: float) -> list[Route]:
    time_ms = compute_ms(endpoint, hop_ms)
    if time_ms <= 0.0:
        return []
    found: list[Route] = []
    for path in paths_of(endpoint, timing.capacity, timing.settings.paths_max):
        if path.accuracy >= lowest - ROUNDING:
            route = _route(at, endpoint, path, time_ms, timing)
            if route is not None:
                found.append(route)
    return found


def _route(at: int, endpoint: EndpointDemand, path: ModelPath, time_ms: float, timing: _Timing) -> Route | None:
    settings = timing.settings
    together = max(round(rows_into(endpoint.stages[0], None)), 1)
    least = {stage: timing.fastest_ms(variant, together) for stage, variant in path.variants.items()}
    for tight, waves, cost in ((False, settings.waves, 1.0), (True, settings.tight_waves, settings.tight_cost)):
        budgets = _budgets(endpoint, least, time_ms / waves)
        if budgets is not None:
            names = [stage.name for stage in endpoint.stages]
            return Route(
                endpoint=at,
                accuracy=path.accuracy,
                variants=path.variants,
                rows=tuple(path.rows[name] for name in names),
                runs=tuple(timing.runs(path.variants[name], budgets[name], together, cost) for name in names),
                budgets_ms=tuple(waves * budgets[name] for name in names),
                tight=tight,
            )
    return None


def _budgets(endpoint: EndpointDemand, least_ms: dict[str, float], time_ms: float) -> dict[str, float] | None:
    """Time for one batch in each stage: what its fastest crew needs, and of the rest half evenly, half in proportion. None where it is too short.

    The longest way from root to leaf through each stage decides, so that every way keeps the time.
    """
    above = parents(endpoint)
    down: dict[str, tuple[float, int]] = {}
    for name, before in above.items():
        so_far_ms, stages = down[before] if before is not None else (0.0, 0)
        down[name] = (so_far_ms + least_ms[name], stages + 1)
    below: dict[str, tuple[float, int]] = dict.fromkeys(above, (0.0, 0))
    for name, before in reversed(above.items()):
        if before is not None:
            behind_ms, stages = below[name]
            below[before] = (max(below[before][0], behind_ms + least_ms[name]), max(below[before][1], stages + 1))
    budgets: dict[str, float] = {}
    for name in above:
        needed_ms = down[name][0] + below[name][0]
        if needed_ms > time_ms:
            return None
        spare_ms, stages = time_ms - needed_ms, down[name][1] + below[name][1]
        part = least_ms[name] / needed_ms if needed_ms > 0.0 else 1.0 / stages
        budgets[name] = least_ms[name] + spare_ms * 0.5 * (part + 1.0 / stages)
    return budgets


class _Timing:
    """Batches of every variant on every crew, looked up often."""

    def __init__(self, capacity: Capacity, threads: tuple[int, ...], settings: HeadraceSettings) -> None:
        self.capacity, self.settings = capacity, settings
        self._threads = threads
        self._batches: dict[tuple[str, int], list[tuple[int, list[tuple[int, float, float]]]]] = {}

    def fastest_ms(self, variant: str, together: int) -> float:
        """One request's rows on the fastest crew."""
        return min((batches[0][1] for _, batches in self._of(variant, together)), default=inf)

    def runs(self, variant: str, budget_ms: float, together: int, cost: float) -> tuple[Run, ...]:
        """Where the variant keeps the budget, at the smallest batch near the best rate."""
        found: list[Run] = []
        for crew, batches in self._of(variant, together):
            fitting = [batch for batch in batches if batch[1] <= budget_ms * (1.0 + ROUNDING)]
            if fitting:
                best_s = min(batch[2] for batch in fitting)
                size, latency_ms, row_s = next(batch for batch in fitting if batch[2] * self.settings.efficient <= best_s)
                found.append(Run(crew, variant, row_s * cost, size, latency_ms, budget_ms))
        return tuple(found)

    def _of(self, variant: str, together: int) -> list[tuple[int, list[tuple[int, float, float]]]]:
        known = self._batches.get((variant, together))
        if known is None:
            known = self._batches[variant, together] = [
                (at, self._measured(crew, variant, together, self._threads[at]))
                for at, crew in enumerate(self.capacity.crews)
                if self._threads[at] in self.capacity.threads_of(crew, variant)
            ]
        return known

    def _measured(self, crew: Crew, variant: str, together: int, threads: int) -> list[tuple[int, float, float]]:
        """(batch size, p95, planned seconds of a worker for a row), smallest batch first."""
        settings = self.settings
        curve = self.capacity.curve(crew, variant, threads)
        largest = max(self.capacity.variants[variant].batch_size_max, 1)
        least = min(together, largest)
        measured: list[tuple[int, float, float]] = []
        for size in sorted({size for size in curve if least <= size <= largest} | {least}):
            latency = latency_at(curve, size)
            row_ms = (latency.p50_ms + settings.batch_overhead_ms) / size + settings.row_overhead_ms
            measured.append((size, latency.p95_ms * (together / size if together > size else 1.0), row_ms / 1000.0 / settings.utilisation))
        return measured

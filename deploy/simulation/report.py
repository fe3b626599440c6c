"""What a simulation command found: every run, and one row for each optimizer at each point, with intervals over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from scaler.simulator.intervals import Interval, interval
from scaler.simulator.result import EndpointResult, Result, Window
from scaler.simulator.scenario import Arrivals, Scenario


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run, or why there is none."""

    optimizer: str
    seed: int
    point: dict[str, str] = {}
    """Value of each path that is swept."""
    result: Result | None = None
    error: str = ""
    notes: tuple[str, ...] = ()
    """What the optimizer did wrong while the run went on."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer at one point, over all seeds; None where no run ended well."""

    optimizer: str
    point: dict[str, str] = {}
    seeds: int = 0
    """Runs that ended well."""
    offered_rps: Interval | None = None
    served_rps: Interval | None = None
    attainment: Interval | None = None
    violation_ratio: Interval | None = None
    accuracy_served: Interval | None = None
    accuracy_offered: Interval | None = None
    max_accuracy_drop: Interval | None = None
    latency_p99_ms: Interval | None = None
    loads: Interval | None = None
    """Variants that had to be loaded, in a run."""
    solve_ms: Interval | None = None
    """Longest that one proposal took, in real time."""
    accuracy_best: float = 0.0
    broken: int = 0
    """Promises broken, over all runs."""
    notes: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that a simulation command found."""

    scenario: str
    description: str
    provenance: str
    offered: str
    """The offered load in words."""
    cluster: str
    duration_s: float
    warm_up_s: float
    seeds: tuple[int, ...]
    optimizers: tuple[str, ...]
    swept: tuple[str, ...] = ()
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    real_s: float = 0.0

    @property
    def broken(self) -> bool:
        """Whether some run did not end well, or broke a promise."""
        return any(row.notes for row in self.rows)


def rows_of(runs: Sequence[Run]) -> tuple[Row, ...]:
    """Runs of one optimizer at one point as one row, in the order of their first appearance."""
    groups: dict[tuple[tuple[tuple[str, str], ...], str], list[Run]] = {}
    for run in runs:
        groups.setdefault((tuple(run.point.items()), run.optimizer), []).append(run)
    return tuple(_row(group) for group in groups.values())


def _row(runs: Sequence[Run]) -> Row:
    results = [run.result for run in runs if run.result is not None]
    broken = sum(len(result.violations) for result in results)
    notes = list(dict.fromkeys(note for run in runs for note in (run.error, *run.notes) if note))
    first = next((violation for result in results for violation in result.violations), None)
    if first is not None:
        notes.append(f"{broken} promises broken, first: {first.checker} at {first.at_ms:.0f} ms: {first.what}")
    if not results:
        return Row(optimizer=runs[0].optimizer, point=runs[0].point, notes=tuple(notes))

    def over(figure: Callable[[Result], float | None]) -> Interval | None:
        values = [value for value in map(figure, results) if value is not None]
        return interval(values) if values else None

    return Row(
        optimizer=runs[0].optimizer,
        point=runs[0].point,
        seeds=len(results),
        offered_rps=over(lambda result: per_second(result, result.total.offered)),
        served_rps=over(lambda result: per_second(result, result.total.completed)),
        attainment=over(lambda result: result.total.attainment),
        violation_ratio=over(lambda result: result.total.violation_ratio),
        accuracy_served=over(lambda result: result.total.accuracy_served),
        accuracy_offered=over(lambda result: accuracy_offered(result.total)),
        max_accuracy_drop=over(lambda result: result.total.max_accuracy_drop),
        latency_p99_ms=over(lambda result: result.total.latency_p99_ms),
        loads=over(lambda result: float(sum(plan.loads for plan in result.plans))),
        solve_ms=over(lambda result: max((plan.solve_ms for plan in result.plans), default=0.0)),
        accuracy_best=results[0].total.accuracy_best,
        broken=broken,
        notes=tuple(notes),
    )


def accuracy_offered(result: EndpointResult) -> float | None:
    """Sum of the accuracies of the answers / offered."""
    if not result.offered:
        return None
    return (result.accuracy_served or 0.0) * result.completed / result.offered


def per_second(result: Result, count: int) -> float | None:
    """Of what was counted: after the warm-up."""
    counted_s = sum(window_lengths(result.total.windows)) or result.virtual_s
    return count / counted_s if counted_s > 0.0 else None


def window_lengths(windows: Sequence[Window]) -> list[float]:
    """Seconds of each window; the last is taken to be as long as the one before."""
    gaps = [after.at_s - before.at_s for before, after in pairwise(windows)]
    return [*gaps, gaps[-1]] if gaps else []


def offered_in_words(scenario: Scenario) -> str:
    """Each load with its arrivals: "shop: poisson, 100 requests/s"."""
    return "; ".join(f"{load.endpoint}: {_arrivals_in_words(load.arrivals)}" for load in scenario.loads)


def _arrivals_in_words(arrivals: Arrivals) -> str:
    if arrivals.kind in ("mmpp", "steps"):
        return f"{arrivals.kind}, {', '.join(f'{rate:g}' for rate in arrivals.rates_rps)} requests/s"
    if arrivals.kind == "trace":
        name = arrivals.file.replace("\\", "/").rpartition("/")[2]
        rate = f"scaled to {arrivals.rate_rps:g} requests/s" if arrivals.rate_rps else "as recorded"
        return f"trace {name}, {rate}" + (f", {arrivals.speed:g} x as fast" if arrivals.speed != 1.0 else "")
    more = {"gamma": f", cv {arrivals.cv:g}", "flash": f", peak {arrivals.peak:g} x", "diurnal": f", +-{arrivals.amplitude:.0%}"}
    return f"{arrivals.kind}, {arrivals.rate_rps:g} requests/s{more.get(arrivals.kind, '')}"


def cluster_in_words(scenario: Scenario) -> str:
    """ "4 cpu, 2 gpu workers"."""
    groups = [f"{group.count} {group.type}" for group in scenario.workers if group.count]
    return f"{', '.join(groups)} workers"

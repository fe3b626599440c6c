"""Lines to be drawn: figures over time and against demand, as means over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from deploy.simulation.report import Report, Row, Run
from scaler.simulator.result import Window

DEMAND_NAME = "demand"
POINTS_MAX = 80
"""Of one line: with more, ten lines cannot be told apart, and the page would grow with the length of the run."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a chart; NaN where there is nothing to draw."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart. `unit`: rps, percent, accuracy or count."""

    key: str
    """Names its files."""
    title: str
    x_label: str
    y_label: str
    unit: str
    lines: tuple[Line, ...]


class _Sums:
    """Windows of the same time added up over seeds, and over neighbours where there are too many."""

    def __init__(self, runs: Sequence[Run]) -> None:
        windows = [window for run in runs if run.result is not None for window in run.result.total.windows]
        starts = sorted({window.at_s for window in windows})
        self.step_s = float(np.median(np.diff(starts))) if len(starts) > 1 else 1.0
        self._together = -(-len(starts) // POINTS_MAX) or 1
        self._origin_s = starts[0] if starts else 0.0
        self.windows: dict[int, list[Window]] = {}
        for window in windows:
            self.windows.setdefault(int((window.at_s - self._origin_s) / self.step_s + 0.5) // self._together, []).append(window)

    def line(self, name: str, figure: Callable[[Sequence[Window], float], float]) -> Line:
        """`figure` of the windows of one point, and the seconds that they cover."""
        numbers = sorted(self.windows)
        width_s = self.step_s * self._together
        x = tuple(self._origin_s + number * width_s for number in numbers)
        return Line(name=name, x=x, y=tuple(figure(self.windows[number], self._seconds(number)) for number in numbers))

    def _seconds(self, number: int) -> float:
        """Over all seeds; the last point may hold fewer windows than the others."""
        windows = self.windows[number]
        return self.step_s * max(len(windows), 1)


def charts_over_time(report: Report, point: dict[str, str]) -> list[Chart]:
    """Demand, served, accuracy, attainment and violations over time, a line for each optimizer."""
    sums = {name: _Sums([run for run in report.runs if run.point == point and run.optimizer == name]) for name in report.optimizers}
    sums = {name: one for name, one in sums.items() if one.windows}
    demand = [one.line(DEMAND_NAME, _offered) for one in list(sums.values())[:1]]

    def chart(key: str, title: str, unit: str, figure: Callable[[Sequence[Window], float], float], first: Sequence[Line] = ()) -> Chart:
        lines = (*first, *(one.line(name, figure) for name, one in sums.items()))
        return Chart(key=key, title=title, x_label="time (s)", y_label=_Y[unit], unit=unit, lines=lines)

    found = [
        chart("served", "Demand and served", "rps", _served, demand),
        chart("accuracy", "Effective accuracy, served", "accuracy", _accuracy),
        chart("attainment", "SLO attainment", "percent", _attainment),
        chart("violations", "Violations: expired, rejected or failed", "rps", _violations),
    ]
    return found if demand else []


def charts_of_sweep(report: Report) -> list[Chart]:
    """Accuracy, attainment and violations against demand, where something is swept."""
    if not report.swept or len({row.offered_rps.mean for row in report.rows if row.offered_rps}) < 2:
        return []
    figures: tuple[tuple[str, str, str, Callable[[Row], tuple[float, float, float] | None]], ...] = (
        ("accuracy-demand", "Effective accuracy (served) against demand", "accuracy", lambda row: _bounds(row, "accuracy_served")),
        ("attainment-demand", "SLO attainment against demand", "percent", lambda row: _bounds(row, "attainment")),
        ("served-demand", "Served against demand", "rps", lambda row: _bounds(row, "served_rps")),
    )
    return [
        Chart(
            key=key,
            title=title,
            x_label="demand (requests/s)",
            y_label=_Y[unit],
            unit=unit,
            lines=tuple(line for name in report.optimizers if (line := _swept_line(report, name, figure)) is not None),
        )
        for key, title, unit, figure in figures
    ]


def _swept_line(report: Report, optimizer: str, figure: Callable[[Row], tuple[float, float, float] | None]) -> Line | None:
    points = [
        (row.offered_rps.mean, *values)
        for row in report.rows
        if row.optimizer == optimizer and row.offered_rps is not None and (values := figure(row)) is not None
    ]
    if not points:
        return None
    x, y, low, high = (tuple(column) for column in zip(*sorted(points), strict=True))
    return Line(name=optimizer, x=x, y=y, low=low, high=high)


def _bounds(row: Row, figure: str) -> tuple[float, float, float] | None:
    value = getattr(row, figure)
    if value is None:
        return None
    return value.mean, value.mean if value.low is None else value.low, value.mean if value.high is None else value.high


def _offered(windows: Sequence[Window], seconds: float) -> float:
    return sum(window.offered for window in windows) / seconds


def _served(windows: Sequence[Window], seconds: float) -> float:
    return sum(window.completed for window in windows) / seconds


def _violations(windows: Sequence[Window], seconds: float) -> float:
    return sum(window.offered - window.completed for window in windows) / seconds


def _attainment(windows: Sequence[Window], _: float) -> float:
    offered = sum(window.offered for window in windows)
    return sum(window.completed for window in windows) / offered if offered else float("nan")


def _accuracy(windows: Sequence[Window], _: float) -> float:
    completed = sum(window.completed for window in windows)
    return sum(window.accuracy_sum for window in windows) / completed if completed else float("nan")


_Y = {"rps": "requests/s", "accuracy": "accuracy", "percent": "completed in time", "count": ""}

"""What a row of the bench is: a published result, how it is reproduced, and what came out beside what the paper says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from benchmarks.papers.bench import Bench
from deploy.simulation.report import Report, Row
from deploy.simulation.series import Chart
from deploy.simulation.table import FIGURES, figures
from scaler.simulator.intervals import Interval


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: what the paper says, what we have, and what is asked for."""

    figure: str
    paper: str
    ours: str
    must: str = ""
    met: bool | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a row found."""

    lines: tuple[Line, ...]
    columns: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    charts: tuple[Chart, ...] = ()
    facts: tuple[str, ...] = ()
    """Seeds, provenance and offered load."""

    @property
    def unmet(self) -> list[str]:
        return [line.figure for line in self.lines if line.met is False]


class PaperRow(Protocol):
    """One published result."""

    name: str
    title: str
    source: str
    differences: str
    """How the scenario differs from the paper's."""

    def measure(self, bench: Bench) -> Measured:
        """Make the runs."""
        ...


def table_of(report: Report) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """(columns, rows) of a report, as `headrace simulate` shows them."""
    cells = tuple((row.optimizer, *figures(row), "; ".join(row.notes)) for row in report.rows)
    noted = any(cell[-1] for cell in cells)
    columns = ("", *(name for name, _, _ in FIGURES), *(("notes",) if noted else ()))
    return columns, cells if noted else tuple(cell[:-1] for cell in cells)


def mean(row: Row | None, figure: Callable[[Row], Interval | None]) -> float | None:
    """A figure of a row; None where there is none."""
    value = None if row is None else figure(row)
    return None if value is None else value.mean


def ratio(theirs: float | None, ours: float | None, least: float) -> float | None:
    """How many times less ours is. Both are counted as at least `least` (one request): nothing is infinitely better than anything."""
    return None if theirs is None or ours is None else max(theirs, least) / max(ours, least)


def times(value: float | None) -> str:
    """`12.3 x`."""
    return "-" if value is None else f"{value:.1f} x" if value < 100 else f"{value:.0f} x"


def part(value: float | None) -> str:
    """`4.85 %`."""
    return "-" if value is None else f"{value:.2%}".replace("%", " %")


def least_ratio(report: Report) -> float:
    """One request of all that were offered."""
    offered = sum(run.result.total.offered for run in report.runs if run.result is not None)
    return 1.0 / offered if offered else 1.0


def ours_is_best(report: Report, figure: Callable[[Row], Interval | None], ours: str, *, lower: bool, slack: float) -> tuple[bool, str]:
    """Whether ours is at least as good as all others, up to `slack`; and the best of the others in words."""
    others = [(value, row.optimizer) for row in report.rows if row.optimizer != ours and (value := mean(row, figure)) is not None]
    own = next((mean(row, figure) for row in report.rows if row.optimizer == ours), None)
    if own is None or not others:
        return own is not None, "no other"
    best, name = min(others) if lower else max(others)
    return (own <= best + slack if lower else own >= best - slack), name

"""What a row of the bench is: a published result, how it is reproduced, and what came out beside what the paper says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from benchmarks.papers.bench import Bench
from deploy.simulation.report import Report, Row
from deploy.simulation.series import Chart, charts_over_time
from deploy.simulation.table import FIGURES, figures, heading
from scaler.optimizers.registry import DEFAULT_OPTIMIZER
from scaler.simulator.intervals import Interval

OURS = DEFAULT_OPTIMIZER
Figure = Callable[[Row], Interval | None]


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


def mean(row: Row | None, figure: Figure) -> float | None:
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


def figure_of(value: float | None) -> str:
    """`0.8762`."""
    return "-" if value is None else f"{value:.4f}"


def violations_of(report: Report) -> dict[str, float | None]:
    """Violation ratio by label."""
    return {row.optimizer: mean(row, _violations) for row in report.rows}


def violations_line(report: Report, *, slack: float) -> Line:
    """Whether ours misses no more than the best of the others, up to `slack`."""
    return _best_line(report, "violation ratio", _violations, lower=True, slack=slack)


def accuracy_line(report: Report, *, slack: float, strictly: bool = False) -> Line:
    """Whether ours offers at least the accuracy of the best of the others, up to `slack`; `strictly`: more."""
    subject = "accuracy offered (what is not served counts as 0)"
    return _best_line(report, subject, lambda row: row.accuracy_offered, lower=False, slack=slack, strictly=strictly)


def measured(report: Report, lines: Sequence[Line]) -> Measured:
    """A row whose table, charts and facts are those of one comparison."""
    columns, table = table_of(report)
    return Measured(lines=tuple(lines), columns=columns, table=table, charts=tuple(charts_over_time(report, {})), facts=tuple(heading(report)))


def _violations(row: Row) -> Interval | None:
    return row.violation_ratio


def _best_line(report: Report, subject: str, figure: Figure, *, lower: bool, slack: float, strictly: bool = False) -> Line:
    show = part if lower else figure_of
    others = [(value, row.optimizer) for row in report.rows if row.optimizer != OURS and (value := mean(row, figure)) is not None]
    own = next((mean(row, figure) for row in report.rows if row.optimizer == OURS), None)
    best, name = (min(others) if lower else max(others)) if others else (own, "no other")
    ahead = 0.0 if own is None or best is None else best - own if lower else own - best
    met = own is not None and (ahead > 0.0 if strictly else ahead >= -slack)
    text = f"{show(own)}; {name}: {show(best)}" if others else show(own)
    must = "better" if strictly else "at least as good"
    return Line(figure=f"{subject}, ours and the best of the others", paper="-", ours=text, must=must, met=met)

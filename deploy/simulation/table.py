"""The table at the end of a simulation: figures as people read them."""

from __future__ import annotations

from collections.abc import Callable

from deploy.simulation.report import Report, Row
from scaler.simulator.intervals import Interval

Figure = tuple[str, Callable[[Row], Interval | None], Callable[[float], str]]


def percent(value: float) -> str:
    """Two digits after the point."""
    return f"{value * 100:.2f} %"


def accuracy(value: float) -> str:
    """In [0, 1], four digits."""
    return f"{value:.4f}"


def rate(value: float) -> str:
    """Per second, or a count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def milliseconds(value: float) -> str:
    """Whole ones from ten on."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _half(written: Callable[[float], str]) -> Callable[[float], str]:
    """Half the width of an interval, without the unit that stands before it."""
    return lambda value: written(value).removesuffix(" %")


FIGURES: tuple[Figure, ...] = (
    ("offered/s", lambda row: row.offered_rps, rate),
    ("served/s", lambda row: row.served_rps, rate),
    ("attainment", lambda row: row.attainment, percent),
    ("violations", lambda row: row.violation_ratio, percent),
    ("accuracy served", lambda row: row.accuracy_served, accuracy),
    ("accuracy offered", lambda row: row.accuracy_offered, accuracy),
    ("max drop", lambda row: row.max_accuracy_drop, percent),
    ("p99 ms", lambda row: row.latency_p99_ms, milliseconds),
    ("loads", lambda row: row.loads, rate),
)


def columns(report: Report) -> list[str]:
    """Heads of the table; a column for each path that is swept, and one for notes where there are any."""
    return [*report.swept, "optimizer", *(name for name, _, _ in FIGURES), *(["notes"] if report.broken else [])]


def cells(report: Report) -> list[list[str]]:
    """The table's rows."""
    return [[*(row.point.get(path, "") for path in report.swept), row.optimizer, *figures(row), *_notes(report, row)] for row in report.rows]


def figures(row: Row) -> list[str]:
    """Every figure of a row with its interval; a dash where there is none."""
    return [shown(figure(row), written) for _, figure, written in FIGURES]


def shown(value: Interval | None, written: Callable[[float], str]) -> str:
    """`97.31 %`, with several seeds `97.31 % +-0.20`."""
    if value is None:
        return "-"
    if value.high is None:
        return written(value.mean)
    return f"{written(value.mean)} ±{_half(written)(value.high - value.mean)}"


def heading(report: Report) -> list[str]:
    """What every output says of a run: seeds, provenance and the offered load."""
    seeds = f"seed {report.seeds[0]}" if len(report.seeds) == 1 else f"seeds {report.seeds[0]}..{report.seeds[-1]}, 95 % confidence intervals"
    warm_up = f", the first {report.warm_up_s:g} s left out" if report.warm_up_s else ""
    return [
        f"{report.scenario}: {report.duration_s:g} s{warm_up}, {report.cluster}, {seeds}",
        f"offered: {report.offered}",
        f"provenance: {report.provenance or 'not stated'}",
    ]


def _notes(report: Report, row: Row) -> list[str]:
    return ["; ".join(row.notes)] if report.broken else []

"""From samples to the table and the JSON: medians, spreads, and whether each must was met."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from deploy.bench.rows import Figure, Measured, Row, Sample

COLUMNS = ("row", "figure", "baseline", "ours", "ratio", "spread", "must", "met")
DIFFERS = 0.15
"""A figure this far off its prediction wants a reason."""
PREDICTED = ("simulated", "differs")
"""Beside them, where a row has predictions."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over all runs; the spread is that of what is judged."""

    row: str
    figure: str
    unit: str
    baseline_is: str
    baseline: float | None
    ours: float
    ratio: float | None
    spread: tuple[float, float]
    must: str
    met: bool | None
    """None where nothing is asked."""
    simulated: float | None = None
    """The simulator's prediction of what is judged."""
    differs: float | None = None
    """What is judged, over its prediction, less one."""
    samples: tuple[Sample, ...]


class RowReport(msgspec.Struct, frozen=True, kw_only=True):
    """One row with every run's details."""

    name: str
    title: str
    lines: tuple[Line, ...]
    details: tuple[dict[str, object], ...]


def summarise(row: Row, runs: Sequence[Measured]) -> RowReport:
    """Each figure's median over the runs decides."""
    lines = tuple(_line(row, figure, [run.samples[figure.key] for run in runs]) for figure in row.figures)
    return RowReport(name=row.name, title=row.title, lines=lines, details=tuple(run.details for run in runs))


def _line(row: Row, figure: Figure, samples: Sequence[Sample]) -> Line:
    baselines = [sample.baseline for sample in samples if sample.baseline is not None]
    ratios = [sample.ratio for sample in samples if sample.ratio is not None]
    ours = median(sample.ours for sample in samples)
    ratio = median(ratios) if ratios else None
    judged = ratios if figure.of_ratio and ratios else [sample.ours for sample in samples]
    value = ratio if figure.of_ratio and ratios else ours
    predictions = [sample.simulated for sample in samples if sample.simulated is not None]
    simulated = median(predictions) if predictions else None
    return Line(
        row=row.name,
        figure=figure.what,
        unit=figure.unit,
        baseline_is=figure.baseline,
        baseline=median(baselines) if baselines else None,
        ours=ours,
        ratio=ratio,
        spread=(min(judged), max(judged)),
        must=_must(figure),
        met=_met(figure, ratio if figure.of_ratio else ours),
        simulated=simulated,
        differs=value / simulated - 1.0 if simulated and value is not None else None,
        samples=tuple(samples),
    )


def _met(figure: Figure, value: float | None) -> bool | None:
    if figure.limit is None:
        return None
    if value is None:
        return False
    return value >= figure.limit if figure.at_least else value <= figure.limit


def _must(figure: Figure) -> str:
    if figure.limit is None:
        return ""
    sign = ">=" if figure.at_least else "<="
    return f"{sign} {figure.limit:g} x" if figure.of_ratio else f"{sign} {figure.limit:g} {figure.unit}".rstrip()


def cells(line: Line) -> tuple[str, ...]:
    """A line of the table, in the order of COLUMNS."""
    low, high = line.spread
    return (
        line.row,
        line.figure,
        "-" if line.baseline is None else shown(line.baseline, line.unit),
        shown(line.ours, line.unit),
        "-" if line.ratio is None else f"{line.ratio:.2f}",
        f"{low:.3g}..{high:.3g}",
        line.must,
        "" if line.met is None else "yes" if line.met else "NO",
    )


def differences(row: RowReport) -> tuple[str, ...]:
    """What was measured of the reasons, in the last run, where some figure is off its prediction by DIFFERS."""
    if not any(line.differs is not None and abs(line.differs) >= DIFFERS for line in row.lines) or not row.details:
        return ()
    return msgspec.convert(row.details[-1].get("why", ()), tuple[str, ...])


def predicted_cells(line: Line) -> tuple[str, ...]:
    """In the order of PREDICTED."""
    return ("-" if line.simulated is None else f"{line.simulated:.3g}", "-" if line.differs is None else f"{line.differs:+.0%}")


def shown(value: float, unit: str) -> str:
    """A number with its unit, four digits at most."""
    return f"{value:.4g} {unit}".rstrip()

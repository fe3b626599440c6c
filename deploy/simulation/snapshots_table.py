"""The table of replayed snapshots."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.simulation.snapshots import ReplayReport, ReplayRow
from deploy.simulation.table import accuracy, percent, shown

COLUMNS = (
    "optimizer", "planned served", "planned accuracy", "planned load", "attainment", "accuracy served", "accuracy over all asked", "loads",
    "no proposal", "against the first",
)  # fmt: skip


def snapshot_cells(report: ReplayReport) -> list[list[str]]:
    """One row for each optimizer."""
    return [_cells(row) for row in report.rows]


def snapshot_heading(report: ReplayReport) -> list[str]:
    """What is said above the table."""
    return [
        f"{report.file}: {report.snapshots} snapshots, {report.compared} intervals compared, 95 % confidence intervals over snapshots",
        "(the first interval, on which everybody goes from the recorded plan to its own, does not count, nor do intervals without a request)",
    ]


def _cells(row: ReplayRow) -> list[str]:
    return [
        row.optimizer,
        shown(row.planned_served, percent),
        shown(row.planned_accuracy, accuracy),
        ", ".join(f"{kind} {part:.0%}" for kind, part in row.planned_load.items()) or "-",
        shown(row.attainment, percent),
        shown(row.accuracy_served, accuracy),
        shown(row.worth, accuracy),
        str(row.loads),
        f"{row.failures} x, last: {row.last_failure}" if row.failures else "-",
        _against(row),
    ]


def _against(row: ReplayRow) -> str:
    found = row.against_first
    if row.verdict is None or found is None:
        return "-"
    between: Sequence[float] = () if found.low is None or found.high is None else (found.low, found.high)
    return f"{row.verdict}: {100 * found.mean:+.2f} points" + (f" [{100 * between[0]:+.2f}, {100 * between[1]:+.2f}]" if between else "")

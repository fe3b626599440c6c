"""Ours: pipelines, several kinds of worker, floors by request and moving load at once, which no published optimizer was made for."""

from __future__ import annotations

from benchmarks.papers.bench import Bench, all_optimizers, by_optimizer
from benchmarks.papers.row import Line, Measured, mean, ours_is_best, part, table_of
from deploy.simulation.series import charts_over_time
from deploy.simulation.table import heading

SCENARIO = "combined"
OURS = "headrace"


class Combined:
    """Every optimizer on everything at once."""

    name = "combined"
    title = "Pipelines, several kinds of worker, floors and moving load at once"
    source = "No paper: each published optimizer covers a part of this"
    differences = (
        "Ours alone: what an optimizer was not made for (floors, pipelines, kinds of worker) it ignores, and the dispatcher serves "
        "what its plan allows."
    )

    def measure(self, bench: Bench) -> Measured:
        """All optimizers; better means more accuracy over all that was offered, and no more violations."""
        report = bench.compare(SCENARIO, by_optimizer(all_optimizers()))
        rows = {row.optimizer: row for row in report.rows}
        accuracy = {label: mean(row, lambda row: row.accuracy_offered) for label, row in rows.items()}
        violations = {label: mean(row, lambda row: row.violation_ratio) for label, row in rows.items()}
        best, other = ours_is_best(report, lambda row: row.accuracy_offered, OURS, lower=False, slack=0.0)
        fewest, missing = ours_is_best(report, lambda row: row.violation_ratio, OURS, lower=True, slack=0.0)
        ours = accuracy.get(OURS)
        theirs = accuracy.get(other)
        columns, table = table_of(report)
        return Measured(
            lines=(
                Line(
                    figure="accuracy offered (what is not served counts as 0), ours and the best of the others",
                    paper="-",
                    ours=f"{ours or 0.0:.4f}; {other}: {theirs or 0.0:.4f}",
                    must="better",
                    met=best and ours != theirs,
                ),
                Line(
                    figure="violation ratio, ours and the best of the others",
                    paper="-",
                    ours=f"{part(violations.get(OURS))}; {missing}: {part(violations.get(missing))}",
                    must="at least as good",
                    met=fewest,
                ),
            ),
            columns=columns,
            table=table,
            charts=tuple(charts_over_time(report, {})),
            facts=tuple(heading(report)),
        )

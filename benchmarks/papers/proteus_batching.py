"""Proteus: its batching, which waits on purpose, against AIMD and Nexus; and ours."""

from __future__ import annotations

from benchmarks.papers.bench import Bench
from benchmarks.papers.row import Line, Measured, least_ratio, mean, ours_is_best, part, ratio, table_of, times
from deploy.simulation.series import charts_over_time
from deploy.simulation.table import heading

SCENARIO = "proteus-batching"
OURS = "headrace"
BATCHINGS = ("aimd", "nexus", "proteus", OURS)
PAPER = {"nexus": "2 to 3 x", "aimd": "3.8 to 4 x"}
SLACK = 0.0005


class ProteusBatching:
    """Violations by how batches are formed; nothing else differs."""

    name = "proteus-batching"
    title = "Batching against AIMD and Nexus"
    source = "Proteus, ASPLOS'24, section 6: 2 to 3 x fewer violations than Nexus's early drop, 3.8 to 4 x than AIMD"
    differences = (
        "One family with its most accurate variant on four V100, gaps with a Gamma distribution (cv 4). All four run behind the same "
        "late-binding dispatcher, which keeps lanes nearly empty, so that the worker has less to decide than in the paper."
    )

    def measure(self, bench: Bench) -> Measured:
        """Every way of batching on the same arrivals and the same plan."""
        report = bench.compare(SCENARIO, {name: {"control.batching": name} for name in BATCHINGS})
        violations = {row.optimizer: mean(row, lambda row: row.violation_ratio) for row in report.rows}
        least = least_ratio(report)
        best, other = ours_is_best(report, lambda row: row.violation_ratio, OURS, lower=True, slack=SLACK)
        lines: list[Line] = []
        for name, paper in PAPER.items():
            of_proteus, of_ours = (times(ratio(violations.get(name), violations.get(reference), least)) for reference in ("proteus", OURS))
            lines.append(Line(figure=f"violations of {name} / Proteus's batching; / ours", paper=f"{paper}; -", ours=f"{of_proteus}; {of_ours}"))
        lines.append(
            Line(
                figure="violation ratio, ours and the best of the others",
                paper="-",
                ours=f"{part(violations.get(OURS))}; {other}: {part(violations.get(other))}",
                must="at least as good",
                met=best,
            )
        )
        columns, table = table_of(report)
        charts = tuple(charts_over_time(report, {}))
        return Measured(lines=tuple(lines), columns=columns, table=table, charts=charts, facts=tuple(heading(report)))

"""Proteus: its batching, which waits on purpose, against AIMD and Nexus; and ours."""

from __future__ import annotations

from benchmarks.papers.bench import Bench
from benchmarks.papers.row import OURS, Line, Measured, least_ratio, measured, ratio, times, violations_line, violations_of

SCENARIO = "proteus-batching"
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
        violations = violations_of(report)
        least = least_ratio(report)
        lines: list[Line] = []
        for name, paper in PAPER.items():
            of_proteus, of_ours = (times(ratio(violations.get(name), violations.get(reference), least)) for reference in ("proteus", OURS))
            lines.append(Line(figure=f"violations of {name} / Proteus's batching; / ours", paper=f"{paper}; -", ours=f"{of_proteus}; {of_ours}"))
        return measured(report, (*lines, violations_line(report, slack=SLACK)))

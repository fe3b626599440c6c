"""Ours: pipelines, several kinds of worker, floors by request and moving load at once, which no published optimizer was made for."""

from __future__ import annotations

from benchmarks.papers.bench import Bench, all_optimizers, by_optimizer
from benchmarks.papers.row import Measured, accuracy_line, measured, violations_line

SCENARIO = "combined"


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
        return measured(report, (accuracy_line(report, slack=0.0, strictly=True), violations_line(report, slack=0.0)))

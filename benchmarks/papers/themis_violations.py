"""Themis: violations when demand jumps, against horizontal scaling only and vertical scaling only."""

from __future__ import annotations

from benchmarks.papers.bench import Bench, all_optimizers, by_optimizer
from benchmarks.papers.row import OURS, Line, Measured, least_ratio, measured, ratio, times, violations_line, violations_of

SCENARIO = "themis"
THEIRS = "themis"
HORIZONTAL, VERTICAL = "themis, horizontal only", "themis, vertical only"
MODES = {HORIZONTAL: "{vertical: 0}", VERTICAL: "{horizontal: 0}"}
MUST = 10.0
SLACK = 0.0005


class ThemisViolations:
    """Violations at the same load."""

    name = "themis-violations"
    title = "Violations against horizontal-only and vertical-only scaling"
    source = "Themis (arXiv 2407.14843): more than 10 x fewer SLO violations than horizontal scaling only and vertical scaling only"
    differences = (
        "Cores are the worker's thread count, changed by a plan; a replica is a worker that loads a model. The cluster is fixed at 20 workers of 16 "
        "cores, so that nothing has to be rented. The jump is a flash crowd of four times the mean."
    )

    def measure(self, bench: Bench) -> Measured:
        """Every optimizer through the jump, and Themis with one of its two hands tied."""
        tied = {label: {"control.optimizer": THEIRS, "control.options": options} for label, options in MODES.items()}
        report = bench.compare(SCENARIO, {**by_optimizer(all_optimizers()), **tied})
        violations = violations_of(report)
        least = least_ratio(report)
        lines: list[Line] = []
        for label in MODES:
            by_ours, by_theirs = (ratio(violations.get(label), violations.get(reference), least) for reference in (OURS, THEIRS))
            lines.append(
                Line(
                    figure=f"violations of {label} / `headrace`'s; / `themis`'s",
                    paper="-; > 10 x",
                    ours=f"{times(by_ours)}; {times(by_theirs)}",
                    must=f"> {MUST:g} x",
                    met=by_ours is not None and by_ours > MUST,
                )
            )
        return measured(report, (*lines, violations_line(report, slack=SLACK)))

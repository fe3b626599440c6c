"""Loki: violations through a day against hardware scaling alone, and against early binding."""

from __future__ import annotations

from benchmarks.papers.bench import Bench, all_optimizers, by_optimizer
from benchmarks.papers.row import OURS, Line, Measured, least_ratio, measured, ratio, times, violations_line, violations_of

SCENARIO = "loki-day"
HARDWARE = "static-accurate"
EARLY = "headrace, early binding"
MUST = 10.0
SLACK = 0.0005


class LokiViolations:
    """Violations at the same load."""

    name = "loki-violations"
    title = "Violations against hardware scaling and against early binding"
    source = "Loki, HPDC'24 (arXiv 2407.03583): up to 10 x fewer SLO violations than the state of the art"
    differences = (
        "A day is 40 s of a diurnal shape, not a trace of Azure Functions; plans are made every 5 s. InferLine, which Loki compares "
        "with, scales hardware only: `static-accurate` on a fixed cluster. Early binding: a request goes to a lane as soon as it arrives."
    )

    def measure(self, bench: Bench) -> Measured:
        """Every optimizer through the day, and ours with early binding."""
        early = {"control.optimizer": OURS, "control.binding": "early"}
        report = bench.compare(SCENARIO, {**by_optimizer(all_optimizers()), EARLY: early})
        violations = violations_of(report)
        least = least_ratio(report)
        against_hardware = ratio(violations.get(HARDWARE), violations.get(OURS), least)
        against_early = ratio(violations.get(EARLY), violations.get(OURS), least)
        return measured(
            report,
            (
                Line(
                    figure="violations of hardware scaling / ours",
                    paper="up to 10 x",
                    ours=times(against_hardware),
                    must=f">= {MUST:g} x",
                    met=against_hardware is not None and against_hardware >= MUST,
                ),
                Line(
                    figure="violations of early binding / ours",
                    paper="-",
                    ours=times(against_early),
                    must=">= 1 x",
                    met=against_early is not None and against_early >= 1.0,
                ),
                violations_line(report, slack=SLACK),
            ),
        )

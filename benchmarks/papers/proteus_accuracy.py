"""Proteus: accuracy dropped and requests missed through a day, against its four baselines."""

from __future__ import annotations

from benchmarks.papers.bench import Bench, all_optimizers, by_optimizer
from benchmarks.papers.row import OURS, Line, Measured, accuracy_line, least_ratio, mean, measured, part, ratio, times, violations_of

SCENARIO = "proteus"
THEIRS = "proteus"
PAPER_DROPS = {THEIRS: "4.85 %", "infaas": "13.7 %", "sommelier": "16 %", "clipper-ht": "20 %"}
PAPER_RATIOS = {"sommelier": "2.8 x", "infaas": "4.3 x", "clipper-ha": "> 10 x"}
SLACK = 0.001


class ProteusAccuracy:
    """Max accuracy drop and violation ratios."""

    name = "proteus-accuracy"
    title = "Accuracy and violations against Proteus's four baselines"
    source = "Proteus, ASPLOS'24, section 6: max accuracy drop 4.85 %; violations 2.8 x, 4.3 x and more than 10 x lower than the baselines'"
    differences = (
        "BERT, T5 and GPT-2 are in no public table with these devices: ConvNeXt, RegNetY and VGG stand for them. Two minutes of a "
        "diurnal shape stands for the Twitter trace, plans are made every 5 s for 30. Time-outs are the paper's twice the fastest CPU "
        "latency, and 40 ms for the log."
    )

    def measure(self, bench: Bench) -> Measured:
        """Every optimizer through the day, the baselines with their own batching."""
        variations = {**by_optimizer(all_optimizers())}
        for name in ("clipper-ha", "clipper-ht"):
            variations[name] = {"control.optimizer": name, "control.batching": "aimd"}
        report = bench.compare(SCENARIO, variations)
        drops = {row.optimizer: mean(row, lambda row: row.max_accuracy_drop) for row in report.rows}
        violations = violations_of(report)
        least = least_ratio(report)
        lines = [Line(figure="max accuracy drop of `headrace`", paper="-", ours=part(drops.get(OURS)))]
        lines += [Line(figure=f"max accuracy drop of `{name}`", paper=paper, ours=part(drops.get(name))) for name, paper in PAPER_DROPS.items()]
        for name, paper in PAPER_RATIOS.items():
            ours, theirs = (times(ratio(violations.get(name), violations.get(reference), least)) for reference in (OURS, THEIRS))
            lines.append(Line(figure=f"violations of `{name}` / `headrace`'s; / `proteus`'s", paper=f"-; {paper}", ours=f"{ours}; {theirs}"))
        return measured(report, (*lines, accuracy_line(report, slack=SLACK)))

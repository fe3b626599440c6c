"""Proteus: accuracy dropped and requests missed through a day, against its four baselines."""

from __future__ import annotations

from benchmarks.papers.bench import Bench, all_optimizers, by_optimizer
from benchmarks.papers.row import Line, Measured, least_ratio, mean, ours_is_best, part, ratio, table_of, times
from deploy.simulation.series import charts_over_time
from deploy.simulation.table import heading

SCENARIO = "proteus"
OURS, THEIRS = "headrace", "proteus"
PAPER_DROPS = {THEIRS: "4.85 %", "infaas": "13.7 %", "sommelier": "16 %", "clipper-ht": "20 %"}
PAPER_RATIOS = {"sommelier": "2.8 x", "infaas": "4.3 x", "clipper-ha": "> 10 x"}
SLACK = 0.001


class ProteusAccuracy:
    """Max accuracy drop and violation ratios."""

    name = "proteus-accuracy"
    title = "Accuracy and violations against Proteus's four baselines"
    source = "Proteus, ASPLOS'24, section 6: max accuracy drop 4.85 %; violations 2.8 x, 4.3 x and more than 10 x lower than the baselines'"
    differences = (
        "BERT, T5 and GPT-2 are in no public table with these devices: ConvNeXt, RegNetY and VGG stand for them. Half a minute of a "
        "diurnal shape stands for the Twitter trace, plans are made every 5 s for 30. Time-outs are the paper's twice the fastest CPU "
        "latency, and 40 ms for the log."
    )

    def measure(self, bench: Bench) -> Measured:
        """Every optimizer through the day, the baselines with their own batching."""
        variations = {**by_optimizer(all_optimizers())}
        for name in ("clipper-ha", "clipper-ht"):
            variations[name] = {"control.optimizer": name, "control.batching": "aimd"}
        report = bench.compare(SCENARIO, variations)
        rows = {row.optimizer: row for row in report.rows}
        drops = {label: mean(row, lambda row: row.max_accuracy_drop) for label, row in rows.items()}
        violations = {label: mean(row, lambda row: row.violation_ratio) for label, row in rows.items()}
        served = {label: mean(row, lambda row: row.accuracy_offered) for label, row in rows.items()}
        best, other = ours_is_best(report, lambda row: row.accuracy_offered, OURS, lower=False, slack=SLACK)
        least = least_ratio(report)
        lines = [Line(figure="max accuracy drop of `headrace`", paper="-", ours=part(drops.get(OURS)))]
        lines += [Line(figure=f"max accuracy drop of `{name}`", paper=paper, ours=part(drops.get(name))) for name, paper in PAPER_DROPS.items()]
        for name, paper in PAPER_RATIOS.items():
            ours, theirs = (times(ratio(violations.get(name), violations.get(reference), least)) for reference in (OURS, THEIRS))
            lines.append(Line(figure=f"violations of `{name}` / `headrace`'s; / `proteus`'s", paper=f"-; {paper}", ours=f"{ours}; {theirs}"))
        lines.append(
            Line(
                figure="accuracy offered (what is not served counts as 0), ours and the best of the others",
                paper="-",
                ours=f"{_figure(served.get(OURS))}; {other}: {_figure(served.get(other))}",
                must="at least as good",
                met=best,
            )
        )
        columns, table = table_of(report)
        return Measured(lines=tuple(lines), columns=columns, table=table, charts=tuple(charts_over_time(report, {})), facts=tuple(heading(report)))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

"""Scores every forecast on every trace, for docs/forecasts.md."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from deploy.traces import KNOWN, read_trace
from scaler.policy.forecasting.forecaster import FORECASTERS
from scaler.policy.forecasting.scoring import Question, Score, rates_by_second, score_all
from scaler.simulator.scenario import Arrivals
from scaler.simulator.workloads.arrivals import arrivals

SECONDS = 3_400
"""Of each trace: the shortest has 3,436."""
GENERATED = {
    "poisson": Arrivals(rate_rps=100.0),
    "gamma, cv 4": Arrivals(kind="gamma", rate_rps=100.0, cv=4.0),
    "mmpp": Arrivals(kind="mmpp", rates_rps=(20.0, 100.0, 300.0), hold_s=60.0),
    "diurnal": Arrivals(kind="diurnal", rate_rps=100.0, period_s=600.0, amplitude=0.8),
    "flash crowd": Arrivals(kind="flash", rate_rps=100.0, peak=5.0, at_s=1_000.0, lasts_s=120.0),
}


def all_series(seed: int = 1) -> dict[str, NDArray[np.float64]]:
    """Rates by second of the known traces and of generated loads."""
    recorded = {name: rates_by_second(read_trace(name, span_s=SECONDS, seed=seed).stamps_ms, SECONDS) for name in KNOWN}
    generated = {name: rates_by_second(arrivals(spec, SECONDS, default_rng(seed)), SECONDS) for name, spec in GENERATED.items()}
    return recorded | generated


def forecast_scores(question: Question | None = None, seed: int = 1) -> dict[tuple[str, str], Score]:
    """By (series, forecaster). Takes some seconds."""
    return score_all(FORECASTERS, all_series(seed), question)


def forecast_table(scores: Mapping[tuple[str, str], Score]) -> str:
    """As Markdown: a row for each series and forecaster, the least pinball loss of a series in bold."""
    lines = [
        "| series | mean rate /s | forecast | pinball loss, part of the mean | seconds above the forecast | forecast too much, part of the mean |",
        "|---|---:|---|---:|---:|---:|",
    ]
    best = {series: min(score.pinball_part for (name, _), score in scores.items() if name == series) for series, _ in scores}
    for (series, forecaster), score in scores.items():
        loss = f"{score.pinball_part:.4f}"
        shown = f"**{loss}**" if score.pinball_part == best[series] else loss
        lines.append(f"| {series} | {score.mean_rps:.1f} | {forecaster} | {shown} | {score.under_part:.1%} | {score.over_part:.1%} |")
    return "\n".join(lines) + "\n"

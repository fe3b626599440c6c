"""The table of forecast scores: every series, every forecaster, and the figures that docs/forecasts.md prints."""

from __future__ import annotations

from deploy.forecast_scores import GENERATED, all_series, forecast_table
from deploy.traces import KNOWN
from scaler.policy.forecasting.forecaster import FORECASTERS
from scaler.policy.forecasting.scoring import Score, score


def test_every_known_trace_and_generated_load_is_a_series_that_repeats() -> None:
    series = all_series()
    assert set(series) == set(KNOWN) | set(GENERATED)
    assert {len(rates) for rates in series.values()} == {3_400}
    assert all(rates.mean() > 1.0 for rates in series.values())
    assert series["poisson"].tolist() == all_series()["poisson"].tolist()


def test_ours_is_closer_than_proteus_and_naive_forecasts_on_every_series() -> None:
    for name, rates in all_series().items():
        loss = {forecaster: score(FORECASTERS[forecaster](), rates).pinball_rps for forecaster in ("calibrated", "ewma", "last")}
        assert loss["calibrated"] < loss["ewma"], name
        assert loss["calibrated"] < loss["last"], name


def test_the_table_has_a_row_for_each_score_and_marks_the_best() -> None:
    scores = {
        ("quiet", "a"): Score(seconds=10, mean_rps=10.0, pinball_rps=1.0, under_seconds=1, over_part=0.5),
        ("quiet", "b"): Score(seconds=10, mean_rps=10.0, pinball_rps=2.0, under_seconds=5, over_part=0.25),
    }
    lines = forecast_table(scores).splitlines()
    assert lines[2:] == ["| quiet | 10.0 | a | **0.1000** | 10.0% | 50.0% |", "| quiet | 10.0 | b | 0.2000 | 50.0% | 25.0% |"]

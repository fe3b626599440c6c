"""Forecasters: what each says, the cold start, what is left out, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import default_rng

from scaler.policy.forecasting.calibrated import Calibrated
from scaler.policy.forecasting.ewma import Ewma
from scaler.policy.forecasting.forecaster import FORECASTERS, Forecaster, create_forecaster
from scaler.policy.forecasting.history import poisson_quantile
from scaler.policy.forecasting.holt_winters import HoltWinters
from scaler.policy.forecasting.last import Last
from scaler.policy.forecasting.peak_window import PeakWindow
from scaler.policy.forecasting.scoring import Question, rates_by_second, score, score_all
from schemas.errors import ConfigurationError

POISSON = default_rng(1).poisson(100.0, 900).astype(float)
every = pytest.mark.parametrize("make", FORECASTERS.values(), ids=FORECASTERS)


def told(forecaster: Forecaster, rates: list[float] | np.ndarray) -> Forecaster:
    for rate in np.asarray(rates, float).tolist():
        forecaster.observe(rate)
    return forecaster


@every
def test_nothing_seen_is_nothing_expected(make: Callable[[], Forecaster]) -> None:
    assert make().forecast(10.0, 0.95) == 0.0


@every
def test_one_rate_is_enough_for_a_forecast(make: Callable[[], Forecaster]) -> None:
    assert 100.0 <= told(make(), [100.0]).forecast(10.0, 0.95) <= 120.0


@every
@pytest.mark.parametrize("count", [1, 9, 10, 11, 29, 31, 200])
def test_a_steady_rate_is_forecast_as_it_is(make: Callable[[], Forecaster], count: int) -> None:
    assert 50.0 <= told(make(), [50.0] * count).forecast(10.0, 0.95) <= 65.0


@every
def test_silence_is_forecast_as_silence(make: Callable[[], Forecaster]) -> None:
    assert told(make(), [0.0] * 100).forecast(10.0, 0.95) == pytest.approx(0.0, abs=1e-9)


@every
@pytest.mark.parametrize(
    "rates", [[1e12, 0.0] * 12, [0.0] * 60 + [1e9], [500.0 - 5.0 * second for second in range(100)], [1e-9] * 50, [0.0, 1.0] * 30]
)
def test_a_forecast_is_always_a_rate(make: Callable[[], Forecaster], rates: list[float]) -> None:
    forecaster = make()
    for rate in rates:
        forecaster.observe(rate)
        for quantile in (0.01, 0.99):
            answer = forecaster.forecast(30.0, quantile)
            assert np.isfinite(answer)
            assert answer >= 0.0


@every
def test_what_is_no_rate_changes_nothing(make: Callable[[], Forecaster]) -> None:
    dirty = make()
    for rate in POISSON[:100].tolist():
        for bad in (float("nan"), float("inf"), -1.0):
            dirty.observe(bad)
        dirty.observe(rate)
    assert dirty.forecast(10.0, 0.9) == told(make(), POISSON[:100]).forecast(10.0, 0.9)


@every
def test_asking_changes_nothing_and_the_past_decides(make: Callable[[], Forecaster]) -> None:
    asked, silent = make(), make()
    for rate in POISSON[:150].tolist():
        asked.observe(rate)
        silent.observe(rate)
        asked.forecast(5.0, 0.5)
    assert asked.forecast(10.0, 0.95) == asked.forecast(10.0, 0.95)
    if make is not HoltWinters:  # chooses its smoothing when it is asked
        assert asked.forecast(10.0, 0.95) == silent.forecast(10.0, 0.95)


@every
@pytest.mark.parametrize(("horizon_s", "quantile"), [(0.0, 0.5), (-1.0, 0.5), (float("nan"), 0.5), (10.0, 0.0), (10.0, 1.0), (10.0, float("nan"))])
def test_a_question_without_answer_is_refused(make: Callable[[], Forecaster], horizon_s: float, quantile: float) -> None:
    with pytest.raises(ValueError, match=r"horizon|quantile"):
        told(make(), [1.0]).forecast(horizon_s, quantile)


def test_last_peak_and_ewma_say_what_they_are_named_after() -> None:
    rates = [10.0] * 30 + [80.0] + [20.0] * 59
    assert told(Last(), rates).forecast(10.0, 0.95) == 20.0
    assert told(PeakWindow(), rates).forecast(10.0, 0.95) == 80.0
    assert told(PeakWindow(), [*rates, 20.0]).forecast(10.0, 0.95) == 20.0
    assert told(Ewma(), [40.0] * 100).forecast(10.0, 0.95) == pytest.approx(42.0)


def test_ewma_forgets_like_twenty_windows() -> None:
    before = told(Ewma(), [0.0] * 200)
    assert told(before, [100.0]).forecast(10.0, 0.5) == pytest.approx(1.05 * 100.0 * 2.0 / 21.0)
    assert told(Ewma(), [10.0, 20.0, 30.0]).forecast(10.0, 0.5) == pytest.approx(1.05 * 20.0)


@pytest.mark.parametrize("make", [Calibrated, HoltWinters])
def test_quantiles_are_kept_where_nothing_changes(make: Callable[[], Forecaster]) -> None:
    for quantile, slack in ((0.5, 0.06), (0.9, 0.04), (0.95, 0.03)):
        found = score(make(), POISSON, Question(quantile=quantile))
        assert found.under_part == pytest.approx(1.0 - quantile, abs=slack)


@pytest.mark.parametrize("make", [Calibrated, HoltWinters])
def test_a_higher_quantile_is_never_less(make: Callable[[], Forecaster]) -> None:
    forecaster = told(make(), POISSON[:200])
    answers = [forecaster.forecast(10.0, quantile) for quantile in (0.05, 0.5, 0.9, 0.99)]
    assert answers == sorted(answers)
    assert answers[-1] > answers[0] + 20.0


def test_holt_winters_follows_a_trend() -> None:
    ramp = [100.0 + 2.0 * second for second in range(100)]
    assert told(HoltWinters(), ramp).forecast(10.0, 0.5) > 298.0 + 6.0
    assert told(Last(), ramp).forecast(10.0, 0.5) == 298.0


def test_calibrated_learns_how_far_off_it_is() -> None:
    jumps = np.where(np.arange(600) // 20 % 2 == 0, 50.0, 150.0)
    steady, jumping = told(Calibrated(), [100.0] * 600), told(Calibrated(), jumps)
    assert jumping.forecast(30.0, 0.95) > steady.forecast(30.0, 0.95) + 30.0


def test_calibrated_is_less_sure_of_what_is_further_away() -> None:
    wandering = 1_000.0 + default_rng(5).normal(0.0, 10.0, 600).cumsum()
    forecaster = told(Calibrated(), wandering)
    answers = [forecaster.forecast(horizon_s, 0.95) for horizon_s in (1.0, 10.0, 60.0)]
    assert answers[1] > answers[0] + 5.0
    assert answers[2] > answers[1] + 5.0


def test_the_cold_start_is_poisson() -> None:
    for make in (Calibrated, HoltWinters):
        assert told(make(), [100.0] * 3).forecast(10.0, 0.95) == pytest.approx(poisson_quantile(100.0, 0.95))
    assert poisson_quantile(100.0, 0.95) == pytest.approx(116.4, abs=0.1)
    assert poisson_quantile(1.0, 0.01) == 0.0


def test_forecasts_are_found_by_name() -> None:
    assert isinstance(create_forecaster("holt-winters"), HoltWinters)
    assert create_forecaster("ewma") is not create_forecaster("ewma")
    with pytest.raises(ConfigurationError, match=r"'holtwinters': did you mean 'holt-winters'\?"):
        create_forecaster("holtwinters")
    with pytest.raises(ConfigurationError, match="there is calibrated, ewma"):
        create_forecaster("")


class Fixed:
    """Says the same for ever."""

    def __init__(self, rate_rps: float) -> None:
        self._rate_rps = rate_rps
        self.asked: list[tuple[float, float]] = []

    def observe(self, rate_rps: float) -> None:
        del rate_rps

    def forecast(self, horizon_s: float, quantile: float) -> float:
        self.asked.append((horizon_s, quantile))
        return self._rate_rps


def test_a_score_is_what_its_words_say() -> None:
    fixed = Fixed(10.0)
    found = score(fixed, [99.0] * 4 + [8.0, 8.0, 14.0, 10.0, 12.0], Question(horizon_s=2, quantile=0.9, warm_up_s=4))
    assert fixed.asked == [(2, 0.9)] * 3
    assert (found.seconds, found.under_seconds) == (5, 2)
    assert found.mean_rps == pytest.approx(10.4)
    assert found.pinball_rps == pytest.approx((0.1 * (2.0 + 2.0) + 0.9 * (4.0 + 2.0)) / 5.0)
    assert found.over_part == pytest.approx((2.0 + 2.0) / 5.0 / 10.4)
    assert found.under_part == pytest.approx(0.4)
    assert found.pinball_part == pytest.approx(found.pinball_rps / 10.4)


def test_a_series_that_is_too_short_has_an_empty_score() -> None:
    found = score(Fixed(1.0), [1.0] * 60)
    assert (found.seconds, found.pinball_rps, found.under_part, found.pinball_part) == (0, 0.0, 0.0, 0.0)


def test_all_are_scored_on_all() -> None:
    scores = score_all({"last": Last, "ewma": Ewma}, {"a": POISSON, "b": POISSON * 2.0})
    assert set(scores) == {("a", "last"), ("a", "ewma"), ("b", "last"), ("b", "ewma")}
    assert scores["b", "ewma"].pinball_rps == pytest.approx(2.0 * scores["a", "ewma"].pinball_rps)
    assert scores["a", "ewma"].pinball_rps < scores["a", "last"].pinball_rps


def test_stamps_become_rates() -> None:
    stamps = np.array([0.0, 999.0, 1_000.0, 3_500.0])
    assert rates_by_second(stamps).tolist() == [2.0, 1.0, 0.0]
    assert rates_by_second(stamps, 5).tolist() == [2.0, 1.0, 0.0, 1.0, 0.0]

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (statsmodels is untyped)
"""Holt-Winters with a damped trend (Gardner & McKenzie 1985), by statsmodels."""

from __future__ import annotations

from itertools import product
from math import ceil, isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaler.policy.forecasting.history import History, check_question, poisson_quantile
from schemas.errors import ConfigurationError

SECONDS = 120
"""The fit takes 2 ms for so many."""
COLD = 10
"""Rates before the first fit."""
REFIT = 60
"""Rates between two choices of the smoothing."""
LEVELS, TRENDS, DAMPING = (0.1, 0.3, 0.6), (0.01, 0.1), 0.95
"""Smoothing parameters to choose from, by squared error one second ahead: the library's own search takes 100 ms, and warns where it finds no end."""


class HoltWinters:
    """Level and damped trend of the last 120 s, and the quantile of its own errors one second ahead, widened for the horizon.

    Needs statsmodels (extra `simulate`): ConfigurationError at the first forecast behind the cold start where it is missing. Until COLD rates are
    known: the Poisson quantile of their mean.
    """

    def __init__(self, seconds: int = SECONDS) -> None:
        self._history = History(seconds)
        self._smoothing = (LEVELS[1], TRENDS[0])
        self._chosen = -REFIT

    def observe(self, rate_rps: float) -> None:
        self._history.observe(rate_rps)

    def forecast(self, horizon_s: float, quantile: float) -> float:
        check_question(horizon_s, quantile)
        if self._history.seen < COLD:
            return poisson_quantile(self._history.mean_rps(), quantile)
        rates = np.asarray(self._history.rates_rps)
        if rates.min() == rates.max():
            return float(rates[-1])  # no error at all: the library would divide by it
        if self._history.seen - self._chosen >= REFIT:
            self._smoothing = min(product(LEVELS, TRENDS), key=lambda smoothing: float(_fit(rates, *smoothing).sse))
            self._chosen = self._history.seen
        fitted = _fit(rates, *self._smoothing)
        steps = min(max(ceil(horizon_s), 1), SECONDS)
        ahead = np.asarray(fitted.forecast(steps), np.float64)
        widened = sqrt(1.0 + (steps - 1) / 2.0 * self._smoothing[0] ** 2)
        answer = float(ahead.max() + np.quantile(np.asarray(fitted.resid, np.float64)[COLD // 2 :], quantile) * widened)
        return max(answer, 0.0) if isfinite(answer) else poisson_quantile(self._history.mean_rps(), quantile)


def _fit(rates: NDArray[np.float64], level: float, trend: float) -> Any:
    try:
        from statsmodels.tsa.holtwinters import ExponentialSmoothing  # noqa: PLC0415 - an extra, and 1.5 s to import
    except ImportError:
        raise ConfigurationError("the forecast 'holt-winters' needs statsmodels: pip install 'headrace[simulate]'") from None
    model = ExponentialSmoothing(
        rates, trend="add", damped_trend=True, initialization_method="known", initial_level=float(rates[: COLD // 2].mean()), initial_trend=0.0
    )
    return model.fit(smoothing_level=level, smoothing_trend=trend, damping_trend=DAMPING, optimized=False)

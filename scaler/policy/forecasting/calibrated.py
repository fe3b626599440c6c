"""Ours: a quick mean, and the quantile of how wrong it was at each distance."""

from __future__ import annotations

from collections import deque
from math import sqrt

import numpy as np

from scaler.policy.forecasting.history import History, check_question, poisson_quantile

WEIGHT = 0.2
"""Of the newest second: a mean over about ten."""
DISTANCES_S = (1, 2, 5, 10, 20, 30, 60)
"""How far ahead errors are measured; a forecast takes those of all distances up to its horizon."""
ERRORS = 300
"""Kept for each distance: five minutes."""
COLD = 30
"""Errors before they say more than Poisson does."""


class Calibrated:
    """The mean m of about ten seconds, and m + z sqrt(m + 1), where z is the empirical quantile of (rate - m) / sqrt(m + 1) at the distances that
    the horizon spans: split conformal prediction on a sliding window (Gibbs & Candes 2021 in spirit, without their step size).

    Errors are measured in Poisson deviations, so that what was learned at one rate holds at another. Until COLD errors are known: Poisson's quantile.
    """

    def __init__(self) -> None:
        self._history = History(1)
        self._means: deque[float] = deque(maxlen=max(DISTANCES_S))
        self._errors = {distance: deque[float](maxlen=ERRORS) for distance in DISTANCES_S}

    def observe(self, rate_rps: float) -> None:
        if not self._history.observe(rate_rps):
            return
        for distance, errors in self._errors.items():
            if len(self._means) >= distance:
                mean_rps = self._means[-distance]
                errors.append((rate_rps - mean_rps) / sqrt(mean_rps + 1.0))
        before = self._means[-1] if self._means else rate_rps
        weight = max(1.0 / self._history.seen, WEIGHT)
        self._means.append(before + weight * (rate_rps - before))

    def forecast(self, horizon_s: float, quantile: float) -> float:
        check_question(horizon_s, quantile)
        if not self._means:
            return 0.0
        mean_rps = self._means[-1]
        known = [error for distance, errors in self._errors.items() if distance <= max(horizon_s, 1.0) for error in errors]
        if len(known) < COLD:
            return poisson_quantile(mean_rps, quantile)
        return max(mean_rps + float(np.quantile(np.asarray(known), quantile)) * sqrt(mean_rps + 1.0), 0.0)

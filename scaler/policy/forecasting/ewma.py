"""Proteus's forecast (ASPLOS'24, section 4: demand estimation): a moving average of one-second windows, and a little more."""

from __future__ import annotations

from scaler.policy.forecasting.history import History, check_question

WINDOWS = 20
MARGIN = 1.05


class Ewma:
    """An exponentially weighted mean over 20 one-second windows (weight 2 / 21 for the newest, as is usual for that many), times 1.05.

    Before 20 windows are known, weights are those of the plain mean, so that the first second does not stay for long. As in the paper it knows
    no quantile: the margin is all that it plans for beside the mean.
    """

    def __init__(self, windows: int = WINDOWS, margin: float = MARGIN) -> None:
        self._history = History(1)
        self._least_weight = 2.0 / (windows + 1)
        self._margin = margin
        self._mean_rps = 0.0

    def observe(self, rate_rps: float) -> None:
        if self._history.observe(rate_rps):
            weight = max(1.0 / self._history.seen, self._least_weight)
            self._mean_rps += weight * (rate_rps - self._mean_rps)

    def forecast(self, horizon_s: float, quantile: float) -> float:
        check_question(horizon_s, quantile)
        return self._mean_rps * self._margin

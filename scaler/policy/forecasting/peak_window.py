"""The highest of the last seconds, as autoscalers that look at windows do."""

from __future__ import annotations

from scaler.policy.forecasting.history import History, check_question

SECONDS = 60


class PeakWindow:
    """The peak of the last 60 s: sure to be enough where the past repeats, and late to come down. Knows no quantile."""

    def __init__(self, seconds: int = SECONDS) -> None:
        self._history = History(seconds)

    def observe(self, rate_rps: float) -> None:
        self._history.observe(rate_rps)

    def forecast(self, horizon_s: float, quantile: float) -> float:
        check_question(horizon_s, quantile)
        return max(self._history.rates_rps, default=0.0)

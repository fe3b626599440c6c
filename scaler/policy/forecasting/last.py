"""The naive forecast: as the last second."""

from __future__ import annotations

from scaler.policy.forecasting.history import History, check_question


class Last:
    """The rate of the last second; whoever forecasts worse than this should not. Knows no quantile."""

    def __init__(self) -> None:
        self._history = History(1)

    def observe(self, rate_rps: float) -> None:
        self._history.observe(rate_rps)

    def forecast(self, horizon_s: float, quantile: float) -> float:
        check_question(horizon_s, quantile)
        return self._history.mean_rps()

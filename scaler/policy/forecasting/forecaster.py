"""The interface of forecasters, and those that configuration can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from graphs.names import near
from scaler.policy.forecasting.calibrated import Calibrated
from scaler.policy.forecasting.ewma import Ewma
from scaler.policy.forecasting.holt_winters import HoltWinters
from scaler.policy.forecasting.last import Last
from scaler.policy.forecasting.peak_window import PeakWindow
from schemas.errors import ConfigurationError


class Forecaster(Protocol):
    """Expects the rate of one endpoint from its past. Deterministic: the same rates give the same forecasts."""

    def observe(self, rate_rps: float) -> None:
        """The rate of the second that has just passed. What is no rate (NaN, infinite, negative) is left out."""
        ...

    def forecast(self, horizon_s: float, quantile: float) -> float:
        """Requests/s that a second of the next `horizon_s` does not exceed, with the chance `quantile`; never negative, always a number.

        0 before the first rate is known. Raises ValueError for a horizon that is not above 0 or a quantile that is not inside (0, 1).
        """
        ...


FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    "calibrated": Calibrated,
    "ewma": Ewma,
    "holt-winters": HoltWinters,
    "last": Last,
    "peak-window": PeakWindow,
}


def create_forecaster(name: str) -> Forecaster:
    """A new one, for one endpoint. Raises ConfigurationError, with near misses, for a name that is not among FORECASTERS."""
    make = FORECASTERS.get(name)
    if make is None:
        raise ConfigurationError(f"there is no forecast {name!r}{near(name, FORECASTERS)}")
    return make()

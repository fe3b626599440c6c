"""How good a forecast is on a series of rates, asked as the control loop asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaler.policy.forecasting.forecaster import Forecaster


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and how often: by default what the control policy asks."""

    horizon_s: int = 10
    quantile: float = 0.95
    warm_up_s: int = 60
    """Observed before the first question."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Over all seconds that a forecast was made for; each second is judged on its own."""

    seconds: int
    mean_rps: float
    pinball_rps: float
    """Mean pinball (quantile) loss: what a proper score for a quantile is; lower is better."""
    under_seconds: int
    """Seconds with more than was forecast."""
    over_part: float
    """Mean of what was forecast too much, as a part of the mean rate."""

    @property
    def under_part(self) -> float:
        return self.under_seconds / self.seconds if self.seconds else 0.0

    @property
    def pinball_part(self) -> float:
        return self.pinball_rps / self.mean_rps if self.mean_rps > 0.0 else 0.0


def score(forecaster: Forecaster, rates_rps: Sequence[float] | NDArray[np.float64], question: Question | None = None) -> Score:
    """Feed the series second by second; at the end of every horizon the next one is forecast, and held against what came."""
    asked = question or Question()
    series = np.asarray(rates_rps, np.float64)
    forecasts = np.full(len(series), np.nan)
    for at, rate_rps in enumerate(series.tolist()):
        if at >= asked.warm_up_s and (at - asked.warm_up_s) % asked.horizon_s == 0:
            forecasts[at : at + asked.horizon_s] = forecaster.forecast(asked.horizon_s, asked.quantile)
        forecaster.observe(rate_rps)
    judged = ~np.isnan(forecasts)
    if not judged.any():
        return Score(seconds=0, mean_rps=0.0, pinball_rps=0.0, under_seconds=0, over_part=0.0)
    short = series[judged] - forecasts[judged]
    mean_rps = float(series[judged].mean())
    return Score(
        seconds=int(judged.sum()),
        mean_rps=mean_rps,
        pinball_rps=float(np.maximum(asked.quantile * short, (asked.quantile - 1.0) * short).mean()),
        under_seconds=int((short > 0.0).sum()),
        over_part=float(np.maximum(-short, 0.0).mean()) / mean_rps if mean_rps > 0.0 else 0.0,
    )


def score_all(
    forecasters: Mapping[str, Callable[[], Forecaster]], series: Mapping[str, NDArray[np.float64]], question: Question | None = None
) -> dict[tuple[str, str], Score]:
    """By (name of the series, name of the forecaster)."""
    return {(trace, name): score(make(), rates, question) for trace, rates in series.items() for name, make in forecasters.items()}


def rates_by_second(stamps_ms: NDArray[np.float64], seconds: int | None = None) -> NDArray[np.float64]:
    """Arrivals in each second, from 0 to the last whole one (or `seconds`)."""
    length = int(stamps_ms[-1] // 1000.0) if seconds is None else seconds
    counts = np.bincount((stamps_ms // 1000.0).astype(np.int64), minlength=length)
    return counts[:length].astype(np.float64)

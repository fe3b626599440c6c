"""What every forecaster remembers: the last seconds' rates, those that are rates."""

from __future__ import annotations

from collections import deque
from math import isfinite, sqrt
from statistics import NormalDist

RATE_RPS_MAX = 1e12


class History:
    """The last `seconds` rates, oldest first. What is no rate (NaN, infinite, negative) is left out, as if that second had not been heard of."""

    def __init__(self, seconds: int) -> None:
        self.rates_rps: deque[float] = deque(maxlen=seconds)
        self.seen = 0
        self.left_out = 0

    def observe(self, rate_rps: float) -> bool:
        """False where it was left out."""
        if not (isfinite(rate_rps) and 0.0 <= rate_rps <= RATE_RPS_MAX):
            self.left_out += 1
            return False
        self.rates_rps.append(rate_rps)
        self.seen += 1
        return True

    def mean_rps(self) -> float:
        """0 before the first rate."""
        return sum(self.rates_rps) / len(self.rates_rps) if self.rates_rps else 0.0


def check_question(horizon_s: float, quantile: float) -> None:
    """Raises ValueError for a question that no forecast answers."""
    if not (isfinite(horizon_s) and horizon_s > 0.0):
        raise ValueError(f"horizon of {horizon_s:g} s: it must be a number above zero")
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile {quantile:g}: it must be between 0 and 1")


def poisson_quantile(mean_rps: float, quantile: float) -> float:
    """What one second of Poisson arrivals does not exceed with this chance (normal approximation); at least 0."""
    return max(mean_rps + NormalDist().inv_cdf(quantile) * sqrt(mean_rps), 0.0)

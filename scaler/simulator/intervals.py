"""What several seeds say together: mean, and a confidence interval by Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import msgspec
import numpy as np
from scipy import special  # pyright: ignore[reportMissingTypeStubs]

CONFIDENCE = 0.95


class Interval(msgspec.Struct, frozen=True):
    """A mean with its interval; of one value alone, `low` and `high` are None: one run says nothing about chance."""

    mean: float
    low: float | None = None
    high: float | None = None
    count: int = 1


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent runs with its two-sided interval. Raises ValueError where there are none."""
    if not values:
        raise ValueError("the mean of no run is no number")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean)
    half = _quantile((1.0 + confidence) / 2.0, len(values) - 1) * float(np.std(values, ddof=1)) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def difference(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of `ours - theirs` run by run: the same seed is the same arrivals, so that chance that both share falls out."""
    return interval([a - b for a, b in zip(ours, theirs, strict=True)], confidence)


def _quantile(probability: float, degrees: int) -> float:
    # Not scipy.stats, which takes a second to import.
    return float(special.stdtrit(degrees, probability))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

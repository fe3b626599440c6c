"""Paired comparison of two optimizers: the mean difference with its interval, a sign-flip test, and what both say in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from scaler.simulator.intervals import difference

Word = Literal["better", "worse", "no difference seen", "too little data"]
BETTER: Word = "better"
WORSE: Word = "worse"
NO_DIFFERENCE: Word = "no difference seen"
TOO_LITTLE: Word = "too little data"
CONFIDENCE = 0.95
PAIRS_MIN = 3
"""Fewer pairs say nothing, whatever they say."""
PAIRS_TESTED = 6
"""From so many pairs on, flipped signs can be as rare as one in twenty: below, the interval alone decides."""
EXACT_MAX = 14
"""Up to so many pairs all flips of signs are tried."""
FLIPS = 10_000
MATTERS = 0.001
"""A mean difference below this is none that anybody would switch for."""
ROUNDING = 1e-12


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Of one figure, candidate minus the other, pair by pair."""

    mean: float
    low: float | None = None
    """Of the 95 % interval by Student's t; None with one pair."""
    high: float | None = None
    p_value: float | None = None
    """Two-sided, of the sign-flip test; None with too few pairs for it to say anything."""
    pairs: int


def paired(candidate: Sequence[float], other: Sequence[float], seed: int = 1) -> Difference | None:
    """The figures of the same intervals under both; None where there are none. Raises ValueError for unequal lengths."""
    if not candidate and not other:
        return None
    found = difference(candidate, other, CONFIDENCE)
    differences = np.asarray(candidate, np.float64) - np.asarray(other, np.float64)
    tested = len(differences) >= PAIRS_TESTED
    return Difference(
        mean=found.mean, low=found.low, high=found.high, p_value=flipped(differences.tolist(), seed) if tested else None, pairs=len(differences)
    )


def flipped(differences: Sequence[float], seed: int) -> float:
    """How often differences of chance alone, whose signs are as likely either way, have a mean as far from zero (Fisher's randomization test)."""
    values = np.asarray(differences, np.float64)
    count = len(values)
    if count <= EXACT_MAX:
        signs = 1.0 - 2.0 * ((np.arange(1 << count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, (FLIPS, count), dtype=np.int8)
    means = np.abs(signs @ values)
    as_far = int(np.count_nonzero(means >= abs(float(values.sum())) - ROUNDING))
    # Of drawn flips, the one that was seen counts as one more: a p of zero is never true.
    return as_far / len(signs) if count <= EXACT_MAX else (as_far + 1) / (len(signs) + 1)


def judged(found: Difference | None) -> Word:
    """What a difference says of the candidate: it must be large enough to matter, and both the interval and the test must rule chance out."""
    if found is None or found.low is None or found.high is None or found.pairs < PAIRS_MIN:
        return TOO_LITTLE
    by_chance = found.low <= 0.0 <= found.high or (found.p_value is not None and found.p_value > 1.0 - CONFIDENCE)
    if by_chance or abs(found.mean) < MATTERS:
        return NO_DIFFERENCE
    return BETTER if found.mean > 0.0 else WORSE

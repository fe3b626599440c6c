"""Estimates what a batch will cost: the stored profile, corrected by quantiles of what was measured since."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from itertools import accumulate

from schemas.profile import Latency, latency_of

WINDOW_SAMPLES = 64
"""Measurements kept for each batch size: at the 95th percentile three disturbed ones are tolerated."""
PRIOR_SAMPLES = 16
"""What the profile (and the variant's other batch sizes) weigh against a batch size's own measurements."""
REFRESH_SAMPLES = 8
"""Estimates are made anew after this many measurements, so that a batch costs microseconds here."""
GUESS_SAMPLES = 1
"""What a profile that nobody measured weighs: it is a guess, and may be wrong by orders of magnitude."""
FIRST_SAMPLES = 3
"""Of a guess, the first correction comes after so many: the median of three does not believe a slow first call."""
TAIL_SAMPLES = 20
"""Of a guess, the 95th percentile is the median times the guessed tail before there are so many: it would be the worst call so far."""


class _Window:
    """The last measurements, with exact quantiles."""

    def __init__(self) -> None:
        self._by_age: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, value: float) -> None:
        if len(self._by_age) == WINDOW_SAMPLES:
            oldest = self._by_age.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._by_age.append(value)
        insort(self._sorted, value)

    def quantile(self, part: float) -> float:
        """Nearest rank, so that it is a value that was measured."""
        return self._sorted[min(int(part * len(self._sorted)), len(self._sorted) - 1)]


class LatencyEstimator:
    """One variant's latency by rows.

    A measurement counts as its ratio to the profile's median at those rows, so that batches between the profiled sizes say something too.
    A size's own ratios are shrunk towards those of all sizes together, and these towards the profile (1.0): with few samples the profile
    rules, with many the device. Estimates never fall with growing batches. A profile without samples is a guess, which the first few
    measurements replace.
    """

    def __init__(self, profile: dict[int, Latency]) -> None:
        """Raises ValueError for a profile without any batch size."""
        if not profile:
            raise ValueError("an estimator needs a profile with at least one batch size")
        self._profile = _never_falling(profile)
        self._sizes = list(self._profile)
        self._windows = {size: _Window() for size in self._sizes}
        self._all = _Window()
        self._since_refresh = 0
        self._guessed = not any(latency.samples for latency in profile.values())
        self._prior_samples = GUESS_SAMPLES if self._guessed else PRIOR_SAMPLES
        self._estimates = dict(self._profile)
        self._by_rows: dict[int, Latency] = {}
        self._profiled_ms: dict[int, float] = {}
        """The profile's median by rows, as far as batches of them were measured."""

    @property
    def estimates(self) -> dict[int, Latency]:
        """By profiled batch size, as telemetry publishes it."""
        return self._estimates

    def observe(self, rows: int, measured_ms: float) -> None:
        """Take in one batch of `rows` (as computed, padding included)."""
        expected_ms = self._profiled_ms.get(rows)
        if expected_ms is None:
            expected_ms = self._profiled_ms[rows] = latency_of(self._profile, self._sizes, rows).p50_ms
        ratio = measured_ms / max(expected_ms, 1e-6)
        at = min(bisect_left(self._sizes, rows), len(self._sizes) - 1)
        self._windows[self._sizes[at]].add(ratio)
        self._all.add(ratio)
        self._since_refresh += 1
        if self._since_refresh >= REFRESH_SAMPLES or (self._guessed and FIRST_SAMPLES <= len(self._all) < REFRESH_SAMPLES):
            self._refresh()

    def at(self, rows: int) -> Latency:
        """Latency of a batch of `rows`; beyond the largest size it is computed in chunks of that size."""
        found = self._by_rows.get(rows)
        if found is None:
            found = self._by_rows[rows] = self._chunked(rows)
        return found

    def _chunked(self, rows: int) -> Latency:
        largest = self._sizes[-1]
        whole, rest = divmod(rows, largest)
        if whole == 0 or (whole == 1 and rest == 0):
            return latency_of(self._estimates, self._sizes, rows)
        full = self._estimates[largest]
        last = latency_of(self._estimates, self._sizes, rest) if rest else Latency(0.0, 0.0, full.samples)
        return Latency(whole * full.p50_ms + last.p50_ms, whole * full.p95_ms + last.p95_ms, full.samples)

    def _blend(self, measured: float, samples: int, prior: float) -> float:
        return (measured * samples + prior * self._prior_samples) / (samples + self._prior_samples)

    def _refresh(self) -> None:
        self._since_refresh = 0
        self._by_rows = {}
        total = len(self._all)
        common_50, common_95 = self._all.quantile(0.5), self._all.quantile(0.95)
        p50s: list[float] = []
        p95s: list[float] = []
        for size, prior in self._profile.items():
            window = self._windows[size]
            tail = prior.p95_ms / max(prior.p50_ms, 1e-6)
            ratio_50, ratio_95 = self._blend(common_50, total, 1.0), self._blend(common_95, total, tail)
            if window:
                ratio_50 = self._blend(window.quantile(0.5), len(window), ratio_50)
                ratio_95 = self._blend(window.quantile(0.95), len(window), ratio_95)
            if self._guessed and total < TAIL_SAMPLES:
                ratio_95 = ratio_50 * tail
            p50s.append(prior.p50_ms * ratio_50)
            p95s.append(prior.p50_ms * ratio_95)
        monotone = zip(self._sizes, accumulate(p50s, max), accumulate(p95s, max), strict=True)
        self._estimates = {size: Latency(p50, p95, self._profile[size].samples + len(self._windows[size])) for size, p50, p95 in monotone}


def _never_falling(profile: dict[int, Latency]) -> dict[int, Latency]:
    """A few samples on a busy machine can say that a larger batch is faster: the line through them would come down to nothing further on."""
    sizes = sorted(profile)
    p50s = accumulate((profile[size].p50_ms for size in sizes), max)
    p95s = accumulate((profile[size].p95_ms for size in sizes), max)
    return {size: Latency(p50, max(p95, p50), profile[size].samples) for size, p50, p95 in zip(sizes, p50s, p95s, strict=True)}

"""Counts what becomes of requests: by endpoint and window, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp

import numpy as np
from numpy.typing import NDArray

from scaler.simulator.agenda import START_MS
from scaler.simulator.records import TerminalRecord
from scaler.simulator.result import EndpointResult, Window
from schemas.slo import accuracy_drop_max
from schemas.terminal import COMPLETED, EXPIRED, FAILED, REJECTED

BINS = 2_048
BIN_WIDTH = 0.01
"""Latencies are told to within 1 %: bins grow by this factor, from a hundredth of a millisecond."""
LEAST_MS = 0.01
KEPT = 8_192
FIELDS = (COMPLETED, EXPIRED, REJECTED, FAILED)


class _Counts:
    """One endpoint."""

    def __init__(self, windows: int) -> None:
        self.offered = np.zeros(windows, np.int64)
        self.outcomes = {outcome: [0] * windows for outcome in FIELDS}
        self.accuracy = [0.0] * windows
        self.latencies: list[float] = []
        self.histogram = np.zeros(BINS, np.int64)
        self.latency_sum_ms = 0.0

    def flush(self) -> None:
        if self.latencies:
            latencies_ms = np.asarray(self.latencies)
            self.latency_sum_ms += float(latencies_ms.sum())
            bins = np.log(np.maximum(latencies_ms, LEAST_MS) / LEAST_MS) / BIN_WIDTH
            self.histogram += np.bincount(np.minimum(bins.astype(np.int64), BINS - 1), minlength=BINS)
            self.latencies.clear()


class Tally:
    """The first terminal record of a request decides; later ones are seen by nobody."""

    def __init__(self, endpoints: Sequence[str], *, duration_s: float, warm_up_s: float, window_s: float) -> None:
        self._window_ms = window_s * 1e3
        self._windows = max(int(np.ceil(duration_s / window_s - 1e-9)), 1)
        self._from = int(np.ceil(warm_up_s / window_s - 1e-9))
        self._counts = {endpoint: _Counts(self._windows) for endpoint in sorted(set(endpoints))}
        self._open: dict[bytes, float] = {}
        """When requests came that have no terminal record yet."""
        self._backlogs = [0] * self._windows
        self._workers = [0] * self._windows

    @property
    def unanswered(self) -> int:
        """Requests without a terminal record."""
        return len(self._open)

    def offered(self, endpoint: str, at_ms: NDArray[np.float64]) -> None:
        """Requests that came at these times (of the run)."""
        at = np.minimum((at_ms / self._window_ms).astype(np.int64), self._windows - 1)
        self._counts[endpoint].offered += np.bincount(at, minlength=self._windows)

    def open(self, keys: Sequence[bytes], at_ms: Sequence[float]) -> None:
        """Requests that came at these times (of the run) wait for their terminal records."""
        self._open.update(zip(keys, at_ms, strict=True))

    def ended(self, answers: Iterable[TerminalRecord], now_ms: float) -> None:
        """Terminal records are in the log."""
        opened, counted, window_ms, last, begins = self._open, self._counts, self._window_ms, self._windows - 1, self._from
        since_ms = now_ms - START_MS
        for _, key, outcome, endpoint, accuracy in answers:
            came_ms = opened.pop(key, None)
            if came_ms is None:
                continue
            counts = counted[endpoint]
            at = int(came_ms / window_ms)
            if at > last:
                at = last
            counts.outcomes[outcome][at] += 1
            if outcome == COMPLETED:
                if accuracy:
                    counts.accuracy[at] += accuracy
                if at >= begins:
                    counts.latencies.append(since_ms - came_ms)
        for counts in counted.values():
            if len(counts.latencies) >= KEPT:
                counts.flush()

    def expire_rest(self) -> None:
        """Who has no terminal record and never will (nobody watches deadlines without admission) has expired."""
        self._open.clear()
        for counts in self._counts.values():
            for at in range(self._windows):
                counts.outcomes[EXPIRED][at] += int(counts.offered[at]) - sum(counts.outcomes[outcome][at] for outcome in FIELDS)

    def look(self, window: int, backlog: int, workers: int) -> None:
        """How it stands at the end of a window."""
        if window < self._windows:
            self._backlogs[window], self._workers[window] = backlog, workers

    def results(self, best: dict[str, float]) -> tuple[dict[str, EndpointResult], EndpointResult]:
        """By endpoint, and of all together; `best`: the accuracy of each endpoint's best path."""
        for counts in self._counts.values():
            counts.flush()
        one = len(self._counts) == 1
        found = {name: self._result([counts], best.get(name, 0.0), backlogs=self._backlogs if one else None) for name, counts in self._counts.items()}
        offered = {name: max(result.offered, 0) for name, result in found.items()}
        total = sum(offered.values())
        mean_best = sum(best.get(name, 0.0) * count for name, count in offered.items()) / total if total else max(best.values(), default=0.0)
        return found, self._result(list(self._counts.values()), mean_best, backlogs=self._backlogs)

    def _result(self, parts: list[_Counts], best: float, *, backlogs: list[int] | None) -> EndpointResult:
        windows = [self._window(parts, at, backlogs) for at in range(self._from, self._windows)]
        served = [window.accuracy_served for window in windows if window.accuracy_served is not None]
        completed = sum(window.completed for window in windows)
        histogram = np.sum([part.histogram for part in parts], axis=0) if parts else np.zeros(BINS, np.int64)
        return EndpointResult(
            offered=sum(window.offered for window in windows),
            completed=completed,
            expired=sum(window.expired for window in windows),
            rejected=sum(window.rejected for window in windows),
            failed=sum(window.failed for window in windows),
            accuracy_served=sum(window.accuracy_sum for window in windows) / completed if completed else None,
            accuracy_best=best,
            latency_mean_ms=sum(part.latency_sum_ms for part in parts) / completed if completed else None,
            latency_p50_ms=_quantile(histogram, 0.5),
            latency_p99_ms=_quantile(histogram, 0.99),
            max_accuracy_drop=accuracy_drop_max(served, best),
            windows=tuple(windows),
        )

    def _window(self, parts: list[_Counts], at: int, backlogs: list[int] | None) -> Window:
        counted = {outcome: sum(part.outcomes[outcome][at] for part in parts) for outcome in FIELDS}
        return Window(
            at_s=at * self._window_ms / 1e3,
            offered=int(sum(part.offered[at] for part in parts)),
            accuracy_sum=sum(part.accuracy[at] for part in parts),
            backlog=backlogs[at] if backlogs is not None else 0,
            workers=self._workers[at],
            **counted,
        )


def _quantile(histogram: NDArray[np.int64], part: float) -> float | None:
    """Nearest rank; the middle of its bin."""
    total = int(histogram.sum())
    if not total:
        return None
    at = int(np.searchsorted(np.cumsum(histogram), min(int(part * total), total - 1), side="right"))
    return LEAST_MS * exp((at + 0.5) * BIN_WIDTH)

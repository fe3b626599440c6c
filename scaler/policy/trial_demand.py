"""What was really asked in an interval, second by second: the differences of what dispatchers count."""

from __future__ import annotations

from collections import deque
from math import isfinite

import msgspec

from scaler.policy.trial_load import IntervalDemand
from schemas.telemetry import DispatcherReport

DISPATCHERS_MAX = 64
KEPT_MAX = 200_000
RATE_RPS_MAX = 1e7


class Arrived(msgspec.Struct, frozen=True):
    """So many requests came before this time, and after the report before."""

    at_ms: float
    endpoint: str
    floor: float
    count: int


class TrialDemand:
    """A fold over dispatchers' reports; counts in the second in which they were told."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[DispatcherReport, float]] = {}
        self._arrived: deque[Arrived] = deque(maxlen=KEPT_MAX)

    def observe(self, report: DispatcherReport, now_ms: float) -> None:
        """What is counted more than in the report before came since; the first report of an incarnation tells nothing."""
        known = self._reports.get(report.dispatcher)
        if known is None and len(self._reports) >= DISPATCHERS_MAX:
            return
        if known is not None and report.incarnation < known[0].incarnation:
            return
        self._reports[report.dispatcher] = (report, now_ms)
        if known is None or report.incarnation > known[0].incarnation:
            return
        passed_s = max((now_ms - known[1]) / 1e3, 1e-3)
        for endpoint, counts in report.endpoints.items():
            before = known[0].endpoints.get(endpoint)
            for text, count in counts.arrived.items():
                floor = floor_of(text)
                more = count - (before.arrived.get(text, 0) if before is not None else 0)
                if floor is not None and 0 < more <= RATE_RPS_MAX * passed_s:
                    self._arrived.append(Arrived(now_ms, endpoint, floor, more))

    def take(self, start_ms: float, end_ms: float) -> IntervalDemand:
        """What came in (start, end]; what came earlier is forgotten."""
        duration_s = max((end_ms - start_ms) / 1e3, 0.0)
        seconds = max(round(duration_s), 1)
        width_ms = max(end_ms - start_ms, 1.0) / seconds
        counts: dict[str, dict[float, list[float]]] = {}
        while self._arrived and self._arrived[0].at_ms <= end_ms:
            arrived = self._arrived.popleft()
            if arrived.at_ms > start_ms:
                floors = counts.setdefault(arrived.endpoint, {})
                at = min(int((arrived.at_ms - start_ms) / width_ms), seconds - 1)
                floors.setdefault(arrived.floor, [0.0] * seconds)[at] += arrived.count * 1e3 / width_ms
        rates = {endpoint: {floor: tuple(values) for floor, values in floors.items()} for endpoint, floors in counts.items()}
        return IntervalDemand(duration_s=duration_s, rates=rates)


def floor_of(text: str) -> float | None:
    """The floor that a report writes as text; None for what is none."""
    try:
        floor = float(text)
    except ValueError:
        return None
    return floor if isfinite(floor) and 0.0 <= floor <= 1.0 else None

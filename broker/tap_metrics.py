"""What the taps count."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class TapMetrics:
    """Prometheus metrics of one tap."""

    def __init__(self, registry: CollectorRegistry, unix_ms: Callable[[], float] = lambda: time.time() * 1000) -> None:
        self._unix_ms = unix_ms
        self._events = Counter("headrace_tap_events", "Events (rows, spans) that a sink has stored.", ["kind"], registry=registry)
        self._dropped = Counter(
            "headrace_tap_dropped", "What was not tapped though it was sampled, or could not be joined.", ["reason"], registry=registry
        )
        self.truncated = Counter("headrace_tap_truncated", "Payloads that were cut.", registry=registry)
        self.lag_messages = Gauge("headrace_tap_lag_messages", "Answers in the log that are not tapped yet.", registry=registry)
        self.lag_seconds = Gauge("headrace_tap_lag_seconds", "Age of the last answer when it was stored.", registry=registry)
        self.waiting = Gauge("headrace_tap_waiting", "Requests whose answer has not come yet.", registry=registry)
        self.buffered_bytes = Gauge(
            "headrace_tap_buffered_bytes", "Bytes that wait in the tap: bodies of requests, and events not stored.", registry=registry
        )
        self.reopened = Counter("headrace_tap_reopened", "Shards that were taken up again after a write in doubt.", registry=registry)

    def newest(self, log_ms: int) -> None:
        """An answer of this log time has just been stored."""
        self.lag_seconds.set(max(self._unix_ms() - log_ms, 0.0) / 1000)

    def stored(self, kind: str, count: int) -> None:
        """Events of a kind: request, response, row, span."""
        if count:
            self._events.labels(kind).inc(count)

    def dropped(self, reason: str, count: int) -> None:
        """Reasons: unmatched, not_terminal, shed, forgotten, buffer_full, refused."""
        if count:
            self._dropped.labels(reason).inc(count)

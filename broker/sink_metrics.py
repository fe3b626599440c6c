"""What the sink counts, and what it says when it skips a record."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from schemas.terminal import OUTCOMES


class SinkMetrics:
    """Prometheus metrics of one sink."""

    def __init__(self, registry: CollectorRegistry) -> None:
        responses = Counter("headrace_sink_responses", "Answers that became visible for polling.", ["outcome"], registry=registry)
        self.responses = {outcome: responses.labels(outcome) for outcome in OUTCOMES}
        self.duplicates = Counter("headrace_sink_duplicates", "Terminal records that came after the answer of their id.", registry=registry)
        self.refilled = Counter("headrace_sink_refilled", "Answers read again because the store had lost them.", registry=registry)
        self.pending = Counter("headrace_sink_pending", "Requests that were marked as pending.", registry=registry)
        self.bad_records = Counter(
            "headrace_sink_bad_records", "Records skipped because they are no answer, by reason.", ["reason"], registry=registry
        )
        self.store_errors = Counter("headrace_sink_store_errors", "Attempts that the store did not acknowledge.", registry=registry)
        self.losses = Counter("headrace_sink_store_losses", "Partitions that the store was found to have lost.", registry=registry)
        self.lag_seconds = Gauge("headrace_sink_lag_seconds", "Age of the last answer when it was stored.", registry=registry)
        self.lag_messages = Gauge("headrace_sink_lag_messages", "Records in the log that are not stored yet.", registry=registry)

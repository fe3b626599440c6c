"""What a worker counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class WorkerMetrics:
    """Counters and histograms of one worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        variant = ("variant",)
        self.batches = Counter("headrace_worker_batches", "Batches computed.", variant, registry=registry)
        self.rows = Counter("headrace_worker_rows", "Rows computed, padding included.", variant, registry=registry)
        self.batch_rows = Histogram("headrace_worker_batch_rows", "Rows of a batch, padding included.", variant, buckets=ROWS, registry=registry)
        self.compute_seconds = Histogram(
            "headrace_worker_compute_seconds", "Time of a batch from first decode to last split.", variant, buckets=SECONDS, registry=registry
        )
        self.answers = Counter("headrace_worker_answers", "Answers written, by outcome.", ("outcome",), registry=registry)
        self.ignored = Counter("headrace_worker_orders_ignored", "Orders not taken, by reason.", ("reason",), registry=registry)
        self.fused = Counter("headrace_worker_stages_fused", "Stages of a graph begun where the one before was computed.", registry=registry)
        self.waiting_rows = Gauge("headrace_worker_waiting_rows", "Rows in the queue.", registry=registry)
        self.undelivered = Gauge("headrace_worker_undelivered_answers", "Answers that the log has not acknowledged.", registry=registry)

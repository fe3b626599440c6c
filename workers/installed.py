"""What is known of each variant in the backend: how it was loaded, how it may be batched, what it costs."""

from __future__ import annotations

from schemas.telemetry import HostedVariant
from workers.backend import Loaded
from workers.computation import ComputedBatch, Served
from workers.metrics import WorkerMetrics
from workers.policy.batcher import BatchRules
from workers.policy.credits import credits_of
from workers.policy.estimator import LatencyEstimator
from workers.policy.hosting import READY, Hosted, HostedVariants
from workers.settings import WorkerSettings

RECENT = 0.1
"""Weight of a batch in the moving average of what a row costs."""


class Installed:
    """By handle: one entry for each form of a variant."""

    def __init__(self, settings: WorkerSettings, metrics: WorkerMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._loaded: dict[str, Loaded] = {}
        self._served: dict[str, Served] = {}
        self._estimators: dict[str, LatencyEstimator] = {}
        self._computed_rows: dict[str, int] = {}
        self._row_ms: float | None = None

    def loaded(self, hosted: Hosted) -> Loaded:
        return self._loaded[hosted.handle]

    def served(self, hosted: Hosted) -> Served:
        return self._served[hosted.handle]

    @property
    def serves(self) -> bool:
        """Something can compute here."""
        return bool(self._served)

    def take(self, hosted: Hosted, loaded: Loaded) -> None:
        """It is in memory."""
        self._loaded[hosted.handle] = loaded

    def learn(self, hosted: Hosted, estimator: LatencyEstimator) -> None:
        """It is warm, and this is what it costs."""
        self._estimators[hosted.handle] = estimator

    def tasks(self) -> list[str]:
        """Handles of the Python tasks that are in memory."""
        return [handle for handle, loaded in self._loaded.items() if loaded.call is not None]

    def forget(self, hosted: Hosted) -> None:
        for by_handle in (self._loaded, self._served, self._estimators):
            by_handle.pop(hosted.handle, None)

    def rules(self, hosted: Hosted, batch_size_max: int | None) -> BatchRules:
        """Batches as large as the plan, the variant and its loaded form allow."""
        loaded, estimator = self._loaded[hosted.handle], self._estimators[hosted.handle]
        loaded_for = hosted.wanted.batch_size_max
        rows_max = min(batch_size_max or loaded_for, loaded_for, loaded.spec.batch_size_max, *loaded.batch_sizes[-1:])
        whole = loaded.call is not None
        rules = BatchRules(estimator.at, 1 if whole else max(rows_max, 1), loaded.batch_sizes, whole)
        self._served[hosted.handle] = Served(hosted.variant, hosted.handle, loaded, rules)
        return rules

    def computed(self, served: Served, batch: ComputedBatch) -> None:
        """Correct what is expected of the variant; batches that failed say nothing about it."""
        variant, metrics = served.variant, self._metrics
        metrics.batches.labels(variant).inc()
        metrics.rows.labels(variant).inc(batch.rows)
        metrics.batch_rows.labels(variant).observe(batch.rows)
        metrics.compute_seconds.labels(variant).observe(batch.spent_ms / 1e3)
        if not batch.rows or any(result.error is not None for result in batch.results):
            return
        self._computed_rows[variant] = self._computed_rows.get(variant, 0) + batch.rows
        row_ms = batch.spent_ms / batch.rows
        self._row_ms = row_ms if self._row_ms is None else self._row_ms + RECENT * (row_ms - self._row_ms)
        if batch.rows <= served.rules.size_for(served.rules.rows_max):
            self._estimators[served.handle].observe(batch.rows, batch.spent_ms)

    def credits(self, hosting: HostedVariants) -> int:
        """Rows to hold, waiting and running."""
        ready = [hosted for hosted in hosting.visible().values() if hosted.state == READY]
        rules = [self._served[hosted.handle].rules for hosted in ready]
        return credits_of(rules, row_ms=self._row_ms, hold_ms=self._settings.hold_ms, rows_max=self._settings.hold_rows_max)

    def shown(self, hosting: HostedVariants) -> dict[str, HostedVariant]:
        """As telemetry shows them."""
        shown: dict[str, HostedVariant] = {}
        for variant, hosted in hosting.visible().items():
            estimator = self._estimators.get(hosted.handle)
            shown[variant] = HostedVariant(
                state=hosted.state,
                reason=hosted.reason,
                latency=estimator.estimates if estimator else {},
                load_ms=hosted.load_ms,
                memory_bytes=hosted.memory_bytes,
                computed_rows=self._computed_rows.get(variant, 0),
            )
        return shown

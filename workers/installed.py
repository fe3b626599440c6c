"""What the shell knows of each variant in the backend beside what the policy knows: how it was loaded; and its metrics."""

from __future__ import annotations

from workers.backend import Loaded
from workers.computation import ComputedBatch, Served
from workers.metrics import WorkerMetrics
from workers.policy.batcher import Batch
from workers.policy.device import DevicePolicy
from workers.policy.forms import Shape
from workers.policy.hosting import Hosted


class Installed:
    """By handle: one entry for each form of a variant."""

    def __init__(self, policy: DevicePolicy, metrics: WorkerMetrics) -> None:
        self._policy, self._metrics = policy, metrics
        self._loaded: dict[str, Loaded] = {}

    def loaded(self, hosted: Hosted) -> Loaded:
        return self._loaded[hosted.handle]

    def served(self, hosted: Hosted) -> Served:
        """As it is batched now."""
        return Served(hosted.variant, hosted.handle, self._loaded[hosted.handle], self._policy.forms.rules(hosted))

    def take(self, hosted: Hosted, loaded: Loaded, now_ms: float) -> bool:
        """It is in memory; False where it turned out too large."""
        shape = Shape(rows_max=loaded.spec.batch_size_max, batch_sizes=loaded.batch_sizes, whole=loaded.call is not None)
        fits = self._policy.loaded(hosted, shape, memory_bytes=loaded.memory_bytes, load_ms=loaded.load_ms, now_ms=now_ms)
        if fits:
            self._loaded[hosted.handle] = loaded
        return fits

    def tasks(self) -> list[str]:
        """Handles of the Python tasks that are in memory."""
        return [handle for handle, loaded in self._loaded.items() if loaded.call is not None]

    def forget(self, hosted: Hosted) -> None:
        self._loaded.pop(hosted.handle, None)

    def computed(self, hosted: Hosted, batch: ComputedBatch, order: Batch) -> None:
        """Correct what is expected of the variant; batches that failed say nothing about it."""
        metrics, variant = self._metrics, hosted.variant
        metrics.batches.labels(variant).inc()
        metrics.rows.labels(variant).inc(batch.rows)
        metrics.batch_rows.labels(variant).observe(batch.rows)
        metrics.compute_seconds.labels(variant).observe(batch.spent_ms / 1e3)
        sound = batch.rows > 0 and all(result.error is None for result in batch.results)
        self._policy.computed(hosted if sound else None, batch.rows, batch.spent_ms, order)

"""Adaptive batch sizes by additive increase and multiplicative decrease (Clipper, NSDI'17, section 4.3)."""

from __future__ import annotations

from scaler.simulator.baselines.fifo import FifoQueue, Line
from workers.policy.batcher import Batch, QueuedOrder

STEP_ROWS = 1.0
DECREASE = 0.5


class AimdBatching(FifoQueue):
    """The batch size of a variant grows by one with every batch that met its deadlines, and is halved by one that did not.

    A free device starts what there is, at most that many rows. The paper leaves open what happens to what is late: here an order whose
    deadline is past is dropped, one that will be late is computed.
    """

    def __init__(self, *, hop_ms: float) -> None:
        super().__init__(hop_ms=hop_ms)
        self._sizes: dict[str, float] = {}
        self._running: Batch | None = None

    def drop_late(self, now_ms: float) -> list[QueuedOrder]:
        running = self._running
        if running is not None and not self._computing:
            self._running = None
            self._learn(running, now_ms)
        return super().drop_late(now_ms)

    def _learn(self, batch: Batch, ended_ms: float) -> None:
        size = self._sizes.get(batch.variant, 1.0)
        missed = any(queued.order.deadline_ms < ended_ms for queued in batch.orders)
        self._sizes[batch.variant] = max(size * DECREASE, 1.0) if missed else size + STEP_ROWS

    def _batch(self, variant: str, line: Line, rows_max: int) -> Batch:
        self._running = batch = super()._batch(variant, line, rows_max)
        return batch

    def _cut(self, line: Line, now_ms: float) -> int:
        count = 0
        for queued in line.orders:
            if queued.order.deadline_ms > now_ms:
                break
            count += 1
        return count

    def _due(self, line: Line, now_ms: float) -> tuple[int, float]:
        variant, rows_max = line.orders[0].order.variant, line.rules.rows_max
        size = self._sizes[variant] = min(self._sizes.get(variant, 1.0), float(rows_max))
        return int(size), now_ms

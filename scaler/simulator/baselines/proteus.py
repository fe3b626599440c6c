"""Proactive batching that does not conserve work (Proteus, ASPLOS'24, section 5)."""

from __future__ import annotations

from scaler.simulator.baselines.fifo import FifoQueue, Line


class ProteusBatching(FifoQueue):
    """With q rows queued, the batch waits for one more until the first order would be late with it; a full batch starts at once.

    When the device is free, heads that would expire even if they started now are dropped first.
    """

    def _cut(self, line: Line, now_ms: float) -> int:
        return self._heads(line, now_ms)

    def _due(self, line: Line, now_ms: float) -> tuple[int, float]:
        rules = line.rules
        if line.rows >= rules.rows_max:
            return rules.rows_max, now_ms
        earliest_ms = min(queued.order.deadline_ms for queued in line.orders)
        return line.rows, earliest_ms - self._hop_ms - rules.p95_ms(line.rows + 1)

"""Early drop with a target batch size (Nexus, SOSP'19, section 4.3)."""

from __future__ import annotations

from scaler.simulator.baselines.fifo import FifoQueue, Line

SLO_PART = 0.5
"""A batch may take so much of a request's whole time: one batch runs while the next one gathers."""


class NexusBatching(FifoQueue):
    """The target is the largest batch that takes at most half of the time that requests have. A window of that size slides from the head to the

    first order that still has time for all of the window; those before it are dropped. A free device starts what there is.
    """

    def _target(self, line: Line) -> int:
        order = line.orders[0].order
        time_ms = SLO_PART * (order.deadline_ms - order.received_ms)
        rules, rows = line.rules, 1
        while rows < rules.rows_max and rules.p95_ms(rows + 1) <= time_ms:
            rows += 1
        return rows

    def _cut(self, line: Line, now_ms: float) -> int:
        target = self._target(line)
        left = line.rows
        for count, queued in enumerate(line.orders):
            if not self._late(queued.order, line.rules, min(target, left), now_ms):
                return count
            left -= queued.order.rows
        return len(line.orders)

    def _due(self, line: Line, now_ms: float) -> tuple[int, float]:
        return self._target(line), now_ms

"""What the baselines share: one queue for each variant, first come first served."""

from __future__ import annotations

from collections import deque

import msgspec

from schemas.work import WorkOrder
from workers.policy.batcher import Batch, BatchRules, QueuedOrder, Wait


class Line(msgspec.Struct, eq=False):
    """One variant's queue."""

    rules: BatchRules
    orders: deque[QueuedOrder] = msgspec.field(default_factory=deque[QueuedOrder])
    rows: int = 0


class FifoQueue:
    """An OrderQueue (workers/policy/device.py). What a baseline decides is in `_due` and `_cut`."""

    def __init__(self, *, hop_ms: float) -> None:
        self.waiting_rows = 0
        self._hop_ms = hop_ms
        self._lines: dict[str, Line] = {}
        self._known: set[str] = set()
        self._computing: set[str] = set()
        """Orders on the device."""

    def host(self, variant: str, rules: BatchRules) -> None:
        line = self._lines.get(variant)
        if line is None:
            self._lines[variant] = Line(rules)
        else:
            line.rules = rules

    def hosts(self, variant: str) -> bool:
        return variant in self._lines

    def waiting(self, variant: str) -> int:
        line = self._lines.get(variant)
        return len(line.orders) if line else 0

    def add(self, queued: QueuedOrder) -> bool:
        if queued.id in self._known:
            return False
        self._known.add(queued.id)
        line = self._lines[queued.order.variant]
        line.orders.append(queued)
        line.rows += queued.order.rows
        self.waiting_rows += queued.order.rows
        return True

    def finish(self, queued: QueuedOrder) -> None:
        self._known.discard(queued.id)
        self._computing.discard(queued.id)

    def drop_late(self, now_ms: float) -> list[QueuedOrder]:
        """What the baseline gives up, once the device is free."""
        if self._computing:
            return []
        dropped: list[QueuedOrder] = []
        for line in self._lines.values():
            count = self._cut(line, now_ms) if line.orders else 0
            dropped += [self._pop(line) for _ in range(count)]
        return dropped

    def next_drop_ms(self) -> float | None:
        return None

    def take_all(self) -> list[QueuedOrder]:
        return [self._pop(line) for line in self._lines.values() for _ in range(len(line.orders))]

    def take(self, variant: str) -> list[QueuedOrder]:
        line = self._lines.pop(variant, None)
        return [self._pop(line) for _ in range(len(line.orders))] if line is not None else []

    def next_batch(self, now_ms: float, *, arriving: bool = False) -> Batch | Wait | None:
        """The variant whose first order expires first, among those that are due; `arriving` is not looked at."""
        wait_ms: float | None = None
        lines = [(line.orders[0].order.deadline_ms, variant, line) for variant, line in self._lines.items() if line.orders]
        for _, variant, line in sorted(lines, key=lambda entry: entry[:2]):
            rows, due_ms = self._due(line, now_ms)
            if due_ms <= now_ms:
                return self._batch(variant, line, rows)
            wait_ms = due_ms if wait_ms is None else min(wait_ms, due_ms)
        return None if wait_ms is None else Wait(wait_ms)

    def _batch(self, variant: str, line: Line, rows_max: int) -> Batch:
        orders = [self._pop(line)]
        rows = orders[0].order.rows
        while line.orders and rows + line.orders[0].order.rows <= rows_max:
            orders.append(self._pop(line))
            rows += orders[-1].order.rows
        self._computing.update([queued.id for queued in orders])
        return Batch(variant, tuple(orders), rows, line.rules.p95_ms(rows))

    def _pop(self, line: Line) -> QueuedOrder:
        queued = line.orders.popleft()
        line.rows -= queued.order.rows
        self.waiting_rows -= queued.order.rows
        return queued

    def _late(self, order: WorkOrder, rules: BatchRules, rows: int, now_ms: float) -> bool:
        """It would expire even if a batch of so many rows started now."""
        return now_ms + rules.p95_ms(rows) + self._hop_ms > order.deadline_ms

    def _heads(self, line: Line, now_ms: float) -> int:
        """How many orders at the head would expire even if each started now, alone."""
        count = 0
        for queued in line.orders:
            if not self._late(queued.order, line.rules, queued.order.rows, now_ms):
                break
            count += 1
        return count

    # -- what a baseline decides

    def _cut(self, line: Line, now_ms: float) -> int:
        """How many orders at the head are given up now."""
        raise NotImplementedError

    def _due(self, line: Line, now_ms: float) -> tuple[int, float]:
        """(rows of the next batch at most, when it starts)."""
        raise NotImplementedError

"""Decides how many rows a worker is willing to hold, so that the device never idles and lanes stay nearly empty."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workers.policy.batcher import BATCH_OVERHEAD_MS, BatchRules


def credits_of(
    ready: Iterable[BatchRules],
    *,
    row_ms: float | None,
    hold_ms: float,
    rows_max: int,
    efficient_rows: Callable[[BatchRules], int] = BatchRules.efficient_rows,
) -> int:
    """Rows to hold: what the device computes in `hold_ms`, and at least two efficient batches of the slowest ready variant.

    `row_ms` is what a row cost of late, over the mix of variants that really came (None: nothing ran yet, the slowest variant counts).
    A fast mix needs many rows to bridge the way from the dispatcher; a slow one must not bind them early.
    """
    rules = list(ready)
    if not rules:
        return 0
    efficient = [(rule, efficient_rows(rule)) for rule in rules]
    costs = [(rule.latency_at(rows).p50_ms + BATCH_OVERHEAD_MS) / rows for rule, rows in efficient]
    slowest = max(range(len(rules)), key=costs.__getitem__)
    least = 2 * efficient[slowest][1]
    bridging = int(hold_ms / max(costs[slowest] if row_ms is None else row_ms, 1e-3))
    return max(1, min(max(least, bridging), rows_max))

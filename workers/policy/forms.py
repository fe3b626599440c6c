"""Knows what each variant in memory may be batched with, and what it costs by now."""

from __future__ import annotations

import msgspec

from schemas.profile import Latency
from schemas.telemetry import HostedVariant
from workers.policy.batcher import BatchRules
from workers.policy.credits import credits_of
from workers.policy.estimator import LatencyEstimator
from workers.policy.hosting import READY, Hosted, HostedVariants

RECENT = 0.1
"""Weight of a batch in the moving average of what a row costs."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the batches of a loaded form."""

    rows_max: int
    batch_sizes: tuple[int, ...] = ()
    """The only sizes that the backend takes, smallest first; empty: any."""
    whole: bool = False
    """A Python task: each request is one call."""


class Forms:
    """By handle: one entry for each form of a variant."""

    def __init__(self) -> None:
        self._shapes: dict[str, Shape] = {}
        self._rules: dict[str, BatchRules] = {}
        self._estimators: dict[str, LatencyEstimator] = {}
        self._computed_rows: dict[str, int] = {}
        self._row_ms: float | None = None
        self._efficient: dict[str, tuple[BatchRules, Latency, int]] = {}
        """By handle: rows of an efficient batch, and from what they follow."""

    @property
    def serves(self) -> bool:
        """Something can compute here."""
        return bool(self._rules)

    def take(self, hosted: Hosted, shape: Shape) -> None:
        """It is in memory."""
        self._shapes[hosted.handle] = shape

    def learn(self, hosted: Hosted, batches: dict[int, Latency]) -> None:
        """It is warm, and this is what it costs."""
        self._estimators[hosted.handle] = LatencyEstimator(batches)

    def forget(self, hosted: Hosted) -> None:
        """It is no longer in memory."""
        for by_handle in (self._shapes, self._rules, self._estimators, self._efficient):
            by_handle.pop(hosted.handle, None)

    def rules(self, hosted: Hosted) -> BatchRules:
        """By which its batches are formed now."""
        return self._rules[hosted.handle]

    def bound(self, hosted: Hosted, batch_size_max: int | None) -> BatchRules:
        """Batches as large as the plan (`batch_size_max`), the variant and its loaded form allow, from now on."""
        shape, estimator = self._shapes[hosted.handle], self._estimators[hosted.handle]
        loaded_for = hosted.wanted.batch_size_max
        rows_max = min(batch_size_max or loaded_for, loaded_for, shape.rows_max, *shape.batch_sizes[-1:])
        rules = BatchRules(estimator.at, 1 if shape.whole else max(rows_max, 1), shape.batch_sizes, shape.whole)
        self._rules[hosted.handle] = rules
        return rules

    def computed(self, hosted: Hosted, rows: int, spent_ms: float) -> None:
        """Correct what is expected of the variant by one batch of `rows` (padding included), all of which went well."""
        variant, handle = hosted.variant, hosted.handle
        self._computed_rows[variant] = self._computed_rows.get(variant, 0) + rows
        row_ms = spent_ms / rows
        self._row_ms = row_ms if self._row_ms is None else self._row_ms + RECENT * (row_ms - self._row_ms)
        rules, estimator = self._rules.get(handle), self._estimators.get(handle)
        if rules is not None and estimator is not None and rows <= rules.size_for(rules.rows_max):
            estimator.observe(rows, spent_ms)

    def credits(self, hosting: HostedVariants, *, hold_ms: float, rows_max: int) -> int:
        """Rows to hold, waiting and running."""
        ready = {self._rules[hosted.handle]: hosted.handle for hosted in hosting.visible().values() if hosted.state == READY}
        return credits_of(
            ready, row_ms=self._row_ms, hold_ms=hold_ms, rows_max=rows_max, efficient_rows=lambda rules: self._efficient_rows(ready[rules], rules)
        )

    def _efficient_rows(self, handle: str, rules: BatchRules) -> int:
        """As the rules say, worked out anew where latencies have changed."""
        told = rules.latency_at(rules.rows_max)
        known = self._efficient.get(handle)
        if known is None or known[0] is not rules or known[1] is not told:
            known = self._efficient[handle] = (rules, told, rules.efficient_rows())
        return known[2]

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

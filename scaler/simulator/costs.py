"""What batches cost on a simulated device: log-normal between the profile's quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log

from scaler.optimizers.snapshot import Cost, Variant
from scaler.simulator.chance import Z_95, Drawn
from schemas.profile import Latency, latency_at


def latencies(cost: Cost, threads: int) -> dict[int, Latency]:
    """By batch size, with so many threads: those that were measured, or the next smaller number of them, or the smallest."""
    known = sorted(cost.latency)
    fitting = [number for number in known if number <= threads]
    return cost.latency[fitting[-1] if fitting else known[0]]


class Costs:
    """Of one worker type. Drawn from one stream for all devices."""

    def __init__(self, variants: Sequence[Variant], worker_type: str, normals: Drawn, noise: float) -> None:
        """`noise`: the spread (standard deviation of the logarithm) where the profile has none."""
        self._costs: Mapping[str, Cost] = {variant.key: variant.costs[worker_type] for variant in variants if worker_type in variant.costs}
        self._normals, self._noise = normals, noise
        self._known: dict[tuple[str, int, int], tuple[float, float]] = {}

    def of(self, variant: str) -> Cost | None:
        """None where this type cannot run it."""
        return self._costs.get(variant)

    def computing_ms(self, variant: str, threads: int, rows: int) -> float:
        """One batch of `rows`, as padded."""
        key = (variant, threads, rows)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._quantiles(variant, threads, rows)
        p50_ms, spread = known
        return p50_ms * exp(spread * self._normals.next()) if spread else p50_ms

    def _quantiles(self, variant: str, threads: int, rows: int) -> tuple[float, float]:
        latency = latency_at(latencies(self._costs[variant], threads), rows)
        if latency.p95_ms > latency.p50_ms > 0.0:
            return latency.p50_ms, log(latency.p95_ms / latency.p50_ms) / Z_95
        return latency.p50_ms, self._noise

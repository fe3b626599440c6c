"""The profile: measured latency of one variant on one device, by batch size."""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated

import msgspec

PROFILE_VERSION = 1
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class Latency(msgspec.Struct, frozen=True):
    """Quantiles of one batch size's compute time; `samples` says how much they can be trusted."""

    p50_ms: Milliseconds
    p95_ms: Milliseconds
    samples: int = 0


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant costs on a device; `batches` has one entry per measured batch size (rows), smallest first."""

    variant: str
    """Variant key, `task/variant`."""
    sha256: str
    accelerator: str
    device: str
    """The device that really computed, as its runtime names it."""
    host: str
    threads: int
    batches: dict[int, Latency]
    load_ms: float
    memory_bytes: int
    spread: float = 0.0
    """Largest relative difference between repeated measurements of a p50."""
    measured_ms: int = 0
    """Unix time."""
    version: int = PROFILE_VERSION


def latency_at(batches: dict[int, Latency], rows: int) -> Latency:
    """Latency of a batch of `rows`: interpolated between measured sizes, continued along the last slope, never below the smallest.

    Raises ValueError where nothing was measured.
    """
    if not batches:
        raise ValueError("a profile without a measured batch size says nothing about latency")
    return latency_of(batches, sorted(batches), rows)


def latency_of(batches: dict[int, Latency], sizes: list[int], rows: int) -> Latency:
    """As `latency_at`; `sizes`: the batch sizes, smallest first."""
    at = bisect_left(sizes, rows)
    if at == 0:
        return batches[sizes[0]]
    if at < len(sizes):
        return _between(batches, sizes[at - 1], sizes[at], rows)
    if len(sizes) == 1:
        one = batches[sizes[0]]
        factor = rows / sizes[0]
        return Latency(one.p50_ms * factor, one.p95_ms * factor, one.samples)
    return _between(batches, sizes[-2], sizes[-1], rows)


def _between(batches: dict[int, Latency], small: int, large: int, rows: int) -> Latency:
    a, b = batches[small], batches[large]
    at = (rows - small) / (large - small)
    p50 = max(a.p50_ms + (b.p50_ms - a.p50_ms) * at, 0.0)
    p95 = max(a.p95_ms + (b.p95_ms - a.p95_ms) * at, 0.0)
    return Latency(p50, p95, min(a.samples, b.samples))

"""Batch buckets: the few row counts that are compiled and measured, so that a worker pads up instead of meeting new shapes."""

from __future__ import annotations


def batch_buckets(batch_size_max: int) -> tuple[int, ...]:
    """Powers of two below the limit, and the limit: 6 -> (1, 2, 4, 6). Raises ValueError for a limit below 1."""
    if batch_size_max < 1:
        raise ValueError(f"batch_size_max {batch_size_max}: a batch has at least one row")
    sizes: list[int] = []
    size = 1
    while size < batch_size_max:
        sizes.append(size)
        size *= 2
    return (*sizes, batch_size_max)

"""What a variant costs, as a scenario file states it: latency by batch size (and threads), load time, memory; contradictions are refused."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from deploy.yaml_documents import Fields
from scaler.optimizers.snapshot import Cost
from schemas.profile import Latency

COST_KEYS = ("latency_ms", "threads", "load_ms", "memory_mb")
LATENCY_MS_MAX = 3_600_000.0
MEMORY_MB_MAX = 1e7
BYTES_PER_MB = 1 << 20
BATCH_MAX, THREADS_MAX = 4_096, 1_024
NOISE_OF_MEASURING = 0.02
"""A larger batch that was measured this much (relatively) faster is chance, not a contradiction."""


def read_cost(fields: Fields) -> Cost | None:
    """`latency_ms` of one thread, or `threads`: the same by number of threads. None where something is wrong, which is reported."""
    by_threads: dict[int, dict[int, Latency]] = {}
    if "latency_ms" in fields:
        one = _read_latencies(fields, "latency_ms")
        if one:
            by_threads[1] = one
    threads = fields.mapping("threads", f"`threads` of {fields.what}", None)
    for key in [] if threads is None else threads.keys():
        assert threads is not None
        number, latencies = _whole(threads, key, THREADS_MAX, "threads"), _read_latencies(threads, key)
        if number is not None and latencies:
            by_threads[number] = latencies
    if "latency_ms" not in fields and threads is None:
        fields.missing("latency_ms")
    load_ms = fields.number("load_ms", 0.0, LATENCY_MS_MAX)
    memory_mb = fields.number("memory_mb", 0.0, MEMORY_MB_MAX)
    if not by_threads:
        return None
    return Cost(latency=by_threads, load_ms=load_ms or 0.0, memory_bytes=round((memory_mb or 0.0) * BYTES_PER_MB))


def contradiction(latency: Mapping[int, Mapping[int, Latency]]) -> str | None:
    """What these latencies (by threads, by batch size) say against each other, or None."""
    for threads, batches in latency.items():
        of = f" with {threads} threads" if len(latency) > 1 else ""
        for size, one in batches.items():
            if one.p50_ms <= 0.0:
                return f"a batch of {size} takes {one.p50_ms:g} ms{of}: computing takes time"
            if one.p95_ms < one.p50_ms:
                return f"a batch of {size} has a p95 of {one.p95_ms:g} ms below its p50 of {one.p50_ms:g} ms{of}"
        for small, large in pairwise(sorted(batches)):
            if batches[large].p50_ms < batches[small].p50_ms * (1.0 - NOISE_OF_MEASURING):
                return (
                    f"the profile contradicts itself: a batch of {large} takes {batches[large].p50_ms:g} ms, "
                    f"the smaller one of {small} takes {batches[small].p50_ms:g} ms{of}"
                )
    return None


def _read_latencies(fields: Fields, key: str) -> dict[int, Latency]:
    inner = fields.mapping(key, f"`{key}` of {fields.what}", None)
    found: dict[int, Latency] = {}
    for size_text in [] if inner is None else inner.keys():
        assert inner is not None
        size, latency = _whole(inner, size_text, BATCH_MAX, "batch size"), _read_latency(inner, size_text)
        if size is not None and latency is not None:
            found[size] = latency
    if inner is not None and not inner.keys():
        fields.problem(key, f"`{key}` of {fields.what} names no batch size: {{1: 2.5, 8: [9, 11]}} is ms, or p50 and p95 in ms, by batch size")
    told = contradiction({1: found})
    if told is not None:
        fields.problem(key, told)
    return found


def _read_latency(fields: Fields, key: str) -> Latency | None:
    value = fields.value(key)
    if not isinstance(value, list):
        one = fields.number(key, 0.0, LATENCY_MS_MAX)
        return None if one is None else Latency(one, one)
    both = fields.numbers(key)
    if both is None:
        return None
    if len(both) != 2 or not all(0.0 <= number <= LATENCY_MS_MAX for number in both):
        fields.problem(key, f"the latency of batch size {key} is one number, or [p50, p95], in ms up to {LATENCY_MS_MAX:g}")
        return None
    return Latency(both[0], both[1])


def _whole(fields: Fields, key: str, high: int, what: str) -> int | None:
    if key.isdecimal() and 1 <= int(key) <= high:
        return int(key)
    fields.problem(key, f"{key!r} in {fields.what} is no {what}: a whole number from 1 to {high}")
    return None

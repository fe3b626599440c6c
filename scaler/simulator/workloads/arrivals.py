"""When the requests of one load arrive, in whole or piece by piece; the same times either way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator

from scaler.simulator.scenario import Arrivals
from scaler.simulator.workloads.checks import check_arrivals, expected_rps
from scaler.simulator.workloads.errors import InvalidArrivals
from scaler.simulator.workloads.modulated import Source, diurnal, flash, mmpp, modulated, steps
from scaler.simulator.workloads.renewal import Stamps, constant, gamma, poisson
from scaler.simulator.workloads.replay import replay

CHUNK = 1 << 16
"""Arrivals drawn at once: half a megabyte."""
CHUNK_LEAST = 64
ARRIVALS_MAX = 100_000_000
"""What `arrivals` returns at most: 800 MB. `arrival_chunks` has no such limit."""

Generate = Callable[[Arrivals, float, Generator, int], Iterator[Stamps]]


def _modulated(source: Source) -> Generate:
    def generate(spec: Arrivals, duration_ms: float, rng: Generator, chunk: int) -> Iterator[Stamps]:
        return modulated(source(spec, duration_ms, rng), rng, chunk)

    return generate


GENERATORS: dict[str, Generate] = {
    "constant": constant,
    "poisson": poisson,
    "gamma": gamma,
    "mmpp": _modulated(mmpp),
    "diurnal": _modulated(diurnal),
    "flash": _modulated(flash),
    "steps": _modulated(steps),
}
TRACE = "trace"
KINDS = (*GENERATORS, TRACE)


def arrival_chunks(spec: Arrivals, duration_s: float, rng: Generator, stamps_ms: Stamps | None = None, *, chunk: int = CHUNK) -> Iterator[Stamps]:
    """Arrival times in [0, duration) in ms, sorted, in non-empty pieces; memory holds a few pieces of `chunk`, however long the run.

    `stamps_ms`: of a trace, as read. A rate of zero is a load that never comes. The size of the pieces changes nothing about the times.
    Raises InvalidArrivals or InvalidTrace at once, before the first piece.
    """
    check_arrivals(spec, duration_s, KINDS)
    if chunk < 1:
        raise InvalidArrivals(f"chunk: {chunk} arrivals at once; 1 or more are needed")
    duration_ms = duration_s * 1000.0
    if spec.kind == TRACE:
        return _until(replay(spec, stamps_ms, rng, chunk), duration_ms)
    chunk = min(chunk, max(int(expected_rps(spec) * duration_s * 1.1), CHUNK_LEAST))  # a short run draws little
    return _until(GENERATORS[spec.kind](spec, duration_ms, rng, chunk), duration_ms)


def arrivals(spec: Arrivals, duration_s: float, rng: Generator, stamps_ms: Stamps | None = None) -> Stamps:
    """All arrival times in [0, duration) in ms, sorted float64. Raises InvalidArrivals or InvalidTrace."""
    pieces = arrival_chunks(spec, duration_s, rng, stamps_ms)
    if spec.kind != TRACE and expected_rps(spec) * duration_s > ARRIVALS_MAX:
        raise InvalidArrivals(
            f"{expected_rps(spec):g} requests/s for {duration_s:g} s are more than {ARRIVALS_MAX} arrivals: take them piece by piece"
        )
    return np.concatenate([np.empty(0), *pieces])


def _until(pieces: Iterator[Stamps], end_ms: float) -> Iterator[Stamps]:
    for piece in pieces:
        kept = piece if piece[-1] < end_ms else piece[: int(np.searchsorted(piece, end_ms, side="left"))]
        if len(kept):
            yield kept
        if len(kept) < len(piece):
            return

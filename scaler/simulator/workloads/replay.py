"""Replay of recorded arrivals, scaled in time by `speed` and in rate by thinning or superposition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from scaler.simulator.scenario import Arrivals
from scaler.simulator.workloads.checks import RATE_RPS_MAX
from scaler.simulator.workloads.errors import InvalidTrace
from scaler.simulator.workloads.renewal import Stamps


def replay(spec: Arrivals, stamps_ms: Stamps | None, rng: Generator, chunk: int) -> Iterator[Stamps]:
    """The trace from its first stamp on, which becomes 0; after its last one nobody comes.

    `rate_rps` is the mean over the whole trace as it is replayed, 0 leaves the rate as recorded. A lower rate keeps each arrival with the
    same chance. A higher one adds copies, each somewhere between its original and the next recorded arrival: bursts stay bursts and quiet
    times quiet, at every scale, which stretching the time would not do. Arrivals with one stamp (duplicates) stay several.

    Raises InvalidTrace for no stamps, unsorted ones, or what is no number.
    """
    stamps = checked_stamps(stamps_ms)
    factor = _factor(spec, stamps)
    return _scaled(stamps, spec.speed, factor, rng, chunk)


def checked_stamps(stamps_ms: Stamps | None) -> Stamps:
    """The stamps as they are. Raises InvalidTrace."""
    if stamps_ms is None:
        raise InvalidTrace("a trace without stamps: its file was not read")
    if not len(stamps_ms):
        raise InvalidTrace("the trace is empty")
    if not np.isfinite(stamps_ms).all():
        raise InvalidTrace(f"stamp {int(np.argmin(np.isfinite(stamps_ms)))} of the trace is no number")
    backwards = np.flatnonzero(np.diff(stamps_ms) < 0.0)
    if len(backwards):
        raise InvalidTrace(f"the trace goes back in time at stamp {int(backwards[0]) + 1}: sort it first")
    return stamps_ms


def rate_of(stamps_ms: Stamps) -> float:
    """Mean rate in requests/s from the first to the last stamp; 0 where they do not span any time."""
    span_ms = float(stamps_ms[-1] - stamps_ms[0])
    return (len(stamps_ms) - 1) / span_ms * 1000.0 if span_ms > 0.0 else 0.0


def _factor(spec: Arrivals, stamps: Stamps) -> float:
    if spec.rate_rps <= 0.0:
        return 1.0
    recorded_rps = rate_of(stamps) * spec.speed
    if recorded_rps <= 0.0:
        raise InvalidTrace("all stamps of the trace are the same moment: it has no rate that could be scaled; ask for rate_rps 0, as recorded")
    if recorded_rps > RATE_RPS_MAX:
        raise InvalidTrace(f"at speed {spec.speed:g} the trace has {recorded_rps:g} requests/s; at most {RATE_RPS_MAX:g} can be replayed")
    return spec.rate_rps / recorded_rps


def _scaled(stamps: Stamps, speed: float, factor: float, rng: Generator, chunk: int) -> Iterator[Stamps]:
    whole = int(factor)
    counting, placing = (default_rng(int(seed)) for seed in rng.integers(1 << 62, size=2))
    step = max(int(chunk / max(factor, 1.0)), 1)
    for begin in range(0, len(stamps), step):
        known = (stamps[begin : begin + step + 1] - stamps[0]) / speed
        originals = known[:step]
        if factor == 1.0:
            yield originals
            continue
        times = whole + (counting.random(len(originals)) < factor - whole)
        if times.any():
            yield _superposed(known, times, placing)


def _superposed(known: Stamps, times: NDArray[np.int_], rng: Generator) -> Stamps:
    """Each of the first `len(times)` stamps so many times: itself, and copies before the stamp that follows."""
    originals = known[: len(times)]
    gaps = np.diff(known, append=known[-1])[: len(times)]
    first = (np.cumsum(times) - times)[times > 0]
    shift = rng.random(int(times.sum())) * np.repeat(gaps, times)
    shift[first] = 0.0
    placed = np.repeat(originals, times) + shift
    placed.sort()
    return placed

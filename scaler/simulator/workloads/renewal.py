"""Arrivals with independent gaps of one distribution: constant, Poisson, Gamma."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scaler.simulator.scenario import Arrivals

Stamps = NDArray[np.float64]
"""Sorted times in ms."""


def constant(spec: Arrivals, duration_ms: float, rng: Generator, chunk: int) -> Iterator[Stamps]:
    """Equal gaps, the first arrival after half of one: exactly rate times duration come."""
    del duration_ms, rng
    if spec.rate_rps <= 0.0:
        return
    gap_ms = 1000.0 / spec.rate_rps
    begin = 0
    while True:
        yield (np.arange(begin, begin + chunk, dtype=np.float64) + 0.5) * gap_ms
        begin += chunk


def poisson(spec: Arrivals, duration_ms: float, rng: Generator, chunk: int) -> Iterator[Stamps]:
    """Exponential gaps."""
    del duration_ms
    if spec.rate_rps <= 0.0:
        return
    gap_ms = 1000.0 / spec.rate_rps
    at_ms = 0.0
    while True:
        stamps = np.cumsum(np.concatenate(([at_ms], rng.standard_exponential(chunk) * gap_ms)))[1:]
        at_ms = float(stamps[-1])
        yield stamps


def gamma(spec: Arrivals, duration_ms: float, rng: Generator, chunk: int) -> Iterator[Stamps]:
    """Gamma gaps with the mean 1 / rate and the coefficient of variation `cv`; 0 is constant, 1 is Poisson, above 1 comes in bursts.

    The process has run for ever when time begins: the first gap is the rest of a gap in which a random moment falls (length-biased, so its
    shape is one higher), and as many arrive in the first second as in any other.
    """
    if spec.rate_rps <= 0.0:
        return
    if spec.cv <= 0.0:
        yield from constant(spec, duration_ms, rng, chunk)
        return
    shape = 1.0 / spec.cv**2
    scale_ms = 1000.0 / spec.rate_rps / shape
    at_ms = float(rng.standard_gamma(shape + 1.0) * scale_ms * rng.random())
    yield np.array([at_ms])
    while True:
        stamps = np.cumsum(np.concatenate(([at_ms], rng.standard_gamma(shape, chunk) * scale_ms)))[1:]
        at_ms = float(stamps[-1])
        yield stamps

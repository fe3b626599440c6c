"""Poisson arrivals whose rate changes over time: Markov-modulated, diurnal, flash crowd, steps.

A unit Poisson process is bent by the inverse of the cumulated rate (time rescaling; Daley & Vere-Jones, An Introduction to the Theory of
Point Processes, 7.4): exact for rates that are constant between edges, and no arrival is drawn only to be thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, pi

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scaler.simulator.scenario import Arrivals
from scaler.simulator.workloads.errors import InvalidArrivals
from scaler.simulator.workloads.renewal import Stamps

EDGES_MAX = 5_000_000
"""Changes of rate in one run: 80 MB."""
EDGES_PER_PERIOD = 1_440
"""Of a diurnal curve, as if each minute of the day had one rate."""


class Curve:
    """How many arrivals are expected until each edge; between edges the rate is constant."""

    def __init__(self, edges_ms: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
        self.edges_ms = edges_ms
        self.expected = expected


Source = Callable[[Arrivals, float, Generator], Curve]


def modulated(curve: Curve, rng: Generator, chunk: int) -> Iterator[Stamps]:
    """Arrivals along a curve, to its end. The pieces' size changes nothing."""
    total = float(curve.expected[-1])
    reached = 0.0
    while reached < total:
        unit = np.cumsum(np.concatenate(([reached], rng.standard_exponential(chunk))))[1:]
        reached = float(unit[-1])
        unit = unit[unit < total]
        if len(unit):
            yield np.interp(unit, curve.expected, curve.edges_ms)


def mmpp(spec: Arrivals, duration_ms: float, rng: Generator) -> Curve:
    """States of `rates_rps`, each held for an exponential time of the mean `hold_s`.

    The first one is drawn from all, the next ones from the others, with equal chances: each state has the same part of the time.
    """
    count = len(spec.rates_rps)
    edges, rates = [0.0], list[float]()
    state = int(rng.integers(count))
    _check_edges(duration_ms / 1000.0 / spec.hold_s)
    while edges[-1] < duration_ms:
        edges.append(edges[-1] + max(float(rng.standard_exponential()) * spec.hold_s * 1000.0, 1e-6))
        rates.append(spec.rates_rps[state])
        if count > 1:
            state = (state + 1 + int(rng.integers(count - 1))) % count
    return _constant_between(edges, rates)


def steps(spec: Arrivals, duration_ms: float, rng: Generator) -> Curve:
    """Each of `rates_rps` for exactly `hold_s`; the last one stays until the end."""
    del rng
    edges = [hold * spec.hold_s * 1000.0 for hold in range(len(spec.rates_rps))]
    return _constant_between([*edges, max(duration_ms, edges[-1]) + 1.0], list(spec.rates_rps))


def flash(spec: Arrivals, duration_ms: float, rng: Generator) -> Curve:
    """`rate_rps`, but `peak` times as much from `at_s` on, for `lasts_s`: up and down at once, the worst for a planner."""
    del rng
    begin_ms = spec.at_s * 1000.0
    end_ms = begin_ms + spec.lasts_s * 1000.0
    rates = [spec.rate_rps, spec.rate_rps * spec.peak, spec.rate_rps]
    return _constant_between([0.0, begin_ms, end_ms, max(duration_ms, end_ms) + 1.0], rates)


def diurnal(spec: Arrivals, duration_ms: float, rng: Generator) -> Curve:
    """rate (1 - amplitude cos(2 pi t / period)): begins at its lowest, and has the mean `rate_rps` over whole periods."""
    del rng
    period_ms = spec.period_s * 1000.0
    count = duration_ms / period_ms * EDGES_PER_PERIOD
    _check_edges(count)
    turns = np.arange(ceil(count) + 2, dtype=np.float64) / EDGES_PER_PERIOD
    swing = spec.amplitude * np.sin(2.0 * pi * turns) / (2.0 * pi)
    return Curve(turns * period_ms, np.maximum.accumulate(spec.rate_rps * spec.period_s * (turns - swing)))


def _constant_between(edges_ms: list[float], rates_rps: list[float]) -> Curve:
    edges = np.asarray(edges_ms)
    expected = np.concatenate(([0.0], np.cumsum(np.diff(edges) * np.asarray(rates_rps) / 1000.0)))
    return Curve(edges, expected)


def _check_edges(count: float) -> None:
    if count > EDGES_MAX:
        raise InvalidArrivals(f"the rate would change {count:.3g} times in this run; at most {EDGES_MAX} are kept: hold it longer, or run shorter")

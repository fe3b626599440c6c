"""Arrivals of recorded clients of which only rates and shapes are known, window by window, as ServeGen publishes them (arXiv 2505.09999)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import msgspec
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from scaler.simulator.workloads.errors import InvalidTrace
from scaler.simulator.workloads.renewal import Stamps

ARRIVALS_MAX = 100_000_000
"""Over all clients: 800 MB."""


class ClientWindow(msgspec.Struct, frozen=True, kw_only=True):
    """What one client did in one window."""

    begin_s: float
    lasts_s: float
    rate_rps: float
    pattern: str = ""
    """Distribution of its gaps: Gamma, Weibull, or Exponential; empty with a rate of zero."""
    shape: float = 1.0


def _exponential(rng: Generator, shape: float, count: int) -> NDArray[np.float64]:
    del shape
    return rng.standard_exponential(count)


GAPS: dict[str, Callable[[Generator, float, int], NDArray[np.float64]]] = {
    "gamma": Generator.standard_gamma,
    "weibull": Generator.weibull,
    "exponential": _exponential,
    "": _exponential,
}


def client_arrivals(clients: Sequence[Sequence[ClientWindow]], span_s: float, seed: int) -> Stamps:
    """The arrivals of all clients in the first `span_s`, in ms, sorted.

    Each window has exactly as many arrivals as were recorded (rate times length), with gaps of the recorded shape, stretched to fill the
    window: the published scale does not fit the rate where a client was quiet for a part of it. A longer span begins like a shorter one.
    Raises InvalidTrace for windows that mean nothing.
    """
    expected = sum(window.rate_rps * window.lasts_s for windows in clients for window in windows if window.begin_s < span_s and window.rate_rps > 0.0)
    if expected > ARRIVALS_MAX:
        raise InvalidTrace(f"{span_s:g} s of these clients have {expected:.3g} arrivals; at most {ARRIVALS_MAX} are generated: ask for less time")
    parts = [
        _window(window, default_rng((seed, client, number)))
        for client, windows in enumerate(clients)
        for number, window in enumerate(windows)
        if window.begin_s < span_s
    ]
    stamps = np.concatenate([np.empty(0), *parts])
    stamps = stamps[stamps < span_s * 1000.0]
    stamps.sort()
    return stamps


def _window(window: ClientWindow, rng: Generator) -> Stamps:
    where = f"window of a client at {window.begin_s:g} s"
    if not (isfinite(window.rate_rps) and window.rate_rps >= 0.0 and window.lasts_s > 0.0):
        raise InvalidTrace(f"{where}: {window.rate_rps:g} requests/s for {window.lasts_s:g} s")
    gaps_of = GAPS.get(window.pattern.lower())
    if gaps_of is None:
        raise InvalidTrace(f"{where}: no pattern {window.pattern!r}; known: Gamma, Weibull, Exponential")
    count = round(window.rate_rps * window.lasts_s)
    if not count:
        return np.empty(0)
    if not (isfinite(window.shape) and window.shape > 0.0):
        raise InvalidTrace(f"{where}: shape {window.shape:g}; it must be above zero")
    until = np.cumsum(gaps_of(rng, window.shape, count + 1))
    return (window.begin_s + until[:-1] / until[-1] * window.lasts_s) * 1000.0

"""What arrivals must be before anything is drawn: every number finite, every rate at least zero, and said by the name of its field."""

from __future__ import annotations

from collections.abc import Collection
from math import isfinite

from graphs.names import near
from scaler.simulator.scenario import Arrivals
from scaler.simulator.workloads.errors import InvalidArrivals

RATE_RPS_MAX = 1e8
"""Above this a millisecond has so many arrivals that their times cannot be told apart for long."""
STATES = ("mmpp", "steps")
"""Kinds that take their rates from `rates_rps`."""
ABOVE_ZERO = {"mmpp": ("hold_s",), "steps": ("hold_s",), "diurnal": ("period_s",), "trace": ("speed",)}
ZERO_OR_MORE = {"gamma": ("cv",), "flash": ("peak", "at_s", "lasts_s")}


def check_arrivals(spec: Arrivals, duration_s: float, kinds: Collection[str]) -> None:
    """Raises InvalidArrivals, naming the field, its value and what it must be."""
    if spec.kind not in kinds:
        raise InvalidArrivals(f"arrivals: no kind {spec.kind!r}{near(spec.kind, kinds)}")
    _positive("duration_s", duration_s)
    _rate("rate_rps", spec.rate_rps)
    for rate in spec.rates_rps:
        _rate("rates_rps", rate)
    for name in ABOVE_ZERO.get(spec.kind, ()):
        _positive(name, getattr(spec, name))
    for name in ZERO_OR_MORE.get(spec.kind, ()):
        _at_least_zero(name, getattr(spec, name))
    if spec.kind in STATES and not spec.rates_rps:
        raise InvalidArrivals(f"rates_rps: empty; {spec.kind} needs the rate of each state")
    if spec.kind == "diurnal" and not 0.0 <= spec.amplitude <= 1.0:
        raise InvalidArrivals(f"amplitude: {spec.amplitude:g}; it must be in [0, 1], a rate cannot swing below zero")


def expected_rps(spec: Arrivals) -> float:
    """The highest mean rate that these arrivals can have for long."""
    if spec.kind in STATES:
        return max(spec.rates_rps)
    return spec.rate_rps * max(spec.peak, 1.0) if spec.kind == "flash" else spec.rate_rps


def _rate(name: str, value: float) -> None:
    _at_least_zero(name, value)
    if value > RATE_RPS_MAX:
        raise InvalidArrivals(f"{name}: {value:g} requests/s; at most {RATE_RPS_MAX:g} can be generated")


def _at_least_zero(name: str, value: float) -> None:
    if not (isfinite(value) and value >= 0.0):
        raise InvalidArrivals(f"{name}: {value:g}; it must be a number, zero or more")


def _positive(name: str, value: float) -> None:
    if not (isfinite(value) and value > 0.0):
        raise InvalidArrivals(f"{name}: {value:g}; it must be a number above zero")

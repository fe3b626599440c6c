"""What the requests of one load ask for: floors, time-outs and tenants, drawn by weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scaler.simulator.scenario import Load
from scaler.simulator.workloads.errors import InvalidMix

NO_TENANTS = ("",)


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """One entry for each request, in the order of arrival."""

    floors: NDArray[np.float64]
    timeouts_ms: NDArray[np.float64]
    floor_at: NDArray[np.intp]
    """Index into the load's floors."""
    timeout_at: NDArray[np.intp]
    """Index into the load's time-outs."""
    tenants: NDArray[np.intp]
    """Index into `names`."""
    names: tuple[str, ...]
    """Of the tenants; one empty name where the load has none."""


def mix(load: Load, count: int, rng: Generator) -> Mix:
    """Draw for `count` requests; piece by piece gives the same as all at once. Raises InvalidMix."""
    _check(load)
    names = tuple(load.tenants) or NO_TENANTS
    drawn = rng.random((max(count, 0), 3))
    floors = _picked(drawn[:, 0], [choice.weight for choice in load.floors])
    timeouts = _picked(drawn[:, 1], [choice.weight for choice in load.timeouts_ms])
    return Mix(
        floors=np.asarray([choice.value for choice in load.floors], np.float64)[floors],
        timeouts_ms=np.asarray([choice.value for choice in load.timeouts_ms], np.float64)[timeouts],
        floor_at=floors,
        timeout_at=timeouts,
        tenants=_picked(drawn[:, 2], list(load.tenants.values()) or [1.0]),
        names=names,
    )


def _picked(drawn: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.intp]:
    """Index by weight; one of weight 0 is never picked."""
    upper = np.cumsum(np.asarray(weights, np.float64))
    return np.searchsorted(upper / upper[-1], drawn, side="right")


def _check(load: Load) -> None:
    where = f"load of {load.endpoint!r}"
    for floor in load.floors:
        if not 0.0 <= floor.value <= 1.0:
            raise InvalidMix(f"{where}: floor {floor.value:g}; an accuracy is in [0, 1]")
    for timeout in load.timeouts_ms:
        if not (isfinite(timeout.value) and timeout.value > 0.0):
            raise InvalidMix(f"{where}: time-out of {timeout.value:g} ms; it must be a number above zero")
    _check_weights(f"{where}: floors", [choice.weight for choice in load.floors])
    _check_weights(f"{where}: timeouts_ms", [choice.weight for choice in load.timeouts_ms])
    if load.tenants:
        _check_weights(f"{where}: tenants", list(load.tenants.values()))


def _check_weights(where: str, weights: Sequence[float]) -> None:
    if not all(isfinite(weight) and weight >= 0.0 for weight in weights):
        raise InvalidMix(f"{where}: a weight is negative or no number: {', '.join(f'{weight:g}' for weight in weights)}")
    if not sum(weights) > 0.0:
        raise InvalidMix(f"{where}: {'no weight is above zero' if weights else 'empty'}")

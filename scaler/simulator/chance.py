"""Chance, drawn in blocks from seeded generators: one for each purpose, so that one part's draws do not move another's."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import numpy as np

from scaler.simulator.scenario import Hop

BLOCK = 4_096
Z_95, Z_99 = 1.6448536269514722, 2.3263478740408408
ARRIVALS, HOPS, COMPUTING, FAULTS, GRAPHS = range(5)
"""What the streams of one seed are for."""


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The generator of one stream of a seed."""
    return np.random.default_rng([seed, *stream])


class Drawn:
    """Numbers of one distribution, drawn in blocks."""

    __slots__ = ("_block", "_draw")

    def __init__(self, draw: Callable[[int], np.ndarray[tuple[int], np.dtype[np.float64]]]) -> None:
        """`draw`: so many numbers."""
        self._draw = draw
        self._block: list[float] = []

    def next(self) -> float:
        """One of them."""
        if not self._block:
            self._block = self._draw(BLOCK).tolist()
        return self._block.pop()


def normals(source: np.random.Generator) -> Drawn:
    """Standard normal numbers."""
    return Drawn(source.standard_normal)


def uniforms(source: np.random.Generator) -> Drawn:
    """Numbers in [0, 1)."""
    return Drawn(source.random)


class Hops:
    """How long records take through the log: log-normal, `slower` times longer for a `slow_part` of them while a fault lasts."""

    __slots__ = ("_generator", "_median_ms", "_normals", "_spread", "_uniforms", "slow_part", "slower")

    def __init__(self, hop: Hop, seed: int) -> None:
        self._generator = generator(seed, HOPS, 0)
        self._normals = normals(generator(seed, HOPS, 1))
        self._uniforms = uniforms(generator(seed, HOPS, 2))
        self._median_ms = max(hop.p50_ms, 0.0)
        self._spread = log(hop.p99_ms / hop.p50_ms) / Z_99 if hop.p99_ms > hop.p50_ms > 0.0 else 0.0
        self.slow_part = 0.0
        self.slower = 1.0

    def next_ms(self) -> float:
        """Of the records that are written together."""
        delay_ms = self._median_ms * exp(self._spread * self._normals.next()) if self._spread else self._median_ms
        if self.slow_part and self._uniforms.next() < self.slow_part:
            return delay_ms * self.slower
        return delay_ms

    def many_ms(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Of so many records that are written one by one."""
        delays_ms = self._median_ms * np.exp(self._spread * self._generator.standard_normal(count))
        if self.slow_part:
            delays_ms = np.where(self._generator.random(count) < self.slow_part, delays_ms * self.slower, delays_ms)
        return delays_ms

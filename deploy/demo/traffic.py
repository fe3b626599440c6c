"""What the demo asks: a seeded schedule of requests with mixed floors, deadlines and images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SEED = 20
FLOORS = ((0.80, 0.35), (0.90, 0.30), (0.93, 0.25), (0.9335, 0.10))
"""(accuracy floor, part of the requests); the last one is met by the slowest variant alone."""
TIMEOUTS_MS = ((150, 0.2), (300, 0.5), (600, 0.3))
ROWS = 4
BURST_FACTOR = 8.0
PHASES = (("steady", 0.3, 1.0), ("burst", 0.5, BURST_FACTOR), ("steady again", 0.2, 1.0))
"""(name, part of the requests, multiple of the steady rate)"""


class Ask:
    """One request of the schedule: when to publish it, and what it asks for."""

    __slots__ = ("at_s", "floor", "images", "phase", "timeout_ms")

    def __init__(self, phase: str, at_s: float, floor: float, timeout_ms: int, images: list[int]) -> None:
        self.phase = phase
        self.at_s = at_s
        self.floor = floor
        self.timeout_ms = timeout_ms
        self.images = images
        """Indices of the labelled images that it carries, one per row."""


def schedule(requests: int, rate_rps: float, image_count: int, seed: int = SEED, *, floors: Sequence[tuple[float, float]] = FLOORS) -> list[Ask]:
    """Poisson arrivals: a steady rate, a burst of BURST_FACTOR times that rate, and the steady rate again."""
    random = np.random.default_rng(seed)
    asks: list[Ask] = []
    at_s = 0.0
    for at, (phase, part, factor) in enumerate(PHASES):
        count = round(requests * part) if at < len(PHASES) - 1 else requests - len(asks)
        gaps = random.exponential(1.0 / (rate_rps * factor), count)
        asked = random.choice([floor for floor, _ in floors], count, p=[weight for _, weight in floors])
        timeouts = random.choice([timeout for timeout, _ in TIMEOUTS_MS], count, p=[weight for _, weight in TIMEOUTS_MS])
        images = random.integers(0, image_count, (count, ROWS))
        for gap, floor, timeout_ms, chosen in zip(gaps, asked, timeouts, images, strict=True):
            at_s += float(gap)
            asks.append(Ask(phase, at_s, float(floor), int(timeout_ms), chosen.tolist()))
    return asks

"""What a row of the benchmark is: the figures that it gives, what each must reach, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from deploy.bench.harness import Harness

Say = Callable[[str], None]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number of a row, and its must: at least or at most `limit`, for the ratio to the baseline or for the number itself."""

    key: str
    what: str
    unit: str
    limit: float | None = None
    """None: shown, not judged."""
    at_least: bool = False
    of_ratio: bool = True
    baseline: str = ""
    """What the baseline is; empty where there is none."""


class Sample(msgspec.Struct, frozen=True):
    """One run's measurement of a figure."""

    ours: float
    baseline: float | None = None
    simulated: float | None = None
    """The simulator's prediction of what is judged: of the ratio, or of the number itself."""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.baseline if self.baseline else None


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure."""

    quick: bool = False
    soak_s: float = 30.0

    def seconds(self, full_s: float) -> float:
        """Of one offer."""
        return full_s * 0.6 if self.quick else full_s

    def count(self, full: int) -> int:
        """Of requests."""
        return full * 2 // 5 if self.quick else full


class Measured(msgspec.Struct, frozen=True):
    """One run of a row: a sample for each of its figures, and what else is worth keeping."""

    samples: dict[str, Sample]
    details: dict[str, object] = {}


class Row(Protocol):
    """A module of the benchmark, as its registry sees it."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def figures(self) -> tuple[Figure, ...]: ...

    @property
    def once(self) -> bool:
        """One run says all: memory does not fluctuate."""
        ...

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        """One run. Raises BenchmarkFailed."""
        ...

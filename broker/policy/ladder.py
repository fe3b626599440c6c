"""A task's variants in order of accuracy, and which of them a floor allows."""

from __future__ import annotations

from bisect import bisect_left

from schemas.catalog import TaskSpec, variant_key

ROUNDING = 1e-9


class Ladder:
    """Variants by growing accuracy; a floor's *rung* is the index of the least accurate variant that meets it."""

    def __init__(self, task: TaskSpec, *, name: str | None = None) -> None:
        """`name`: what classes of requests call it, where it holds only some of the task's variants."""
        ordered = sorted(task.variants, key=lambda variant: (variant.accuracy, variant.name))
        self.task = name or task.name
        self.keys = tuple(variant_key(task.name, variant.name) for variant in ordered)
        self.accuracies = tuple(variant.accuracy for variant in ordered)
        self.index = {key: at for at, key in enumerate(self.keys)}
        self._rungs: dict[float, int] = {}

    def rung(self, floor: float) -> int:
        """Index of the least accurate variant that meets the floor; len(keys) where none does."""
        rung = self._rungs.get(floor)
        if rung is None:
            rung = bisect_left(self.accuracies, floor - ROUNDING)
            if len(self._rungs) < 1024:
                self._rungs[floor] = rung
        return rung

    def least(self, accuracy: float) -> int:
        """As `rung`, but the most accurate variant where none is as accurate as that; not of a ladder without variants."""
        return min(self.rung(accuracy), len(self.keys) - 1)

    @property
    def best(self) -> float:
        """The highest accuracy; 0 where the task has no variant."""
        return self.accuracies[-1] if self.accuracies else 0.0

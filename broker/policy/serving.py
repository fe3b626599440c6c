"""Which lanes of a pool answer which class, and how much of one class's work meets another's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.policy.lanes import Lane
from broker.policy.tuning import Group

_Division = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64] | None]
"""`hosting`, `lanes` and `of_lane` of kinds."""


class Kinds(msgspec.Struct):
    """Lanes that answer the same classes are of one kind."""

    sets: list[list[Group]]
    """Classes that the same lanes answer are together."""
    hosting: NDArray[np.float64]
    """By set and kind: 1 where the one is answered by the other."""
    lanes: NDArray[np.float64]
    """How many there are of each kind."""
    of_lane: NDArray[np.int64] | None
    """Of each lane, its kind; None: all are alike."""

    def sum(self, of_lanes: list[float]) -> NDArray[np.float64]:
        """By kind."""
        if self.of_lane is None:
            return np.array([sum(of_lanes)])
        return np.bincount(self.of_lane, weights=of_lanes, minlength=len(self.lanes)).astype(np.float64)


class Serving:
    """Kept until `forget`: what lanes host changes rarely."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._places: dict[Group, list[int]] = {}
        self._sets: dict[Group, int] = {}
        self._kinds: dict[tuple[int, ...], _Division] = {}

    def forget(self) -> None:
        """Lanes host something else."""
        self._places.clear()
        self._sets.clear()
        self._kinds.clear()

    def places(self, group: Group) -> list[int]:
        """Of the lanes that host what answers a class."""
        found = self._places.get(group)
        if found is None:
            found = self._places[group] = [at for at, lane in enumerate(self._lanes) if hosts(lane, *group)]
        return found

    def lanes_of(self, group: Group) -> int:
        """The same as a set: equal for classes that share all of their lanes."""
        found = self._sets.get(group)
        if found is None:
            members = bytearray(len(self._lanes))
            for at in self.places(group):
                members[at] = 1
            found = self._sets[group] = int.from_bytes(members)
        return found

    def part(self, group: Group, lanes: int) -> float:
        """Of a class's work, what is expected on these lanes: as much as they are of all that answer it."""
        mine = self.lanes_of(group)
        return (mine & lanes).bit_count() / mine.bit_count() if mine else 0.0

    def kinds(self, groups: Iterable[Group]) -> Kinds:
        """The lanes by which of these classes they answer, and the classes by their lanes."""
        together: dict[int, list[Group]] = {}
        for group in groups:
            together.setdefault(self.lanes_of(group), []).append(group)
        sets = tuple(together)
        found = self._kinds.get(sets)
        if found is None:
            found = self._kinds[sets] = self._kinds_of([same[0] for same in together.values()])
        hosting, counts, of_lane = found
        return Kinds(list(together.values()), hosting, counts, of_lane)

    def _kinds_of(self, first: list[Group]) -> _Division:
        if len(first) <= 1 and all(len(self.places(group)) == len(self._lanes) for group in first):
            return np.ones((len(first), 1)), np.array([float(len(self._lanes))]), None
        hosting = np.zeros((len(first), len(self._lanes)))
        for row, group in zip(hosting, first, strict=True):
            row[self.places(group)] = 1.0
        kinds, of_lane, counts = np.unique(hosting, axis=1, return_inverse=True, return_counts=True)
        return kinds, counts.astype(np.float64), of_lane.reshape(-1)


def hosts(lane: Lane, task: str, rung: int) -> bool:
    """Whether it hosts what answers a class."""
    rungs = lane.options.get(task)
    return rungs is not None and rung < len(rungs) and bool(rungs[rung])

"""Which lanes of a pool answer which class, and how much of one class's work meets another's."""

from __future__ import annotations

from collections.abc import Sequence

from broker.policy.lanes import Lane
from broker.policy.tuning import Group


class Serving:
    """Kept until `forget`: what lanes host changes rarely."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._places: dict[Group, list[int]] = {}
        self._sets: dict[Group, int] = {}

    def forget(self) -> None:
        """Lanes host something else."""
        self._places.clear()
        self._sets.clear()

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


def hosts(lane: Lane, task: str, rung: int) -> bool:
    """Whether it hosts what answers a class."""
    rungs = lane.options.get(task)
    return rungs is not None and rung < len(rungs) and bool(rungs[rung])

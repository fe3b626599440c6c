"""Which lanes of a pool answer which class, and how much of one class's work meets another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from broker.policy.lanes import Lane
from broker.policy.tuning import Group

NEEDED_MS_MIN = 1e-6
"""Whoever asks for nothing has what nobody else wants."""
ROUNDING = 1e-12


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

    def divided(
        self, least_ms: Mapping[Group, float], most_ms: Mapping[Group, float], room_ms: Callable[[], NDArray[np.float64]]
    ) -> list[tuple[list[Group], NDArray[np.float64] | None]]:
        """Classes that the same lanes answer, with their part of each lane; None: all of every lane.

        `least_ms`, `most_ms`: what a class needs with its cheapest and its most accurate answers; `room_ms`: what each lane has. A lane that
        several sets of classes share is theirs in proportion to what they need of a lane at least; what some cannot use even for their
        most accurate answers is left to the others (progressive filling).
        """
        together: dict[int, list[Group]] = {}
        for group in least_ms:
            together.setdefault(self.lanes_of(group), []).append(group)
        if len(together) <= 1 and all(len(self.places(group)) == len(self._lanes) for group in least_ms):
            return [(groups, None) for groups in together.values()]
        room = np.maximum(room_ms(), 0.0)
        hosting = np.zeros((len(together), len(self._lanes)))
        for row, groups in zip(hosting, together.values(), strict=True):
            row[self.places(groups[0])] = 1.0
        least = np.array([max(sum([least_ms[group] for group in groups]), NEEDED_MS_MIN) for groups in together.values()])
        most = np.array([max(sum([most_ms[group] for group in groups]), NEEDED_MS_MIN) for groups in together.values()])
        wanted = hosting * (least / np.maximum(hosting.sum(axis=1), 1.0))[:, None]
        parts, free, open_ = np.zeros_like(hosting), np.ones(len(self._lanes)), np.ones(len(together), np.bool_)
        while open_.any():
            asked = wanted * open_[:, None]
            found = asked * (free / np.maximum(asked.sum(axis=0), ROUNDING))
            has = found @ room
            full = open_ & (most <= has)
            if not full.any():
                parts += found
                break
            parts[full] = found[full] * (most[full] / np.maximum(has[full], ROUNDING))[:, None]
            free = np.maximum(free - parts[full].sum(axis=0), 0.0)
            open_ &= ~full
        # Where nobody needs what is left, it is theirs whose lane it is: a burst may.
        parts /= np.maximum(parts.sum(axis=0), ROUNDING)
        return list(zip(together.values(), parts, strict=True))


def hosts(lane: Lane, task: str, rung: int) -> bool:
    """Whether it hosts what answers a class."""
    rungs = lane.options.get(task)
    return rungs is not None and rung < len(rungs) and bool(rungs[rung])

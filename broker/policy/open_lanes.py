"""The lanes of one pool that can be sent to, the least loaded first; kept up from step to step, lane by lane as they change."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence

from broker.policy.lanes import Lane
from broker.policy.waiting import Class

Place = tuple[float, int, int]
"""(outstanding_ms, place in the pool, stamp): one with an old stamp says nothing."""
STALE_MAX = 64


class Alike:
    """Lanes that serve the same classes."""

    __slots__ = ("kinds", "places", "sample")

    def __init__(self, sample: Lane) -> None:
        self.sample = sample
        self.places: list[Place] = []
        self.kinds: list[Class] = []
        """Classes of what waits now that these lanes serve; true for one filling."""


class OpenLanes:
    """What a step costs follows from the lanes that have changed since the last one, and not from how many there are.

    Filling works on the lanes in order: `begin`, then `first` again and again, saying each time what became of that lane, then `end`.
    """

    def __init__(self, lanes: list[Lane]) -> None:
        self._lanes = lanes
        self._stamps = [0] * len(lanes)
        self._alike: dict[Hashable, Alike] = {}
        self._aside: list[tuple[Alike, Place]] = []
        """Open lanes that this filling has nothing for."""
        self._tops: list[tuple[float, int, Alike]] = []

    def forget(self) -> None:
        """What lanes host has changed: tell all of them again."""
        self._alike.clear()

    def look(self, lanes: Iterable[Lane]) -> None:
        """These have changed."""
        for lane in lanes:
            at = lane.at
            self._stamps[at] += 1
            if lane.ready and not lane.stalled and lane.room():
                # A lane that gave a variant back is like no other until its next report.
                kind = lane.hosted if lane.hosted is not None else at
                alike = self._alike.get(kind)
                if alike is None:
                    alike = self._alike[kind] = Alike(lane)
                heapq.heappush(alike.places, (lane.outstanding_ms, at, self._stamps[at]))
                if len(alike.places) > 2 * len(self._lanes) + STALE_MAX:
                    alike.places = [place for place in alike.places if place[2] == self._stamps[place[1]]]
                    heapq.heapify(alike.places)

    def begin(self, kinds: Sequence[Class]) -> None:
        """Fill lanes with what waits of these classes."""
        self._tops.clear()
        for alike in self._alike.values():
            alike.kinds = [kind for kind in kinds if _can_serve(alike.sample, kind)]
            if alike.kinds and (place := self._top(alike)) is not None:
                self._tops.append((place[0], place[1], alike))
        heapq.heapify(self._tops)

    def first(self) -> tuple[Lane, Alike] | None:
        """The open lane with the least outstanding work among those that serve some of it."""
        if not self._tops:
            return None
        _, at, alike = self._tops[0]
        return self._lanes[at], alike

    def drop_alike(self) -> None:
        """Nothing is left for the first lane, nor for any like it."""
        heapq.heappop(self._tops)

    def set_aside(self) -> None:
        """There is nothing for the first lane in this filling."""
        alike = self._tops[0][2]
        self._aside.append((alike, heapq.heappop(alike.places)))
        self._next(alike)

    def sent(self, lane: Lane) -> None:
        """The first lane has got an order."""
        tops = self._tops
        alike, at = tops[0][2], lane.at
        places = alike.places
        if lane.room():
            heapq.heapreplace(places, (lane.outstanding_ms, at, self._stamps[at]))
        else:
            heapq.heappop(places)
        if len(tops) == 1 and places and (place := places[0])[2] == self._stamps[place[1]]:
            tops[0] = (place[0], place[1], alike)
        else:
            self._next(alike)

    def end(self) -> None:
        """The filling is over."""
        for alike, place in self._aside:
            heapq.heappush(alike.places, place)
        self._aside.clear()

    def _next(self, alike: Alike) -> None:
        place = self._top(alike)
        if place is not None:
            heapq.heapreplace(self._tops, (place[0], place[1], alike))
        else:
            heapq.heappop(self._tops)

    def _top(self, alike: Alike) -> Place | None:
        places, stamps = alike.places, self._stamps
        while places:
            place = places[0]
            if place[2] == stamps[place[1]]:
                return place
            heapq.heappop(places)
        return None


def _can_serve(lane: Lane, kind: Class) -> bool:
    _, task, rung = kind
    rungs = lane.options.get(task)
    return rungs is not None and rung < len(rungs) and bool(rungs[rung])

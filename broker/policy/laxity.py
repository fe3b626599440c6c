"""How much more work fits before which deadline: the EDF feasibility test, over deadline buckets instead of single requests.

A set of requests is feasible under earliest deadline first exactly when, for every deadline, the work due by then fits into the capacity
until then (Liu and Layland, JACM 1973). The room at a deadline is the least that is left there or at any later one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from broker.policy.tuning import Group
from broker.policy.waiting import BUCKET_MS, Waiting


class Laxity:
    """Room by deadline for one priority and the lanes that answer some class, at one moment; `take` keeps it true while requests are admitted."""

    def __init__(
        self,
        waiting: Waiting,
        priority: int,
        *,
        capacity: float,
        busy_ms: float,
        now_ms: float,
        slack: float,
        hop_ms: float,
        part: Callable[[Group], float] = lambda _group: 1.0,
    ) -> None:
        """`capacity`: milliseconds of work done per millisecond; `slack`: the part of the time until a deadline that may be planned with.

        `part`: of a class's work, what is expected on these lanes.
        """
        self._now_ms, self._slack, self._hop_ms, self._capacity, self._ahead_ms = now_ms, slack, hop_ms, capacity, busy_ms
        buckets: list[NDArray[np.int64]] = []
        works_ms: list[NDArray[np.float64]] = []
        for (level, task, rung), due in waiting.due.items():
            if level > priority or not due or not (met := part((task, rung))):
                continue
            work_ms = met * np.fromiter(due.values(), np.float64, len(due))
            if level < priority:
                self._ahead_ms += float(work_ms.sum())
            else:
                buckets.append(np.fromiter(due, np.int64, len(due)))
                works_ms.append(work_ms)
        found = np.concatenate([np.zeros(0, np.int64), *buckets])
        order = np.argsort(found)
        self._buckets = found[order]
        self._work_ms = np.cumsum(np.concatenate([np.zeros(0), *works_ms])[order])
        self._left_ms = capacity * self._usable_ms((self._buckets + 1) * BUCKET_MS) - self._ahead_ms - self._work_ms

    @property
    def in_the_way_ms(self) -> float:
        """Work that is done before, or as soon as, what would be added at the last deadline."""
        return self._ahead_ms + (float(self._work_ms[-1]) if len(self._work_ms) else 0.0)

    def _usable_ms(self, deadline_ms: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.maximum((deadline_ms - self._now_ms) * self._slack - self._hop_ms, 0.0)

    def room_ms(self, deadline_ms: int) -> float:
        """Work that may be added with this deadline while everything stays feasible; negative where it is not feasible already."""
        at = int(np.searchsorted(self._buckets, deadline_ms // BUCKET_MS))
        before_ms = float(self._work_ms[at - 1]) if at else 0.0
        usable_ms = max((deadline_ms - self._now_ms) * self._slack - self._hop_ms, 0.0)
        room = self._capacity * usable_ms - self._ahead_ms - before_ms
        return min(room, float(self._left_ms[at:].min())) if at < len(self._left_ms) else room

    def take(self, deadline_ms: int, work_ms: float) -> None:
        """Count work that was admitted. A deadline between known buckets is counted at the next later one, and by `waiting` exactly."""
        at = int(np.searchsorted(self._buckets, deadline_ms // BUCKET_MS))
        self._work_ms[at:] += work_ms
        self._left_ms[at:] -= work_ms
        if at == len(self._buckets):
            bucket = deadline_ms // BUCKET_MS
            total = (float(self._work_ms[-1]) if at else 0.0) + work_ms
            usable_ms = max(((bucket + 1) * BUCKET_MS - self._now_ms) * self._slack - self._hop_ms, 0.0)
            self._buckets = np.append(self._buckets, bucket)
            self._work_ms = np.append(self._work_ms, total)
            self._left_ms = np.append(self._left_ms, self._capacity * usable_ms - self._ahead_ms - total)

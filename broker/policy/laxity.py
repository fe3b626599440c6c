"""How much more work fits before which deadline: the EDF feasibility test, over deadline buckets instead of single requests.

A set of requests is feasible under earliest deadline first exactly when, for every deadline, the work due by then fits into the capacity
until then (Liu and Layland, JACM 1973). The room at a deadline is the least that is left there or at any later one.
"""

from __future__ import annotations

import numpy as np

from broker.policy.waiting import BUCKET_MS, Waiting


class Laxity:
    """Room by deadline for one priority, at one moment; `take` keeps it true while requests are admitted."""

    def __init__(self, waiting: Waiting, priority: int, *, capacity: float, busy_ms: float, now_ms: float, slack: float, hop_ms: float) -> None:
        """`capacity`: milliseconds of work done per millisecond; `slack`: the part of the time until a deadline that may be planned with."""
        ahead_ms = busy_ms + sum(sum(due.values()) for level, due in waiting.due.items() if level < priority)
        due = waiting.due.get(priority, {})
        self._now_ms, self._slack, self._hop_ms, self._capacity, self._ahead_ms = now_ms, slack, hop_ms, capacity, ahead_ms
        self._buckets = np.fromiter(due, np.int64, len(due))
        order = np.argsort(self._buckets)
        self._buckets = self._buckets[order]
        self._work_ms = np.cumsum(np.fromiter(due.values(), np.float64, len(due))[order])
        self._left_ms = capacity * self._usable_ms((self._buckets + 1) * BUCKET_MS) - ahead_ms - self._work_ms

    def _usable_ms(self, deadline_ms: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
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

"""What waits in a pool: earliest deadline first inside a priority, in one heap per class, with the work due by each deadline.

A class is what lanes can tell apart: task, rung and priority. Heaps hold dead entries until they surface; they are counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from broker.policy.entry import Entry, State

BUCKET_MS = 16
ROUNDING_MS = 1e-6
Class = tuple[int, str, int]
"""(priority, task, rung)"""


class Waiting:
    """The waiting requests of one pool."""

    def __init__(self) -> None:
        self.heaps: dict[Class, list[tuple[int, int, Entry]]] = {}
        self.rows: dict[tuple[str, int], int] = {}
        """Waiting rows by (task, rung)."""
        self.work_ms = 0.0
        self.count = 0
        self.deadline_sum_ms = 0.0
        self.due: dict[int, dict[int, float]] = {}
        """By priority: milliseconds of work by deadline bucket."""
        self._sequence = 0

    def push(self, entry: Entry) -> None:
        """Add a request whose task, rung, deadline and work are known."""
        entry.state = State.WAITING
        entry.bucket = entry.deadline_ms // BUCKET_MS
        group = (entry.task, entry.rung)
        kind = (entry.priority, entry.task, entry.rung)
        heap = self.heaps.get(kind)
        if heap is None:
            heap = self.heaps[kind] = []
        self._sequence += 1
        heapq.heappush(heap, (entry.deadline_ms, self._sequence, entry))
        self.count += 1
        self.deadline_sum_ms += entry.deadline_ms
        self.work_ms += entry.work_ms
        due = self.due.get(entry.priority)
        if due is None:
            due = self.due[entry.priority] = {}
        due[entry.bucket] = due.get(entry.bucket, 0.0) + entry.work_ms
        self.rows[group] = self.rows.get(group, 0) + entry.rows

    def forget(self, entry: Entry, state: State) -> None:
        """The entry no longer waits (sent, expired, answered elsewhere); its place in the heap is dead from now on."""
        entry.state = state
        self.count -= 1
        self.deadline_sum_ms -= entry.deadline_ms
        self.rows[(entry.task, entry.rung)] -= entry.rows
        if self.count == 0:
            # Empty: nothing of what sums of floats have drifted by stays.
            self.work_ms, self.deadline_sum_ms = 0.0, 0.0
            self.due.clear()
            self.rows.clear()
            return
        self.work_ms -= entry.work_ms
        due = self.due[entry.priority]
        left = due.get(entry.bucket, 0.0) - entry.work_ms
        if left > ROUNDING_MS:
            due[entry.bucket] = left
        else:
            due.pop(entry.bucket, None)

    def head(self, kind: Class) -> Entry | None:
        """The earliest waiting request of a class; dead ones on top of it are dropped."""
        heap = self.heaps.get(kind)
        while heap:
            entry = heap[0][2]
            if entry.state == State.WAITING:
                return entry
            heapq.heappop(heap)
        if heap is not None:
            del self.heaps[kind]
        return None

    def pop(self, kind: Class) -> None:
        """Take the head of a class off its heap (after `head` returned it)."""
        heapq.heappop(self.heaps[kind])

    def entries(self) -> Iterator[Entry]:
        """Everything that waits, in no order."""
        for heap in self.heaps.values():
            for _, _, entry in heap:
                if entry.state == State.WAITING:
                    yield entry

    def compact(self) -> None:
        """Drop dead entries where they are the larger part: requests that were answered while they waited far from the top."""
        if sum(map(len, self.heaps.values())) > 2 * self.count + 1024:
            for kind, heap in list(self.heaps.items()):
                alive = [item for item in heap if item[2].state == State.WAITING]
                heapq.heapify(alive)
                self.heaps[kind] = alive

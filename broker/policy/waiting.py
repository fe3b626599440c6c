"""What waits in a pool: earliest deadline first inside a priority, in one queue per class, with the work due by each deadline.

A class is what lanes can tell apart: task, rung and priority. Queues hold dead entries until they surface; they are counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

from broker.policy.entry import SHADOW_PRIORITY, WAITING, Entry, State

BUCKET_MS = 16
ROUNDING_MS = 1e-6
Class = tuple[int, str, int]
"""(priority, task, rung)"""


class _Equals:
    """Entries with one deadline, in the order of their arrival; those before `at` have left."""

    __slots__ = ("at", "entries")

    def __init__(self, entry: Entry) -> None:
        self.entries = [entry]
        self.at = 0


class DeadlineQueue:
    """Entries of one class by deadline, first come first served among equal ones.

    A heap of the distinct deadlines, and a list for each: under load many requests share a millisecond, and lists cost no comparison.
    """

    __slots__ = ("_by_deadline", "_deadlines", "_first", "_first_ms", "size")

    def __init__(self) -> None:
        self._deadlines: list[int] = []
        self._by_deadline: dict[int, _Equals] = {}
        self._first: _Equals | None = None
        """Those with the earliest deadline, as far as they have been looked for."""
        self._first_ms = 0
        self.size = 0

    def push(self, entry: Entry) -> None:
        """Add an entry."""
        deadline_ms = entry.deadline_ms
        equals = self._by_deadline.get(deadline_ms)
        if equals is None:
            heapq.heappush(self._deadlines, deadline_ms)
            self._by_deadline[deadline_ms] = _Equals(entry)
            if deadline_ms < self._first_ms:
                self._first = None
        else:
            equals.entries.append(entry)
        self.size += 1

    def head(self) -> Entry | None:
        """The earliest, dead or alive."""
        first = self._first
        if first is None:
            if not self._deadlines:
                return None
            self._first_ms = self._deadlines[0]
            first = self._first = self._by_deadline[self._first_ms]
        return first.entries[first.at]

    def pop(self) -> None:
        """Take the earliest off, after `head` returned it."""
        first = self._first
        assert first is not None
        first.at += 1
        if first.at == len(first.entries):
            del self._by_deadline[heapq.heappop(self._deadlines)]
            self._first = None
        self.size -= 1

    def __iter__(self) -> Iterator[Entry]:
        for equals in self._by_deadline.values():
            yield from equals.entries[equals.at :]


class Waiting:
    """The waiting requests of one pool."""

    def __init__(self) -> None:
        self.queues: dict[Class, DeadlineQueue] = {}
        self.rows: dict[tuple[str, int], int] = {}
        """Waiting rows by (task, rung); shadows ask for nothing."""
        self.work_ms = 0.0
        self.count = 0
        self.shadows = 0
        """How many of them are shadows."""
        self.deadline_sum_ms = 0.0
        self.due: dict[Class, dict[int, float]] = {}
        """By class: milliseconds of work by deadline bucket."""

    def push(self, entry: Entry) -> None:
        """Add a request whose task, rung, deadline and work are known."""
        entry.state = WAITING
        priority, task, rung, deadline_ms, work_ms = entry.priority, entry.task, entry.rung, entry.deadline_ms, entry.work_ms
        kind = (priority, task, rung)
        queue = self.queues.get(kind)
        if queue is None:
            queue = self.queues[kind] = DeadlineQueue()
        queue.push(entry)
        self.count += 1
        self.deadline_sum_ms += deadline_ms
        self.work_ms += work_ms
        due = self.due.get(kind)
        if due is None:
            due = self.due[kind] = {}
        bucket = entry.bucket = deadline_ms // BUCKET_MS
        due[bucket] = due.get(bucket, 0.0) + work_ms
        if priority == SHADOW_PRIORITY:
            self.shadows += 1
        else:
            group = (task, rung)
            self.rows[group] = self.rows.get(group, 0) + entry.rows

    def forget(self, entry: Entry, state: State) -> None:
        """The entry no longer waits (sent, expired, answered elsewhere); its place in the queue is dead from now on."""
        entry.state = state
        self.count -= 1
        self.deadline_sum_ms -= entry.deadline_ms
        if entry.priority == SHADOW_PRIORITY:
            self.shadows -= 1
        else:
            self.rows[(entry.task, entry.rung)] -= entry.rows
        if not self.count:
            # Empty: nothing of what sums of floats have drifted by stays.
            self.work_ms, self.deadline_sum_ms = 0.0, 0.0
            self.due.clear()
            self.rows.clear()
            return
        work_ms, bucket = entry.work_ms, entry.bucket
        self.work_ms -= work_ms
        due = self.due[(entry.priority, entry.task, entry.rung)]
        left = due.get(bucket, 0.0) - work_ms
        if left > ROUNDING_MS:
            due[bucket] = left
        else:
            due.pop(bucket, None)

    def backlog(self, groups: Collection[tuple[str, int]] | None) -> tuple[float, float]:
        """Milliseconds of work that wait of these (task, rung), and their mean deadline, to a bucket; None: of all that waits, exactly."""
        if groups is None:
            return self.work_ms, self.deadline_sum_ms / self.count if self.count else 0.0
        found = [each for (_, task, rung), due in self.due.items() if (task, rung) in groups for each in due.items()]
        work_ms = sum([each_ms for _, each_ms in found])
        return work_ms, BUCKET_MS * sum([bucket * each_ms for bucket, each_ms in found]) / work_ms if work_ms > 0.0 else 0.0

    def head(self, kind: Class) -> Entry | None:
        """The earliest waiting request of a class; dead ones before it are dropped."""
        queue = self.queues.get(kind)
        if queue is None:
            return None
        while (entry := queue.head()) is not None:
            if entry.state is WAITING:
                return entry
            queue.pop()
        del self.queues[kind]
        return None

    def take(self, kind: Class, entry: Entry, state: State) -> None:
        """Take the head of a class, `entry`, off its queue (after `head` returned it)."""
        self.queues[kind].pop()
        self.forget(entry, state)

    def entries(self) -> Iterator[Entry]:
        """Everything that waits, in no order."""
        for queue in self.queues.values():
            for entry in queue:
                if entry.state is WAITING:
                    yield entry

    def compact(self) -> None:
        """Drop dead entries where they are the larger part: requests that were answered while they waited far from the top."""
        if sum(queue.size for queue in self.queues.values()) > 2 * self.count + 1024:
            for kind, queue in list(self.queues.items()):
                alive = self.queues[kind] = DeadlineQueue()
                for entry in queue:
                    if entry.state is WAITING:
                        alive.push(entry)

"""Deadlines of all live requests in buckets of a few milliseconds: adding and removing cost the same whatever is waiting."""

from __future__ import annotations

import heapq

from broker.policy.entry import Entry

BUCKET_MS = 4


class ExpiryWheel:
    """Which requests are due; a bucket is due as a whole when its last millisecond has come."""

    def __init__(self) -> None:
        self._buckets: dict[float, dict[bytes, Entry]] = {}
        """By whole numbers, of either type."""
        self._order: list[float] = []

    def add(self, entry: Entry, at_ms: float) -> None:
        """Due then."""
        number = at_ms // BUCKET_MS
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
            heapq.heappush(self._order, number)
        bucket[entry.key] = entry

    def remove(self, entry: Entry, at_ms: float) -> None:
        """Idempotent."""
        buckets = self._buckets
        number = at_ms // BUCKET_MS
        bucket = buckets.get(number)
        if bucket is not None:
            bucket.pop(entry.key, None)
            if not bucket:
                # The number stays in the heap and is skipped later; the heap is made anew where most of it is such numbers.
                del buckets[number]
                if len(self._order) > 2 * len(buckets) + 1024:
                    self._order = sorted(buckets)

    def next_ms(self) -> float | None:
        """When something is due next."""
        while self._order and self._order[0] not in self._buckets:
            heapq.heappop(self._order)
        return (self._order[0] + 1) * BUCKET_MS if self._order else None

    def due(self, now_ms: float) -> list[Entry]:
        """Take out what is due."""
        entries: list[Entry] = []
        while self._order and (self._order[0] + 1) * BUCKET_MS <= now_ms:
            bucket = self._buckets.pop(heapq.heappop(self._order), None)
            if bucket:
                entries.extend(bucket.values())
        return entries

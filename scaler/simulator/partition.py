"""One partition of the simulated log: records with offsets, visible to readers in their order after their way through the log."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Generic, TypeVar

RecordT = TypeVar("RecordT")


class Partition(Generic[RecordT]):
    """Records that nobody can ask for any more are trimmed."""

    __slots__ = ("_records", "_visible_ms", "start")

    def __init__(self) -> None:
        self._records: list[RecordT] = []
        self._visible_ms: list[float] = []
        self.start = 0
        """Offset of the first record that is kept."""

    @property
    def end(self) -> int:
        """The offset of the next record."""
        return self.start + len(self._records)

    def append(self, record: RecordT, visible_ms: float) -> float:
        """Add a record; returns when it can be read, never before the one before it."""
        visible = self._visible_ms
        if visible and visible[-1] > visible_ms:
            visible_ms = visible[-1]
        self._records.append(record)
        visible.append(visible_ms)
        return visible_ms

    def extend(self, records: list[RecordT], visible_ms: list[float]) -> None:
        """Add many, whose times grow and are not before the last one's."""
        self._records += records
        self._visible_ms += visible_ms

    @property
    def latest_ms(self) -> float:
        """When its last record can be read."""
        return self._visible_ms[-1] if self._visible_ms else 0.0

    def read(self, offset: int, now_ms: float, count_max: int) -> list[RecordT]:
        """What can be read by now from this offset on."""
        at = offset - self.start
        visible = self._visible_ms
        if at >= len(visible) or visible[at] > now_ms:
            return []
        end = bisect_right(visible, now_ms, at)
        return self._records[at : min(end, at + count_max)]

    def next_ms(self, offset: int) -> float:
        """When the record at this offset can be read; infinity where there is none."""
        at = offset - self.start
        return self._visible_ms[at] if at < len(self._visible_ms) else float("inf")

    def offset_at(self, at_ms: float) -> int:
        """An offset before which nothing was written at or after this time."""
        return self.start + bisect_left(self._visible_ms, at_ms)

    def trim(self, offset: int) -> None:
        """Nobody reads below this offset any more."""
        count = offset - self.start
        if count > 0:
            del self._records[:count], self._visible_ms[:count]
            self.start += count

"""Tells which offset of a lane may be committed: everything below it is finished."""

from __future__ import annotations

from collections import deque


class LaneProgress:
    """Offsets in the order in which they were read; the watermark passes the finished ones without a gap."""

    def __init__(self, start: int) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        self._next = start

    def read(self, offset: int) -> None:
        self._open.append(offset)
        self._next = offset + 1

    def finish(self, offset: int) -> None:
        self._finished.add(offset)

    def watermark(self) -> int:
        """The next offset to commit."""
        while self._open and self._open[0] in self._finished:
            self._finished.discard(self._open.popleft())
        return self._open[0] if self._open else self._next

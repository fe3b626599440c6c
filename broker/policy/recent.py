"""The ids of requests that finished lately: a repeated id is ignored, the first answer stays."""

from __future__ import annotations

from collections import deque


class RecentIds:
    """A bounded set, oldest out first."""

    def __init__(self, count_max: int) -> None:
        self._order: deque[bytes] = deque()
        self._known: set[bytes] = set()
        self._count_max = count_max

    def add(self, key: bytes) -> None:
        """Remember this id; the oldest is forgotten where the bound is reached."""
        if key in self._known:
            return
        self._known.add(key)
        self._order.append(key)
        if len(self._order) > self._count_max:
            self._known.discard(self._order.popleft())

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._order)

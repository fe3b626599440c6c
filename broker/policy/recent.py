"""The ids of requests that finished lately: a repeated id is ignored, the first answer stays."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class RecentIds:
    """A bounded set, oldest out first."""

    def __init__(self, count_max: int) -> None:
        self._order: deque[bytes] = deque()
        self.known: set[bytes] = set()
        """Those that are remembered; only read from outside."""
        self._count_max = count_max

    def add(self, keys: Sequence[bytes]) -> None:
        """Remember these ids; the oldest are forgotten where the bound is reached."""
        known, order = self.known, self._order
        before = len(known)
        if known.isdisjoint(keys):
            known.update(keys)
            fresh = keys if len(known) - before == len(keys) else dict.fromkeys(keys)
        else:
            fresh = [key for key in dict.fromkeys(keys) if key not in known]
            known.update(fresh)
        order.extend(fresh)
        excess = len(order) - self._count_max
        if excess > 0:
            oldest = order.popleft
            known.difference_update([oldest() for _ in range(excess)])

    def __contains__(self, key: bytes) -> bool:
        return key in self.known

    def __len__(self) -> int:
        return len(self._order)

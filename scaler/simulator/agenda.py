"""Virtual time: what is to happen, in the order of its time, first come first served among equals."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

START_MS = 1_700_000_000_000.0
"""Unix time at which the first requests come."""


class Agenda:
    """A heap of (time, number, act, subject); acts are bound methods, so that an event costs one tuple."""

    __slots__ = ("_heap", "_number", "now_ms")

    def __init__(self, start_ms: float = START_MS) -> None:
        self.now_ms = start_ms
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._number = 0

    def schedule(self, at_ms: float, act: Callable[[Any], None], subject: Any = None) -> None:
        """Call `act(subject)` then; what is past happens now."""
        self._number += 1
        heapq.heappush(self._heap, (at_ms if at_ms > self.now_ms else self.now_ms, self._number, act, subject))

    def run(self, until_ms: float) -> None:
        """Let everything happen that is due by then."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until_ms:
            self.now_ms, _, act, subject = pop(heap)
            act(subject)
        self.now_ms = until_ms

"""What a batch takes on a board: an FPGA's pipeline takes so much for the first row and so much for each further one, hardly varying."""

from __future__ import annotations

from collections.abc import Mapping

UNKNOWN_MS = 10_000.0
"""The deadline of a first batch, of which nothing is known."""
FACTOR, FLOOR_MS = 10.0, 250.0
LATE_PART = 0.7
"""Where a batch was done when it was first looked at, it may have been done for long: look so much earlier next time."""
LEAST_PART = 0.05
"""Of what a batch was seen to take at most: where it is always done at once, a look costs nothing, and guessing stops."""
WEIGHT = 0.3
FORGET = 0.98


class LatencyLine:
    """fixed + row x rows, learnt from what batches took; used for deadlines, and for when to look at the board first."""

    def __init__(self) -> None:
        self._known: dict[int, float] = {}
        self._spent: dict[int, float] = {}

    def observe(self, rows: int, spent_ms: float, *, looks: int) -> None:
        """After more than one look at the board, `spent_ms` is what the batch took; after one, it took that at most."""
        # Deadlines follow what batches took at most, forgotten slowly; looks follow what they take at least.
        self._spent[rows] = max(spent_ms, self._spent.get(rows, 0.0) * FORGET)
        known = self._known.get(rows)
        if looks <= 1:
            self._known[rows] = max((spent_ms if known is None else min(known, spent_ms)) * LATE_PART, spent_ms * LEAST_PART)
        elif known is None or spent_ms < known:
            self._known[rows] = spent_ms
        else:
            # Now and then the machine is busy: the fabric takes no longer for that.
            self._known[rows] = known + WEIGHT * (spent_ms - known)

    def expected_ms(self, rows: int) -> float | None:
        """None before anything was seen."""
        return _on_the_line(self._known, rows) if self._known else None

    def deadline_ms(self, rows: int) -> float:
        """When a batch hangs."""
        return FLOOR_MS + FACTOR * _on_the_line(self._spent, rows) if self._spent else UNKNOWN_MS


def _on_the_line(measured: Mapping[int, float], rows: int) -> float:
    if rows in measured:
        return measured[rows]
    sizes = sorted(measured)
    small, large = sizes[0], sizes[-1]
    if small == large:
        return measured[small] * max(rows / small, 1.0)
    slope = max((measured[large] - measured[small]) / (large - small), 0.0)
    return max(measured[small] + slope * (rows - small), 0.0)

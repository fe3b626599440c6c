"""One partition of {p}.responses: keys, and which of the answers do not say `completed`."""

from __future__ import annotations

from bisect import bisect_left

from scaler.simulator.partition import Partition

NONE: frozenset[bytes] = frozenset()


class AnswerLog(Partition[bytes]):
    """Few answers are misses, so that only their offsets are kept."""

    __slots__ = ("_missed",)

    def __init__(self) -> None:
        super().__init__()
        self._missed: list[int] = []

    def miss(self) -> None:
        """The last record says anything but `completed`."""
        self._missed.append(self.end - 1)

    def missed(self, offset: int, keys: list[bytes]) -> frozenset[bytes]:
        """Which of these, read from this offset on, do not say `completed`."""
        missed = self._missed
        if not missed or missed[-1] < offset:
            return NONE
        begin = bisect_left(missed, offset)
        return frozenset([keys[at - offset] for at in missed[begin : bisect_left(missed, offset + len(keys), begin)]])

    def trim(self, offset: int) -> None:
        super().trim(offset)
        missed = self._missed
        if missed and missed[0] < self.start:
            del missed[: bisect_left(missed, self.start)]

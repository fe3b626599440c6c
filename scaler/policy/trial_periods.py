"""A switchback's periods: which optimizer plans when, and which answers count for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec
import numpy as np

from scaler.policy.trial_arm import Measured
from scaler.policy.trial_report import Pair
from schemas.terminal import COMPLETED, TerminalHead

KEYS_MAX = 500_000
"""Requests whose first answer is remembered: the second one of a key is none."""
NOT_OF_A_PLAN = frozenset({"bad_request", "unknown_endpoint", "too_large", "quota"})
"""Refusals that no plan could have spared."""


def order_of(pairs: int, seed: int) -> tuple[bool, ...]:
    """Two periods for each pair, True for the candidate: which of both comes first is chance, so that no rhythm of the load favours one."""
    first = np.random.default_rng(seed).integers(0, 2, pairs).astype(bool).tolist()
    return tuple(turn for candidate in first for turn in (candidate, not candidate))


class Period(msgspec.Struct):
    """One optimizer's turn; requests that came within [from_ms, to_ms) count."""

    candidate: bool
    from_ms: float = float("inf")
    to_ms: float = float("inf")
    offered: int = 0
    completed: int = 0
    accuracy_sum: float = 0.0

    @property
    def measured(self) -> Measured:
        return Measured(offered=self.offered, completed=self.completed, accuracy_sum=self.accuracy_sum)


class Periods:
    """Pure. Which request belongs to which period is decided when its answer is read, by when it came."""

    def __init__(self) -> None:
        self._periods: list[Period] = []
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def begin(self, from_ms: float, *, candidate: bool) -> None:
        """From then on what comes counts: the optimizer has settled."""
        self._periods.append(Period(candidate, from_ms))

    def end(self, to_ms: float) -> None:
        """What comes later does not count any more."""
        self._periods[-1].to_ms = to_ms

    def answered(self, key: bytes, head: TerminalHead) -> None:
        """A terminal record was read; only the first of a key is the answer."""
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > KEYS_MAX:
            self._seen.popitem(last=False)
        period = next((each for each in reversed(self._periods) if each.from_ms <= head.received_ms < each.to_ms), None)
        if period is None or (head.error is not None and head.error.code in NOT_OF_A_PLAN):
            return
        period.offered += 1
        if head.outcome == COMPLETED:
            period.completed += 1
            period.accuracy_sum += head.accuracy or 0.0

    def pairs(self) -> Sequence[Pair]:
        """Of periods that have ended, two by two; one without its other is left out."""
        ended = [each for each in self._periods if each.to_ms < float("inf")]
        found: list[Pair] = []
        for first, second in zip(ended[::2], ended[1::2], strict=False):
            candidate, against = (first, second) if first.candidate else (second, first)
            found.append(Pair(at_ms=first.from_ms, candidate=candidate.measured, against=against.measured))
        return found

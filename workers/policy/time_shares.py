"""Decides whose turn the device is, where the plan shares its time out: rounds of time, earliest deadline first within a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from typing import NamedTuple

ROUND_MS = 100.0
"""Device time that is shared out at once. A party is served while it has some left: a batch may overdraw, and the next rounds pay for that."""
DEBT_ROUNDS = 2.0
"""An urgent request jumps the turns of others until its party has overdrawn so many rounds' parts: then they have waited for long enough."""


class Head(NamedTuple):
    """Who is first in a variant's queue."""

    order: tuple[int, int, int]
    """(priority, deadline, number): the least is served first."""
    variant: str
    latest_start_ms: float


class TimeShares:
    """Deficit round robin (Shreedhar and Varghese, SIGCOMM '95, section 3), in its surplus form: a batch is charged when it is done, as it took.

    Parties are the tasks (or variants) that the plan gives a part of the time; what it does not name has the least part that it gives anybody.
    A party that has nothing to do keeps no time for later. Without parts, or where all that waits is of one party, the earliest deadline decides.
    """

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._least = 1.0
        self._left_ms: dict[str, float] = {}

    def share_out(self, parts: Mapping[str, float]) -> None:
        """By task or variant key; parts of whatever adds up. What is no part is left out."""
        sound = {party: part for party, part in parts.items() if isfinite(part) and part > 0.0}
        total = sum(sound.values())
        self._parts = {party: part / total for party, part in sound.items()}
        self._least = min(self._parts.values(), default=1.0)
        self._left_ms = {party: left_ms for party, left_ms in self._left_ms.items() if party in self._parts}

    @property
    def shared(self) -> bool:
        """Whether the plan says anything."""
        return bool(self._parts)

    def choose(self, heads: Sequence[Head], now_ms: float, batch_ms: float) -> str:
        """The variant to serve now, of one head at least; `batch_ms`: what the longest batch that could go before takes."""
        parties = {head.variant: self._party(head.variant) for head in heads}
        waiting = set(parties.values())
        if not self._parts or len(waiting) == 1:
            self._left_ms.clear()  # who had the device alone owes nobody anything
            return min(heads).variant
        for party in self._left_ms.keys() - waiting:
            self._left_ms[party] = min(self._left_ms[party], 0.0)
        urgent = [
            head
            for head in heads
            if head.latest_start_ms < now_ms + batch_ms and self._left(parties[head.variant]) > -self._debt_ms(parties[head.variant])
        ]
        if urgent:
            return min(urgent).variant
        if all(self._left(party) <= 0.0 for party in waiting):
            self._begin_rounds(waiting)
        return min(head for head in heads if self._left(parties[head.variant]) > 0.0).variant

    def charge(self, variant: str, spent_ms: float) -> None:
        """It had the device for so long."""
        if self._parts:
            party = self._party(variant)
            self._left_ms[party] = self._left(party) - spent_ms

    def _party(self, variant: str) -> str:
        return variant if variant in self._parts else variant.partition("/")[0]

    def _left(self, party: str) -> float:
        return self._left_ms.get(party, 0.0)

    def _round_ms(self, party: str) -> float:
        return ROUND_MS * self._parts.get(party, self._least)

    def _debt_ms(self, party: str) -> float:
        return DEBT_ROUNDS * self._round_ms(party)

    def _begin_rounds(self, waiting: set[str]) -> None:
        """As many as it takes until somebody who waits has time left."""
        rounds = max(1, min(ceil(-self._left(party) / self._round_ms(party)) for party in waiting))
        if all(self._left(party) + rounds * self._round_ms(party) <= 0.0 for party in waiting):
            rounds += 1
        for party in waiting:
            self._left_ms[party] = self._left(party) + rounds * self._round_ms(party)

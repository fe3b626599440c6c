"""Joins feedback with the answers that it is about, within a bounded window, whichever of the two comes first. Pure."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from schemas.feedback import Feedback

Place = tuple[str, int]
"""(`topic:partition`, offset) of a record."""


class WindowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what is remembered."""

    window_ms: int = 3_600_000
    """Feedback is joined with answers of the last hour, by the log's clock."""
    answers_max: int = 100_000
    answers_bytes_max: int = 128 << 20
    waiting_max: int = 20_000
    """Feedback whose answer has not come."""


class Answered(msgspec.Struct):
    """An answer that may be judged; its bytes are decoded only if it is."""

    value: bytes
    at_ms: int
    place: Place
    feedback: Feedback | None = None
    """What was said of it last."""
    credits: list[tuple[str, str, float, float, int]] = []
    """(endpoint or empty for a variant, path or variant key, rows right, rows wrong, halvings of the tally then)."""


class Waiting(msgspec.Struct, frozen=True):
    """Feedback without an answer."""

    feedback: Feedback
    at_ms: int
    place: Place


class Window:
    """What was answered lately, and what is said of answers that were not seen. Time is the log's; where that jumps back, the latest counts."""

    def __init__(self, settings: WindowSettings) -> None:
        self._settings = settings
        self._answers: OrderedDict[bytes, Answered] = OrderedDict()
        self._bytes = 0
        self._waiting: OrderedDict[bytes, Waiting] = OrderedDict()
        self._now_ms = 0
        self.unmatched: list[Place] = []
        """Places of feedback that was given up; whoever counts them empties the list."""

    @property
    def waiting(self) -> int:
        """Feedback whose answer has not been seen."""
        return len(self._waiting)

    def answer(self, key: bytes, answered: Answered) -> Waiting | None:
        """Remember the first answer of an id. Returns the feedback that waits for it."""
        self._pass(answered.at_ms)
        if key in self._answers:
            return None
        self._answers[key] = answered
        self._bytes += len(answered.value)
        while len(self._answers) > self._settings.answers_max or self._bytes > self._settings.answers_bytes_max:
            self._forget_oldest()
        return self._waiting.pop(key, None)

    def find(self, key: bytes, at_ms: int) -> Answered | None:
        """The answer that feedback of this moment is about, if it is still known."""
        self._pass(at_ms)
        return self._answers.get(key)

    def wait(self, key: bytes, waiting: Waiting) -> Waiting | None:
        """Keep feedback until its answer comes, or the window ends. The last word of an id stays; returns the one before."""
        before = self._waiting.pop(key, None)
        self._waiting[key] = waiting
        while len(self._waiting) > self._settings.waiting_max:
            self._give_up()
        return before

    def _pass(self, at_ms: int) -> None:
        self._now_ms = max(self._now_ms, at_ms)
        since_ms = self._now_ms - self._settings.window_ms
        while self._answers and next(iter(self._answers.values())).at_ms < since_ms:
            self._forget_oldest()
        while self._waiting and next(iter(self._waiting.values())).at_ms < since_ms:
            self._give_up()

    def _forget_oldest(self) -> None:
        _, answered = self._answers.popitem(last=False)
        self._bytes -= len(answered.value)

    def _give_up(self) -> None:
        _, waiting = self._waiting.popitem(last=False)
        self.unmatched.append(waiting.place)

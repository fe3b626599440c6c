"""One shard of the taps: requests wait for their answer, each is given out once, and a position says from where to go on.

The answers drive it: a request is given out when the first terminal record of its id comes, in the order of {p}.responses. So the offset up to which
answers were given out says all about what was tapped, whatever the order in which other topics are read. A restart reads requests again from
before the oldest that had no answer, and answers from before that: those are not given out again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from broker.policy.tap_sampling import fraction, sampled
from schemas.catalog import EndpointSpec
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.request import DEADLINE_MS_MAX, Routing, read_routing
from schemas.stage import StageRecord
from schemas.terminal import TerminalHead, decode_terminal_head

Headers = Sequence[tuple[str, bytes]]


class TapPosition(msgspec.Struct, frozen=True):
    """Where a shard goes on: answers below `answers` were given out. Reading begins at `answers_low`, and of the other topics at `low`."""

    answers: int
    answers_low: int
    low: dict[str, int] = {}


class TapJoinLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one shard."""

    remembered: int = 5_000
    """Offsets of answers back to which a finished id is known: a late second answer, or the same request again, comes soon or never."""
    waiting_max: int = 100_000
    waiting_bytes_max: int = 64 << 20
    """Above it requests wait without their body."""
    overdue_ms: float = 60_000.0
    """A request without an answer so long after its deadline gets none."""


class TappedStage(msgspec.Struct, gc=False):
    """The outputs of one stage, as they stand in its topic."""

    record: StageRecord
    value: bytes
    written_ms: int


class Asked(msgspec.Struct, gc=False):
    """A request that waits for its answer; `value` None where it had none, or where there was no room for it (`shed`)."""

    key: bytes
    value: bytes | None
    headers: Headers
    received_ms: int
    mark: TapPosition
    """Of the turn in which it was read."""
    stages: list[TappedStage] = []
    shed: bool = False
    overdue_since_ms: float | None = None


class Exchange(msgspec.Struct, gc=False):
    """A sampled request with its answer."""

    asked: Asked
    head: TerminalHead
    answer: bytes
    answered_ms: int
    """Log time of the answer."""
    shard: int
    offset: int
    rate: float
    endpoint: EndpointSpec


class TapCounts(msgspec.Struct):
    """What happened since it was last looked at."""

    unmatched: int = 0
    """Answers without a request that is known, and repeated ones."""
    not_terminal: int = 0
    shed: int = 0
    forgotten: int = 0
    """Requests that got no answer, or for which there was no room."""


class TapJoin:
    """One shard. `endpoints` and `ceiling` change with the catalog: set them."""

    def __init__(self, shard: int, position: TapPosition, limits: TapJoinLimits | None = None) -> None:
        self.endpoints: Mapping[str, EndpointSpec] = {}
        self.ceiling = 0.0
        self.counts = TapCounts()
        self._shard = shard
        self._limits = limits or TapJoinLimits()
        self._given_out = position.answers
        """Answers below are not given out: an earlier life did."""
        self._waiting: dict[bytes, Asked] = {}
        self._waiting_bytes = 0
        self._done: set[bytes] = set()
        self._done_at: deque[tuple[int, bytes]] = deque()
        self._mark = position

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def begin(self, answers: int, others: Mapping[str, int]) -> None:
        """A turn begins: where reading stands, of {p}.responses and of the other topics by name."""
        self._mark = TapPosition(answers, answers, dict(others))

    def ask(self, key: bytes, value: bytes | None, headers: Headers, received_ms: int) -> None:
        """A record of {p}.requests; the first of an id counts, as for the dispatcher."""
        if key in self._waiting or key in self._done or fraction(key) >= self.ceiling:
            return
        asked = Asked(key, value, headers, received_ms, self._mark)
        if self._waiting_bytes + len(value or b"") > self._limits.waiting_bytes_max:
            asked.value, asked.shed = None, True
            self.counts.shed += 1
        if len(self._waiting) >= self._limits.waiting_max:
            self._forget(next(iter(self._waiting)))
            self.counts.forgotten += 1
        self._waiting[key] = asked
        self._waiting_bytes += len(asked.value or b"")

    def stage(self, key: bytes, stage: TappedStage) -> bool:
        """A record of a stage topic; False where its request may only not have been read yet. What comes after the answer is left out."""
        asked = self._waiting.get(key)
        if asked is None:
            return key in self._done or fraction(key) >= self.ceiling
        if self._waiting_bytes + len(stage.value) > self._limits.waiting_bytes_max:
            self.counts.shed += 1
            return True
        # The list of the default is shared: it must not be appended to.
        asked.stages = [*asked.stages, stage]
        self._waiting_bytes += len(stage.value)
        return True

    def misses(self, key: bytes | None, offset: int) -> bool:
        """Whether this answer may be one to give out, and its request has not been read yet."""
        if key is None or offset < self._given_out or key in self._waiting or key in self._done:
            return False
        return fraction(key) < self.ceiling

    def answer(self, key: bytes | None, value: bytes | None, written_ms: int, offset: int) -> Exchange | None:
        """A record of {p}.responses: the exchange, where it is the first answer to a request that is sampled."""
        share = 1.0 if key is None else fraction(key)
        if key is None or share >= self.ceiling:
            return None
        head = _head_of(key, value or b"")
        if head is None:
            self.counts.not_terminal += 1
            return None
        asked = self._waiting.get(key)
        if asked is not None:
            self._forget(key)
        elif offset >= self._given_out:
            self.counts.unmatched += 1
            return None
        self._remember(key, offset)
        if asked is None or offset < self._given_out:
            return None
        return self._sampled(asked, head, value or b"", (written_ms, offset), share)

    def _sampled(self, asked: Asked, head: TerminalHead, value: bytes, at: tuple[int, int], share: float) -> Exchange | None:
        endpoint = self.endpoints.get(head.endpoint or stated_endpoint(asked.headers))
        if endpoint is None or endpoint.taps is None:
            return None
        rate = sampled(endpoint.taps, share, head.outcome, head.path[-1].variant if head.path else "")
        return None if rate is None else Exchange(asked, head, value, at[0], self._shard, at[1], rate, endpoint)

    def forget_overdue(self, log_ms: int, now_ms: float, limits: Limits) -> None:
        """Let go of requests that nobody will answer (an id that was sent twice): else every restart would begin at them."""
        for key, asked in list(islice(self._waiting.items(), 100)):
            if log_ms <= self._deadline_ms(asked, limits) + self._limits.overdue_ms:
                return
            if asked.overdue_since_ms is None:
                # After an outage of the dispatchers their answers come in one after the other: each gets its time.
                asked.overdue_since_ms = now_ms
            if now_ms - asked.overdue_since_ms < self._limits.overdue_ms:
                return
            self._forget(key)
            self.counts.forgotten += 1

    def position(self, answers: int) -> TapPosition:
        """Where to go on, when all answers below `answers` have been given out (again)."""
        oldest = next(iter(self._waiting.values()), None)
        mark = self._mark if oldest is None else oldest.mark
        answers = max(answers, self._given_out)
        return TapPosition(answers, max(min(mark.answers_low, answers - self._limits.remembered), 0), mark.low)

    def _deadline_ms(self, asked: Asked, limits: Limits) -> float:
        routing = routing_of(asked, limits)
        if routing is None:
            return asked.received_ms
        endpoint = self.endpoints.get(routing.endpoint)
        timeout_ms = routing.timeout_ms
        if timeout_ms is None and routing.deadline_ms is None:
            timeout_ms = endpoint.defaults.timeout_ms if endpoint is not None else 0
        relative = DEADLINE_MS_MAX if timeout_ms is None else asked.received_ms + timeout_ms
        return min(relative, DEADLINE_MS_MAX if routing.deadline_ms is None else routing.deadline_ms)

    def _remember(self, key: bytes, offset: int) -> None:
        self._done.add(key)
        self._done_at.append((offset, key))
        while self._done_at[0][0] < offset - self._limits.remembered:
            self._done.discard(self._done_at.popleft()[1])

    def _forget(self, key: bytes) -> None:
        asked = self._waiting.pop(key)
        self._waiting_bytes -= len(asked.value or b"") + sum(len(stage.value) for stage in asked.stages)


def _head_of(key: bytes, value: bytes) -> TerminalHead | None:
    """What an answer says of itself; None for what is no answer to the id that is its key."""
    try:
        head = decode_terminal_head(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return head if head.id.encode(errors="replace") == key else None


def routing_of(asked: Asked, limits: Limits) -> Routing | None:
    """The request's routing fields; None where they cannot be read."""
    try:
        return read_routing(asked.value, asked.headers or (), limits)
    except (BadRequest, TooLarge):
        return None


def stated_endpoint(headers: Headers) -> str:
    """The endpoint in a request's headers, of a request that could not be read otherwise."""
    return next(((value or b"").decode(errors="replace") for name, value in headers or () if name == "endpoint"), "")

"""What the checkers share: the requests that are not finished, and for a while those that are; workers and dispatchers as they live."""

from __future__ import annotations

from collections import deque

import msgspec

from scaler.simulator.result import Violation
from schemas.plan import Plan


class Lease(msgspec.Struct, gc=False):
    """The latest sending of an order."""

    dispatcher: str
    life: int
    worker: str
    incarnation: int
    attempt: int
    sent_ms: float
    started_ms: float = 0.0
    """When a device began it; 0: none did."""
    times: int = 1
    """How often this attempt was sent."""
    begun: bool = False
    """A device began it, in this sending or an earlier one."""
    returned_ms: float = 0.0
    """When its worker handed it back; 0: it did not."""


class Request(msgspec.Struct, gc=False):
    """A request without a terminal record."""

    key: bytes
    shard: int
    offset: int
    offered_ms: float
    endpoint: str
    floor: float
    deadline_ms: int
    leases: dict[bytes, Lease] | None = None
    """By name of the order: the request's own, or one for each stage."""


class WorkerLife(msgspec.Struct, gc=False):
    """One incarnation of a worker."""

    name: str
    incarnation: int
    since_ms: float
    """When it began, or died."""
    alive: bool = True
    ready_ms: dict[str, float] = {}
    """Since when each variant is ready."""
    ever_ready: set[str] = set()
    sent_ms: float = 0.0
    """When it was sent something last."""
    computing_ms: float = 0.0
    """When it began something last."""


class Book:
    """State and violations of one run."""

    def __init__(self, finished_max: int, violations_max: int) -> None:
        self.violations: list[Violation] = []
        self.seen = 0
        """Violations, with those that are not kept."""
        self.live: dict[bytes, Request] = {}
        self.open: dict[int, dict[int, Request]] = {}
        """By shard and offset, in the order of the offsets."""
        self.finished: dict[bytes, float] = {}
        """When the terminal record of a request came into the log."""
        self.forgotten = False
        """Some finished requests are not remembered any more."""
        self.repeated: set[bytes] = set()
        """Ids that came more than once."""
        self.ends: dict[int, int] = {}
        """By shard: the offset after the last request."""
        self._finished_order: deque[bytes] = deque()
        self._finished_max, self._violations_max = finished_max, violations_max
        self.offered = 0
        self.outcomes: dict[str, int] = {}
        self.workers: dict[str, WorkerLife] = {}
        self.dispatchers: dict[str, bool] = {}
        self.lives: dict[str, int] = {}
        """How often each dispatcher has died."""
        self.deaths = 0
        self.excused_until_ms: dict[str, float] = {}
        """By dispatcher: until when its death explains why something was not done."""
        self.plan: Plan | None = None
        self.planned_ms = 0.0

    def violated(self, checker: str, at_ms: float, what: str) -> None:
        """Something was seen that must not be."""
        self.seen += 1
        if len(self.violations) < self._violations_max:
            self.violations.append(Violation(checker, at_ms, what))

    def excused_ms(self) -> float:
        """Until when deaths of dispatchers explain delays; 0: never."""
        return max(self.excused_until_ms.values(), default=0.0)

    def close(self, request: Request, at_ms: float) -> None:
        """The request has its terminal record."""
        key, order = request.key, self._finished_order
        del self.live[key]
        self.open[request.shard].pop(request.offset, None)
        self.finished[key] = at_ms
        order.append(key)
        if len(order) > self._finished_max:
            old = order.popleft()
            self.finished.pop(old, None)
            self.repeated.discard(old)
            self.forgotten = True

    def offer(self, request: Request) -> None:
        """A request record is in the log; the same id again is the same request."""
        key, shard, offset = request.key, request.shard, request.offset
        self.ends[shard] = offset + 1
        first = self.live.get(key)
        if first is None and key not in self.finished:
            self.offered += 1
            self.live[key] = request
            own = self.open.get(shard)
            if own is None:
                own = self.open[shard] = {}
            own[offset] = request
            return
        self.repeated.add(key)
        if first is not None:
            # Whichever record is read first is taken on; the other is finished with nothing done.
            self.open[first.shard].pop(first.offset, None)
            first.deadline_ms = max(first.deadline_ms, request.deadline_ms)

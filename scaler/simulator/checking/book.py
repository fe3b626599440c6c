"""What the checkers share: the requests that are not finished, and for a while those that are; workers and dispatchers as they live."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from scaler.simulator.records import Request as Record
from scaler.simulator.result import Violation
from scaler.simulator.watching import Offered
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
    ahead: set[tuple[bytes, str, int]] | None = None
    """(name, worker, incarnation) of stages that a worker may go on with without being sent them."""


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

    def close(self, requests: Sequence[Request]) -> None:
        """These have their terminal records, and are among the finished."""
        opened, order = self.open, self._finished_order
        for request in requests:
            opened[request.shard].pop(request.offset, None)
            order.append(request.key)
        for _ in range(len(order) - self._finished_max):
            old = order.popleft()
            self.finished.pop(old, None)
            self.repeated.discard(old)
            self.forgotten = True

    def offer(self, records: Sequence[Offered]) -> None:
        """Request records are in the log."""
        live, finished, opened, ends = self.live, self.finished, self.open, self.ends
        for at_ms, record, shard, offset in records:
            key = record.key
            ends[shard] = offset + 1
            if key in live or key in finished:
                self._repeat(record)
                continue
            self.offered += 1
            own = opened.get(shard)
            if own is None:
                own = opened[shard] = {}
            deadline_ms = record.received_ms + record.timeout_ms
            own[offset] = live[key] = Request(key, shard, offset, at_ms, record.endpoint, record.floor, deadline_ms)

    def _repeat(self, record: Record) -> None:
        """The same id again is the same request."""
        self.repeated.add(record.key)
        first = self.live.get(record.key)
        if first is not None:
            # Whichever record is read first is taken on; the other is finished with nothing done.
            self.open[first.shard].pop(first.offset, None)
            first.deadline_ms = max(first.deadline_ms, record.received_ms + record.timeout_ms)

"""Lanes as the dispatcher sees them: who reads a lane, what it hosts and costs, and how much work is outstanding on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from broker.policy.entry import Entry
from broker.policy.ladder import Ladder
from schemas.plan import Binding
from schemas.profile import Latency, latency_at
from schemas.telemetry import HostedVariant, WorkerReport

READY = "ready"
LOW_PART = 0.5
"""A lane that was filled is filled again when no more than this part of its window is left: what is left has to last for the way there and back."""
FULL_PART = 0.4
"""A lane with this part of its window outstanding (less than LOW_PART) is taken to be busy without a break."""
SPEED_STRETCH_MS = 250.0
SPEED_WEIGHT = 0.25
SPEED_MIN, SPEED_MAX = 0.05, 1.5
SPEED_FORGET_MS = 1_000.0


class Option:
    """One variant as one lane would run it. Costs in milliseconds of the lane's device."""

    __slots__ = ("accuracy", "at", "batches", "key", "known_p95_ms", "row_ms")

    def __init__(self, key: str, at: int, accuracy: float, batches: dict[int, Latency], batch_size_max: int) -> None:
        self.key = key
        self.at = at
        """Index in the task's ladder."""
        self.accuracy = accuracy
        self.batches = batches
        sizes = [size for size in batches if size <= batch_size_max] or list(batches)
        self.row_ms = min(batches[size].p50_ms / size for size in sizes)
        """Computing time of a row in the batch size that amortises best."""
        self.known_p95_ms: dict[int, float] = {}
        """`p95_ms` by rows, as far as anybody has asked; only read from outside."""

    def p95_ms(self, rows: int) -> float:
        """What a batch of just these rows takes, in the 95th percentile."""
        cached = self.known_p95_ms.get(rows)
        if cached is None:
            cached = self.known_p95_ms[rows] = latency_at(self.batches, rows).p95_ms
        return cached


class Order(msgspec.Struct, gc=False, eq=False):
    """Work that a worker has: what it occupies of its lane until the answer or the end of the lease."""

    entry: Entry
    lane: Lane
    variant: str
    work_ms: float
    rows: int
    sent_ms: float
    lease_until_ms: float


class Lane:
    """One worker's lane. `outstanding_*` count what this dispatcher sent and has not seen answered."""

    def __init__(self, report: WorkerReport) -> None:
        self.worker = report.worker
        self.accelerator = report.accelerator
        self.incarnation = report.incarnation
        self.lane = -1
        self.device = report.device
        self.seen_ms = 0.0
        self.ready = False
        self.stalled = False
        """A lease ran out here: nothing more is sent until the worker answers something or starts anew."""
        self.reserved = False
        """What it has is somebody's last attempt: nothing joins it."""
        self.credit_rows = 0
        self.options: dict[str, list[tuple[Option, ...]]] = {}
        """By task: for each rung the hosted options that meet it, most accurate first, each cheaper than the one before."""
        self.hosted: frozenset[str] | None = None
        """Keys of the variants that it offers; None where it takes nothing."""
        self.hostings = 0
        """Counts the changes of what it offers."""
        self.orders: dict[bytes, Order] = {}
        self.outstanding_ms = 0.0
        self.outstanding_rows = 0
        self.speed = 1.0
        """Milliseconds of (profiled) work that the lane really does in a millisecond of being busy."""
        self.share = 1.0
        """This dispatcher's part of the lane."""
        self.window_ms = 0.0
        """Work of ours that keeps the lane busy while answers and orders are on their way."""
        self.at = 0
        """Its place in its pool."""
        self.changed: set[Lane] = set()
        """Its pool's: lanes that are not as they were when the pool looked."""
        self._full_since_ms: float | None = None
        self._slack_since_ms: float | None = 0.0
        """Since when the outstanding work has not filled the window; None while it does."""
        self._done_ms = 0.0
        self._filled = False

    def observe(self, report: WorkerReport, binding: Binding | None, ladders: Mapping[str, Ladder], rows_max: int) -> None:
        """Take over what the worker says of itself, as far as the plan agrees; `rows_max` bounds its credits."""
        bound = binding is not None and binding.lane == report.lane and report.lane is not None
        self.ready = bound and report.state == READY
        self.lane = report.lane if report.lane is not None else -1
        self.device = report.device
        self.credit_rows = min(max(report.credits, 0), rows_max)
        allowed = frozenset(binding.variants) if binding is not None else frozenset[str]()
        hosted = {key: variant for key, variant in report.variants.items() if key in allowed and variant.state == READY and variant.latency}
        self.options = {}
        for ladder in ladders.values():
            options = _options(ladder, hosted, max(report.batch_size_max, 1))
            if options:
                self.options[ladder.task] = [_front(options, rung) for rung in range(len(ladder.keys))]
        offered = frozenset(hosted) if self.ready else None
        if offered != self.hosted:
            self.hosted, self.hostings = offered, self.hostings + 1
        self.changed.add(self)

    def drop_variant(self, key: str) -> None:
        """The worker handed work for this variant back: it is not offered again until the next report."""
        self.hosted, self.hostings = None, self.hostings + 1
        for task, rungs in self.options.items():
            self.options[task] = [tuple(option for option in front if option.key != key) for front in rungs]
        self.changed.add(self)

    def lose(self) -> dict[bytes, Order]:
        """The worker is gone: hand out what it had."""
        orders, self.orders = self.orders, {}
        self.outstanding_ms, self.outstanding_rows = 0.0, 0
        self.ready = False
        self.changed.add(self)
        return orders

    def stall(self) -> None:
        """A lease ran out here."""
        self.stalled = True
        self.changed.add(self)

    def share_out(self, part: float, window_ms: float) -> None:
        """This dispatcher has this part of the lane, and may keep so much work on it."""
        if part != self.share or window_ms != self.window_ms:
            self.share = part
            self.window_ms = window_ms
            self.changed.add(self)

    def lend(self, key: bytes, order: Order) -> None:
        """Count an order that was sent."""
        orders = self.orders
        if key in orders:
            self.release(key)
        self.changed.add(self)
        orders[key] = order
        self.outstanding_ms += order.work_ms
        self.outstanding_rows += order.rows
        if self._slack_since_ms is not None and self.outstanding_ms >= FULL_PART * self.window_ms:
            slack_ms = order.sent_ms - self._slack_since_ms
            if slack_ms > 0.0:
                # What was learned in a rush fades while there is time to spare.
                self.speed += min(slack_ms / SPEED_FORGET_MS, 1.0) * (1.0 - self.speed)
                self._full_since_ms, self._done_ms = order.sent_ms, 0.0
            self._slack_since_ms = None

    def release(self, key: bytes) -> Order | None:
        """The order was answered, or its lease is over."""
        order = self.orders.pop(key, None)
        if order is not None:
            self.changed.add(self)
            self.outstanding_rows -= order.rows
            self.outstanding_ms = self.outstanding_ms - order.work_ms if self.orders else 0.0
        return order

    def interrupted(self) -> None:
        """Orders were taken back: what was done in this stretch says nothing about the speed."""
        self._full_since_ms = None

    def answered(self, order: Order, now_ms: float) -> None:
        """The order is done. Learns the lane's real speed from stretches in which it was kept full: with time to spare it would show the way
        there and back."""
        released = self.orders.pop(order.entry.key, None)
        if released is not None:
            self.outstanding_rows -= released.rows
            self.outstanding_ms = self.outstanding_ms - released.work_ms if self.orders else 0.0
        self.changed.add(self)
        self.stalled = False
        if self._slack_since_ms is None:
            if self.outstanding_ms < FULL_PART * self.window_ms:
                self._slack_since_ms = now_ms
        elif self._slack_since_ms < now_ms:
            return
        self._done_ms += order.work_ms
        if self._full_since_ms is None:
            self._full_since_ms, self._done_ms = now_ms, 0.0
        full_ms = now_ms - self._full_since_ms
        if full_ms >= SPEED_STRETCH_MS:
            measured = min(max(self._done_ms / (full_ms * self.share), SPEED_MIN), SPEED_MAX)
            self.speed += SPEED_WEIGHT * (measured - self.speed)
            self._full_since_ms, self._done_ms = now_ms, 0.0

    @property
    def wait_ms(self) -> float:
        """When an order sent now would have its turn, at the lane's real speed."""
        speed = self.speed
        return self.outstanding_ms / speed if speed < 1.0 else self.outstanding_ms

    def room(self) -> bool:
        """Whether another order may be sent: late binding keeps a lane at one or two batches.

        The oldest order is not counted: it is being computed, nothing is heard of the lane before it ends, and the window has to last from then on.
        A lane that was filled waits until part of it is done: under load orders travel in groups, and a group costs little more than an order.
        """
        orders = self.orders
        if not orders:
            return True
        if self.reserved:
            return False
        running = next(iter(orders.values()))
        behind_ms = self.outstanding_ms - running.work_ms
        if behind_ms >= self.window_ms or self.outstanding_rows - running.rows >= self.credit_rows * self.share:
            self._filled = True
        elif behind_ms < LOW_PART * self.window_ms:
            self._filled = False
        return not self._filled


def _options(ladder: Ladder, hosted: Mapping[str, HostedVariant], batch_size_max: int) -> list[Option]:
    return [Option(key, at, ladder.accuracies[at], hosted[key].latency, batch_size_max) for at, key in enumerate(ladder.keys) if key in hosted]


def _front(options: Iterable[Option], rung: int) -> tuple[Option, ...]:
    """Pareto front of what meets the rung: most accurate first, and each further one strictly cheaper."""
    front: list[Option] = []
    for option in sorted((o for o in options if o.at >= rung), key=lambda o: (-o.accuracy, o.row_ms)):
        if not front or option.row_ms < front[-1].row_ms:
            front.append(option)
    return tuple(front)

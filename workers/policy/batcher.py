"""Decides which orders run together and when, and which of them can no longer be met."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from functools import lru_cache
from itertools import islice

import msgspec

from schemas.limits import DEFAULT_PRIORITY
from schemas.profile import Latency
from schemas.work import WorkOrder
from workers.policy.time_shares import Head, TimeShares

LatencyAt = Callable[[int], Latency]
"""Latency of a batch of so many rows."""
EFFICIENT = 0.95
"""A larger batch must raise the rate by more than 5 % to be worth the waiting of those in it."""
CHANGE_ROOM = 1.5
"""A change of variants may take so many times what the last one took."""
BATCH_OVERHEAD_MS = 0.3
"""What a batch costs beside its computation, on the way to the device and back."""


class QueuedOrder(msgspec.Struct, eq=False, gc=False):
    """A work order with its record's bytes, from its arrival on the lane until its answer."""

    id: str
    """The order's name: two stages of one request, or two rows of it, are two orders."""
    request_id: str
    order: WorkOrder
    body: bytes
    """The record's value: the request's body, and the raw tensors that the order's part describes."""
    content_type: str
    lane: int
    offset: int
    taken: bool = False
    """Left the queue: what the lists still have of it is stale."""


class BatchRules(msgspec.Struct, frozen=True):
    """How one variant may be batched: what batches cost, how many rows at most, and the only sizes that the backend takes (empty: any)."""

    latency_at: LatencyAt
    rows_max: int
    sizes: tuple[int, ...] = ()
    whole: bool = False
    """A Python task: each request is one call, however many rows it has. `rows_max` is 1 then, so that a batch is one request."""

    def padded(self, rows: int) -> int:
        """The rows that are computed for `rows`: the next size of the backend; beyond rows_max, chunks of it."""
        if self.whole:
            return 1
        if 0 < rows <= self.rows_max:
            return self.size_for(rows)
        whole, rest = divmod(rows, self.rows_max)
        return whole * self.size_for(self.rows_max) + (self.size_for(rest) if rest else 0)

    def size_for(self, rows: int) -> int:
        """What the backend is given for a chunk of `rows` (at most rows_max)."""
        if not self.sizes:
            return rows
        at = bisect_left(self.sizes, rows)
        return self.sizes[at] if at < len(self.sizes) else rows

    def p95_ms(self, rows: int) -> float:
        return self.latency_at(self.padded(rows)).p95_ms

    def efficient_rows(self) -> int:
        """The smallest batch that comes within 5 % of the best rate: beyond it, batching makes everyone wait for nothing."""
        sizes = _candidates(self.sizes, self.rows_max)
        rates = [rows / (self.latency_at(rows).p50_ms + BATCH_OVERHEAD_MS) for rows in sizes]
        best = max(rates)
        return next(rows for rows, rate in zip(sizes, rates, strict=True) if rate >= EFFICIENT * best)


@lru_cache(maxsize=256)
def _candidates(sizes: tuple[int, ...], rows_max: int) -> tuple[int, ...]:
    """Batch sizes worth comparing, smallest first."""
    candidates = sizes or tuple(rows for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if rows < rows_max)
    return tuple(sorted({rows for rows in candidates if rows <= rows_max} | {rows_max}))


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Orders of one variant to compute together, now."""

    variant: str
    orders: tuple[QueuedOrder, ...]
    rows: int
    expected_ms: float
    """95th percentile of its computation."""


class Wait(msgspec.Struct, frozen=True):
    """Decide again when something arrives, at the latest at this time."""

    until_ms: float


class _Queue(msgspec.Struct, eq=False):
    rules: BatchRules
    entries: list[tuple[int, int, int, QueuedOrder]]
    """(priority, deadline, number, order), sorted: the first is served first. Deadlines mostly come in their order: adding costs one comparison then,
    and a whole batch is taken off at once, where a heap would be rearranged for each order."""
    waiting: int = 0
    waiting_rows: int = 0
    told: Latency | None = None
    """What the rules say of the largest batch; as long as they say the very same, the next two hold."""
    p95_ms: dict[int, float] = {}
    """By rows, as far as anybody has asked."""
    efficient: int = 0
    """Rows; 0: nobody has asked yet."""

    def costs_ms(self) -> dict[int, float]:
        """`p95_ms`, emptied where latencies are other ones by now."""
        told = self.rules.latency_at(self.rules.rows_max)
        if told is not self.told:
            self.told, self.p95_ms, self.efficient = told, {}, 0
        return self.p95_ms

    def of(self, rows: int) -> float:
        """The 95th percentile of a batch, where `costs_ms` does not have it yet."""
        found = self.p95_ms[rows] = self.rules.p95_ms(rows)
        return found

    def efficient_rows(self) -> int:
        """Up to how many rows a batch grows; call `costs_ms` first."""
        if not self.efficient:
            self.efficient = max(min(self.rules.efficient_rows(), self.rules.rows_max), 1)
        return self.efficient


class Batcher:
    """The queue of one worker: by variant, priority first, then earliest deadline.

    Deferral is work conserving: while the device computes, orders gather; when it is idle, a batch that is not full waits only while
    more is known to be on its way, and never beyond the point where the earliest deadline becomes unsafe. (Proteus, ASPLOS'24, without
    its idling.) What would be late even if it started now is dropped before it costs anything.
    """

    def __init__(self, *, hop_ms: float) -> None:
        self._hop_ms = hop_ms
        self._queues: dict[str, _Queue] = {}
        self._by_latest_start: list[tuple[float, int, QueuedOrder]] = []
        """(latest start, number, order), sorted."""
        self._known: dict[str, QueuedOrder] = {}
        self._number = 0
        self.waiting_rows = 0
        self.shares = TimeShares()
        """Whose turn it is where the plan shares the device's time out."""
        self.change_ms = 0.0
        """What it costs the device to go from one variant to another (an FPGA's overlay); 0: nothing worth speaking of."""
        self._present = ""
        """The variant of the last batch."""

    def host(self, variant: str, rules: BatchRules) -> None:
        """Orders for this variant are taken from now on, or by other rules than before."""
        queue = self._queues.get(variant)
        if queue is None:
            self._queues[variant] = _Queue(rules, [])
        else:
            queue.rules, queue.told = rules, None

    def hosts(self, variant: str) -> bool:
        return variant in self._queues

    def waiting(self, variant: str) -> int:
        """Orders that wait for this variant."""
        queue = self._queues.get(variant)
        return queue.waiting if queue else 0

    def known(self, name: str) -> QueuedOrder | None:
        """The order of this name that waits or runs."""
        return self._known.get(name)

    def add(self, queued: QueuedOrder) -> bool:
        """Queue an order of a hosted variant; False where its id already waits or runs (the answer then says the higher attempt)."""
        name = queued.id
        known = self._known.get(name)
        if known is not None:
            if queued.order.attempt > known.order.attempt:
                # All else stays as it came: the later order may name another variant, or describe other tensors than are held here.
                known.order = msgspec.structs.replace(known.order, attempt=queued.order.attempt, epoch=queued.order.epoch)
            return False
        order = queued.order
        queue = self._queues[order.variant]
        self._known[name] = queued
        number = self._number = self._number + 1
        deadline_ms, rows = order.deadline_ms, order.rows
        entry, entries = (order.priority or DEFAULT_PRIORITY, deadline_ms, number, queued), queue.entries
        if entries and entry < entries[-1]:
            insort(entries, entry)
        else:
            entries.append(entry)
        latest_start_ms = deadline_ms - self._hop_ms - (queue.costs_ms().get(rows) or queue.of(rows))
        starts = self._by_latest_start
        if starts and latest_start_ms < starts[-1][0]:
            insort(starts, (latest_start_ms, number, queued))
        else:
            starts.append((latest_start_ms, number, queued))
        queue.waiting += 1
        queue.waiting_rows += rows
        self.waiting_rows += rows
        return True

    def finish(self, queued: QueuedOrder) -> None:
        """The order has its answer, or was handed back: its id may come again."""
        self._known.pop(queued.id, None)

    def drop_late(self, now_ms: float) -> list[QueuedOrder]:
        """Take out what cannot be met even if it started now."""
        late: list[QueuedOrder] = []
        starts = self._by_latest_start
        if not self.waiting_rows:
            starts.clear()
            return late
        due = bisect_left(starts, now_ms, key=_start_ms)
        if due:
            past = starts[:due]
            del starts[:due]
            for _, number, queued in past:
                if queued.taken:
                    continue
                current_ms = self._latest_start_ms(self._queues[queued.order.variant], queued.order)
                if current_ms >= now_ms:
                    insort(starts, (current_ms, number, queued))  # the variant turned out faster than it was on arrival
                else:
                    late.append(self._take(queued))
        # A variant that turned out slower: whoever would start next is judged by what is known now.
        for queue in self._queues.values():
            while queue.waiting and (head := _head(queue)) is not None and self._latest_start_ms(queue, head.order) < now_ms:
                late.append(self._take(head))
        return late

    def next_drop_ms(self) -> float | None:
        """When drop_late has something to do next."""
        starts = self._by_latest_start
        for stale, (start_ms, _, queued) in enumerate(starts):
            if not queued.taken:
                del starts[:stale]
                return start_ms
        starts.clear()
        return None

    def take_all(self) -> list[QueuedOrder]:
        """Empty the queue: for handing back what will not be computed."""
        everything = [entry[3] for queue in self._queues.values() for entry in queue.entries if not entry[3].taken]
        return [self._take(queued) for queued in everything]

    def take(self, variant: str) -> list[QueuedOrder]:
        """Empty one variant's queue and forget it: it is no longer hosted."""
        queue = self._queues.get(variant)
        if queue is None:
            return []
        left = [self._take(entry[3]) for entry in queue.entries if not entry[3].taken]
        del self._queues[variant]
        return left

    def next_batch(self, now_ms: float, *, arriving: bool = False) -> Batch | Wait | None:
        """What the idle device computes now; `arriving`: more orders are known to be on their way. Call drop_late first."""
        variant = self._next_variant(now_ms)
        if variant is None:
            return None
        queue = self._queues[variant]
        orders, rows, earliest_ms = self._grow(queue, now_ms)
        rules = queue.rules
        if arriving and rows < rules.rows_max:
            unsafe_ms = earliest_ms - self._hop_ms - rules.p95_ms(min(rows + 1, rules.rows_max))
            if unsafe_ms > now_ms:
                for queued in orders:
                    self._push_back(queue, queued)
                return Wait(unsafe_ms)
        return self._batch(variant, orders, rows)

    def full_batch(self, start_ms: float) -> Batch | None:
        """What is next on a device that is busy until `start_ms`, where it is as large as it gets and in time; else orders rather gather, or wait."""
        variant = self._next_variant(start_ms)
        if variant is None:
            return None
        queue = self._queues[variant]
        p95_ms, rows = queue.costs_ms(), queue.efficient_rows()
        head = _head(queue)
        if queue.waiting_rows < rows or head is None:
            return None
        rows = max(rows, head.order.rows)
        if start_ms + self._hop_ms + (p95_ms.get(rows) or queue.of(rows)) > head.order.deadline_ms:
            return None
        orders, rows, _ = self._grow(queue, start_ms)
        return self._batch(variant, orders, rows)

    def _batch(self, variant: str, orders: list[QueuedOrder], rows: int) -> Batch:
        queue, self._present = self._queues[variant], variant
        for queued in orders:
            queued.taken = True
        queue.waiting -= len(orders)
        queue.waiting_rows -= rows
        self.waiting_rows -= rows
        return Batch(variant, tuple(orders), rows, queue.p95_ms.get(rows) or queue.of(rows))

    def _next_variant(self, now_ms: float) -> str | None:
        if self.shares.shared:
            return self._in_turn(now_ms)
        urgent = self._most_urgent()
        return self._present if self.change_ms and urgent not in (None, self._present) and self._may_stay(now_ms) else urgent

    def _may_stay(self, now_ms: float) -> bool:
        """Whether one more batch of the variant that is on the device leaves time to change to each of the others after it, at equal priority."""
        present = self._queues.get(self._present)
        head = _head(present) if present is not None and present.waiting else None
        if present is None or head is None:
            return False
        costs_ms, rows = present.costs_ms(), max(min(present.waiting_rows, present.efficient_rows()), head.order.rows)
        others = [queue for queue in self._queues.values() if queue is not present and queue.waiting and _head(queue) is not None]
        if any(queue.entries[0][0] < present.entries[0][0] for queue in others):
            return False
        until_ms = now_ms + (costs_ms.get(rows) or present.of(rows)) + CHANGE_ROOM * self.change_ms * len(others)
        return all(self._latest_start_ms(queue, queue.entries[0][3].order) >= until_ms for queue in others)

    def _most_urgent(self) -> str | None:
        best: tuple[tuple[int, int, int], str] | None = None
        for variant, queue in self._queues.items():
            if queue.waiting and _head(queue) is not None and (best is None or queue.entries[0][:3] < best[0]):
                best = (queue.entries[0][:3], variant)
        return best[1] if best else None

    def _in_turn(self, now_ms: float) -> str | None:
        heads: list[Head] = []
        batch_ms = 0.0
        for variant, queue in self._queues.items():
            if queue.waiting and (head := _head(queue)) is not None:
                heads.append(Head(queue.entries[0][:3], variant, self._latest_start_ms(queue, head.order)))
                rows = queue.efficient_rows()
                batch_ms = max(batch_ms, queue.p95_ms.get(rows) or queue.of(rows))
        return self.shares.choose(heads, now_ms, batch_ms) if heads else None

    def _grow(self, queue: _Queue, now_ms: float) -> tuple[list[QueuedOrder], int, int]:
        """The head, and who follows as long as everybody in the batch stays safe; a request larger than a batch runs alone.

        Latencies never fall with growing batches: where the largest one is in time, so is every smaller one.
        """
        entries, p95_ms, safe_ms = queue.entries, queue.costs_ms(), now_ms + self._hop_ms
        head = entries[0][3]
        orders, rows, earliest_ms = [head], head.order.rows, head.order.deadline_ms
        count = 1
        if len(entries) > 1:
            rows_max = queue.efficient_rows()
            largest_ms = safe_ms + (p95_ms.get(rows_max) or queue.of(rows_max))
            for _, deadline_ms, _, following in islice(entries, 1, None):
                if rows >= rows_max:
                    break
                if not following.taken:
                    grown = rows + following.order.rows
                    if deadline_ms > earliest_ms:
                        deadline_ms = earliest_ms  # noqa: PLW2901 - of the batch from here on
                    if grown > rows_max or (largest_ms > deadline_ms and safe_ms + (p95_ms.get(grown) or queue.of(grown)) > deadline_ms):
                        break
                    orders.append(following)
                    rows, earliest_ms = grown, deadline_ms
                count += 1
        del entries[:count]
        return orders, rows, earliest_ms

    def _push_back(self, queue: _Queue, queued: QueuedOrder) -> None:
        self._number += 1
        insort(queue.entries, (queued.order.priority or DEFAULT_PRIORITY, queued.order.deadline_ms, self._number, queued))

    def _latest_start_ms(self, queue: _Queue, order: WorkOrder) -> float:
        rows = order.rows
        return order.deadline_ms - self._hop_ms - (queue.costs_ms().get(rows) or queue.of(rows))

    def _take(self, queued: QueuedOrder) -> QueuedOrder:
        queued.taken = True
        queue = self._queues[queued.order.variant]
        queue.waiting -= 1
        queue.waiting_rows -= queued.order.rows
        self.waiting_rows -= queued.order.rows
        return queued


def _head(queue: _Queue) -> QueuedOrder | None:
    """Who is served next in this queue; stale entries before it are thrown away."""
    entries = queue.entries
    for stale, entry in enumerate(entries):
        if not entry[3].taken:
            del entries[:stale]
            return entry[3]
    entries.clear()
    return None


def _start_ms(entry: tuple[float, int, QueuedOrder]) -> float:
    return entry[0]

"""Late binding: which waiting request goes to which lane, in which variant, as long as lanes have room."""

from __future__ import annotations

import heapq

from broker.policy.entry import HELD, LEASED, SHADOW_PRIORITY, Commands, Entry, Send
from broker.policy.lanes import Lane, Order
from broker.policy.pool import Pool
from broker.policy.settings import DispatcherSettings
from broker.policy.waiting import Class, Waiting
from schemas.limits import Limits


def send_waiting(
    pool: Pool, orders: dict[bytes, Order], settings: DispatcherSettings, limits: Limits, now_ms: float, commands: Commands
) -> list[Entry]:
    """Fill the lanes, always the one with the least outstanding work first. Returns the requests that no lane can answer in time (state HELD).

    Whoever lost earlier attempts has its last one alone on a lane: one request that kills its workers must not take others with it to the end.
    """
    unsendable: list[Entry] = []
    open_lanes = [(lane.outstanding_ms, at, lane) for at, lane in enumerate(pool.lanes) if lane.ready and not lane.stalled and lane.room()]
    heapq.heapify(open_lanes)
    skipped: set[tuple[int, Class]] = set()
    waiting = pool.waiting
    kinds_of: dict[int, list[Class]] = {}
    while open_lanes and waiting.count:
        _, at, lane = open_lanes[0]
        kinds = kinds_of.get(at)
        if kinds is None:
            kinds = kinds_of[at] = [kind for kind in waiting.queues if _can_serve(lane, kind)]
        entry = _most_urgent(waiting, kinds, at, skipped)
        if entry is None:
            heapq.heappop(open_lanes)
            continue
        kind = (entry.priority, entry.task, entry.rung)
        last = 0 < entry.attempts >= limits.attempts_max - 1
        if lane.orders and (last or (entry.priority == SHADOW_PRIORITY and not _has_time(lane, settings, now_ms))):
            heapq.heappop(open_lanes)  # it is emptied for a last attempt; a shadow comes where next to nothing else is
            continue
        option = pool.choose(lane, entry, now_ms)
        if option is None:
            if pool.fits_somewhere(entry, now_ms):
                skipped.add((at, kind))
                continue
            waiting.pop(kind)
            waiting.forget(entry, HELD)
            unsendable.append(entry)
            continue
        waiting.pop(kind)
        waiting.forget(entry, LEASED)
        entry.attempts += 1
        entry.handed_out = True
        if entry.root is not None:
            entry.root.handed_out = True
            entry.root.attempts = max(entry.root.attempts, entry.attempts)
        work_ms = option.row_ms * entry.rows + settings.overhead_ms
        lease_ms = max(settings.lease_ms, settings.lease_factor * (lane.outstanding_ms + option.p95_ms(entry.rows)))
        order = Order(entry, lane, option.key, work_ms, entry.rows, now_ms, now_ms + lease_ms)
        orders[entry.key] = order
        lane.lend(entry.key, order)
        lane.reserved = last
        commands.sends.append(Send(entry, lane.accelerator, lane.lane, lane.worker, lane.incarnation, option.key, option.accuracy, entry.attempts))
        if lane.room():
            heapq.heapreplace(open_lanes, (lane.outstanding_ms, at, lane))
        else:
            heapq.heappop(open_lanes)
    return unsendable


def _has_time(lane: Lane, settings: DispatcherSettings, now_ms: float) -> bool:
    """Whether a shadow may join what the lane has: little work, none of it sent in this step."""
    newest = next(reversed(lane.orders.values()))
    return lane.outstanding_ms <= settings.shadow_room_ms and newest.sent_ms < now_ms


def _can_serve(lane: Lane, kind: Class) -> bool:
    _, task, rung = kind
    rungs = lane.options.get(task)
    return rungs is not None and rung < len(rungs) and bool(rungs[rung])


def _most_urgent(waiting: Waiting, kinds: list[Class], at: int, skipped: set[tuple[int, Class]]) -> Entry | None:
    """The earliest deadline of the highest priority among the classes that this lane can serve."""
    best: Entry | None = None
    for kind in kinds:
        if skipped and (at, kind) in skipped:
            continue
        head = waiting.head(kind)
        if head is not None and (
            best is None or head.priority < best.priority or (head.priority == best.priority and head.deadline_ms < best.deadline_ms)
        ):
            best = head
    return best

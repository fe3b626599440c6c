"""Late binding: which waiting request goes to which lane, in which variant, as long as lanes have room."""

from __future__ import annotations

from collections.abc import Container

from broker.policy.entry import HELD, LEASED, SHADOW_PRIORITY, Commands, Entry, Send
from broker.policy.lanes import Lane, Option, Order
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
    waiting, open_lanes, sends, attempts_last = pool.waiting, pool.open_lanes(), commands.sends, limits.attempts_max - 1
    heads: dict[Class, Entry] = {}
    skipped: set[tuple[int, Class]] = set()
    open_lanes.begin(list(waiting.queues))
    while waiting.count and (first := open_lanes.first()) is not None:
        lane, alike = first
        kind = _most_urgent(waiting, heads, alike.kinds, [kind for at, kind in skipped if at == lane.at] if skipped else ())
        if kind is None:
            if skipped:
                open_lanes.set_aside()
            else:
                open_lanes.drop_alike()
            continue
        entry = heads[kind]
        last = 0 < entry.attempts >= attempts_last
        if (lane.orders and last) or (entry.priority == SHADOW_PRIORITY and (pool.pressed or not _has_time(lane, settings, now_ms))):
            open_lanes.set_aside()  # it is emptied for a last attempt; a shadow comes where next to nothing else is, and nothing else wants to be
            continue
        option = pool.choose(lane, entry, now_ms)
        if option is None:
            if pool.fits_somewhere(entry, now_ms):
                skipped.add((lane.at, kind))
                continue
            waiting.take(kind, entry, HELD)
            del heads[kind]
            unsendable.append(entry)
            continue
        waiting.take(kind, entry, LEASED)
        del heads[kind]
        entry.attempts += 1
        entry.handed_out = True
        if entry.root is not None:
            entry.root.handed_out = True
            entry.root.attempts = max(entry.root.attempts, entry.attempts)
        lend(entry, lane, option, orders, settings, now_ms)
        lane.reserved = last
        sends.append(Send(entry, lane.accelerator, lane.lane, lane.worker, lane.incarnation, option.key, option.accuracy, entry.attempts))
        open_lanes.sent(lane)
    open_lanes.end()
    return unsendable


def lend(entry: Entry, lane: Lane, option: Option, orders: dict[bytes, Order], settings: DispatcherSettings, now_ms: float) -> None:
    """From now on the lane has it, under a lease."""
    rows, key = entry.rows, entry.key
    lease_ms = settings.lease_factor * (lane.outstanding_ms + (option.known_p95_ms.get(rows) or option.p95_ms(rows)))
    if lease_ms < settings.lease_ms:
        lease_ms = settings.lease_ms
    order = orders[key] = Order(entry, lane, option.key, option.row_ms * rows + settings.overhead_ms, rows, now_ms, now_ms + lease_ms)
    lane.lend(key, order)


def _has_time(lane: Lane, settings: DispatcherSettings, now_ms: float) -> bool:
    """Whether a shadow may join what the lane has: little work, none of it sent in this step."""
    if not lane.orders:
        return True
    newest = next(reversed(lane.orders.values()))
    return lane.outstanding_ms <= settings.shadow_room_ms and newest.sent_ms < now_ms


def _most_urgent(waiting: Waiting, heads: dict[Class, Entry], kinds: list[Class], skipped: Container[Class]) -> Class | None:
    """The class with the earliest deadline of the highest priority among those that a lane can serve; `heads`: those that are known."""
    best: Entry | None = None
    found: Class | None = None
    for kind in kinds:
        if skipped and kind in skipped:
            continue
        head = heads.get(kind)
        if head is None:
            head = waiting.head(kind)
            if head is None:
                continue
            heads[kind] = head
        if best is None or head.priority < best.priority or (head.priority == best.priority and head.deadline_ms < best.deadline_ms):
            best, found = head, kind
    return found

"""Whether a request is taken on: refused at once, with the reason and the best that could be offered, where it cannot be met."""

from __future__ import annotations

from broker.policy.entry import Entry
from broker.policy.pool import Pool
from broker.policy.settings import DispatcherSettings

Refusal = tuple[str, str]
"""(code, message)"""


def judge(entry: Entry, pool: Pool, settings: DispatcherSettings, now_ms: float) -> Refusal | None:
    """None where the request is admitted; sets its `work_ms`. Task, rung and deadline are known by now."""
    left_ms = entry.deadline_ms - now_ms
    terms = pool.known_terms.get((entry.task, entry.rung, entry.rows)) or pool.terms(entry.task, entry.rung, entry.rows)
    if terms is None:
        if left_ms > settings.worker_return_ms:
            return None
        return "overloaded", "no worker that hosts a variant at or above the floor is ready: try again with a deadline at least 2 s away"
    # Of a request on a graph its whole path's work is known already.
    work_ms = terms.work_ms
    if entry.work_ms > work_ms:
        work_ms = entry.work_ms
    else:
        entry.work_ms = work_ms
    if terms.least_ms > left_ms:
        return _infeasible(left_ms, terms.least_ms, terms.cheapest.key)
    usable_ms = left_ms * settings.slack - settings.hop_ms
    if pool.waiting.work_ms + pool.busy_ms + work_ms <= terms.capacity * usable_ms * (1.0 - settings.reserve):
        # All that waits fits before this deadline: whatever the order, nothing is displaced.
        if pool.fairness.contended:
            pool.fairness.count(entry.tenant, entry.task, entry.rung, entry.work_ms, entry.work_ms)
        return None
    return _contended(entry, pool, settings, now_ms)


def _contended(entry: Entry, pool: Pool, settings: DispatcherSettings, now_ms: float) -> Refusal | None:
    laxity = pool.laxity(entry.priority, entry.task, entry.rung, now_ms)
    room_ms = laxity.room_ms(entry.deadline_ms)
    needed_ms = entry.work_ms
    if pool.fairness.over_served(entry.tenant, entry.task, entry.rung):
        needed_ms += settings.reserve * (entry.deadline_ms - now_ms) * pool.capacity(entry.task, entry.rung)
    admitted = room_ms >= needed_ms
    if not admitted:
        pool.fairness.refused(now_ms)
    pool.fairness.count(entry.tenant, entry.task, entry.rung, entry.work_ms, entry.work_ms if admitted else 0.0)
    if admitted:
        pool.take(entry)
        return None
    return (
        "overloaded",
        f"{laxity.in_the_way_ms:.0f} ms of work are in the way; a deadline {max(needed_ms - room_ms, 1.0):.0f} ms later might be met",
    )


def _infeasible(left_ms: float, least_ms: float, key: str) -> Refusal:
    return (
        "infeasible_deadline",
        f"{left_ms:.0f} ms are left; the fastest variant at or above the floor, {key}, needs {least_ms:.0f} ms with the way there and back",
    )

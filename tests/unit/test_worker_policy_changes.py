"""Unit: a device to which going from one variant to another costs something stays with one while the others have time."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from test_worker_policy_beside import COSTS, order

from schemas.profile import latency_of
from workers.policy.batcher import Batch, Batcher, BatchRules

CHANGE_MS, HOP_MS, ONE_MS = 100.0, 8.0, 12.0
NUMBERS = itertools.count()


def batcher(change_ms: float = CHANGE_MS) -> Batcher:
    """Of three variants that take one row at a time; `t/a` is on the device."""
    made = Batcher(hop_ms=HOP_MS)
    made.change_ms = change_ms
    for variant in ("t/a", "t/b", "t/c"):
        made.host(variant, BatchRules(lambda rows: latency_of(COSTS, sorted(COSTS), rows), 1))
    add(made, "t/a", 1_000)
    assert computed(made) == "t/a"
    return made


def add(made: Batcher, variant: str, deadline_ms: float, priority: int = 5) -> None:
    queued = order(next(NUMBERS), variant, int(deadline_ms))
    queued.order = msgspec.structs.replace(queued.order, priority=priority)
    assert made.add(queued)


def computed(made: Batcher, now_ms: float = 0.0) -> str:
    batch = made.next_batch(now_ms)
    assert isinstance(batch, Batch)
    return batch.variant


def test_it_stays_until_the_others_have_no_time_left() -> None:
    made = batcher()
    deadline_ms = 500
    add(made, "t/b", deadline_ms)
    for _ in range(3):
        add(made, "t/a", 10_000)
    last_ms = deadline_ms - HOP_MS - ONE_MS - 1.5 * CHANGE_MS - ONE_MS
    assert computed(made, 0.0) == "t/a"
    assert computed(made, last_ms) == "t/a"
    assert computed(made, last_ms + 1) == "t/b"
    assert computed(made, last_ms + 1) == "t/a", "it stays with what there is"


def test_each_of_the_others_takes_a_change() -> None:
    made = batcher()
    add(made, "t/b", 300)
    add(made, "t/a", 10_000)
    assert computed(made) == "t/a"
    add(made, "t/a", 10_000)
    add(made, "t/c", 10_000)
    assert computed(made) == "t/b"


@pytest.mark.parametrize(("priority", "first"), [(5, "t/a"), (4, "t/b"), (6, "t/a")])
def test_a_higher_priority_is_worth_a_change(priority: int, first: str) -> None:
    made = batcher()
    add(made, "t/b", 5_000, priority)
    add(made, "t/a", 10_000)
    assert computed(made) == first


def test_where_changes_cost_nothing_the_earliest_deadline_decides() -> None:
    made = batcher(change_ms=0.0)
    add(made, "t/b", 5_000)
    add(made, "t/a", 10_000)
    assert computed(made) == "t/b"

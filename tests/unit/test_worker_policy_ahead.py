"""Unit: a device that is handed the next batch while it computes one."""

from __future__ import annotations

import itertools

import pytest
from test_worker_policy_beside import Desk, order, wanted

from workers.computation import Computed, ComputedBatch
from workers.policy.batcher import Batch
from workers.policy.device import DevicePolicy
from workers.policy.hosting import Unload

NUMBERS = itertools.count()
FULL, FULL_MS = 8, 48.0
"""Rows of an efficient batch, and their 95th percentile; a batch leaves 8 ms for the way back."""


def busy(*, at_once: int = 2, names: tuple[str, ...] = ("a",)) -> tuple[DevicePolicy, Batch]:
    """A device that has computed a full batch of `a` since 0."""
    desk = Desk(beside=False, at_once=at_once)
    desk.policy.plan(1, wanted(*names), 0.0)
    desk.settle()
    take(desk.policy, FULL)
    first = desk.policy.decide(0.0).start
    assert isinstance(first, Batch)
    return desk.policy, first


def take(policy: DevicePolicy, count: int, variant: str = "t/a", deadline_ms: int = 10_000) -> None:
    for _ in range(count):
        assert not policy.accept(order(next(NUMBERS), variant, deadline_ms))


def test_a_full_batch_is_handed_over_early_and_a_third_one_is_not() -> None:
    policy, first = busy()
    take(policy, 2 * FULL)
    second = policy.decide(1.0).start
    assert isinstance(second, Batch)
    assert second.rows == FULL
    assert policy.decide(1.0).start is None
    policy.computed(None, 0, 0.0, first)
    assert isinstance(policy.decide(2.0).start, Batch), "the second one computes, and there is room again"
    assert policy.running


def test_orders_gather_while_they_do_not_fill_a_batch() -> None:
    policy, _ = busy()
    take(policy, FULL - 1)
    assert policy.decide(1.0).start is None
    take(policy, 1, deadline_ms=20_000)
    assert isinstance(policy.decide(1.0).start, Batch)


def test_one_at_a_time_stays_one_at_a_time() -> None:
    policy, _ = busy(at_once=1)
    take(policy, 3 * FULL)
    assert policy.decide(1.0).start is None
    policy.computed(None, 0, 0.0)
    assert isinstance(policy.decide(1.0).start, Batch)


@pytest.mark.parametrize(("deadline_ms", "early"), [(2 * FULL_MS + 8, True), (2 * FULL_MS + 7, False)])
def test_what_might_be_late_behind_the_batch_in_front_waits_for_its_end(deadline_ms: float, early: bool) -> None:
    policy, first = busy()
    take(policy, FULL, deadline_ms=int(deadline_ms))
    assert isinstance(policy.decide(1.0).start, Batch) is early
    if not early:
        policy.computed(None, 0, 0.0, first)
        assert isinstance(policy.decide(30.0).start, Batch)


def test_the_most_urgent_variant_is_not_passed_over_for_a_fuller_one() -> None:
    policy, _ = busy(names=("a", "b"))
    take(policy, FULL)
    take(policy, 1, "t/b", deadline_ms=5_000)
    assert policy.decide(1.0).start is None


def test_loading_and_unloading_find_the_device_free() -> None:
    policy, first = busy(names=("a", "b"))
    policy.plan(2, wanted("a"), 0.0)
    take(policy, 2 * FULL)
    assert policy.decide(1.0).start is None, "the hosting policy has to be asked first"
    policy.computed(None, 0, 0.0, first)
    second = policy.decide(1.0).start
    assert isinstance(second, Batch), "dispatchers that have not seen the plan still send"
    policy.look()
    assert policy.decide(5_000.0).start is None
    policy.computed(None, 0, 0.0, second)
    assert isinstance(policy.decide(5_000.0).start, Unload)
    assert policy.decide(5_000.0).start is None, "the unload has the device"


def test_each_batch_is_charged_to_its_own_variant() -> None:
    policy, first = busy(names=("a", "b"))
    policy.plan(2, wanted("a", "b"), 0.0, {"t/a": 0.5, "t/b": 0.5})
    policy.computed(None, 0, 0.0, first)
    take(policy, FULL)
    take(policy, FULL, "t/b")
    policy.look()
    one = policy.decide(1.0).start
    other = policy.decide(1.0).start
    assert {one.variant, other.variant} == {"t/a", "t/b"}
    charged: list[tuple[str, float]] = []
    policy.queue.shares.charge = lambda variant, spent_ms: charged.append((variant, spent_ms))
    policy.computed(None, 0, 7.0, other)
    policy.computed(None, 0, 5.0, one)
    assert charged == [(other.variant, 7.0), (one.variant, 5.0)]
    assert not policy.running


def test_what_a_batch_waited_for_the_one_in_front_is_not_its_cost() -> None:
    result = Computed(None, computed_ms=9.0)
    batch = ComputedBatch([result], 8, spent_ms=10.0, ended_s=1.020)
    assert batch.wait_for(1.014) == pytest.approx(4.0)
    assert batch.spent_ms == pytest.approx(6.0)
    assert result.computed_ms == pytest.approx(6.0)
    alone = ComputedBatch([Computed(None, computed_ms=9.0)], 8, spent_ms=10.0, ended_s=2.0)
    assert alone.wait_for(1.020) == 0.0
    assert (alone.spent_ms, alone.results[0].computed_ms) == (10.0, 9.0)
    overtaken = ComputedBatch([], 8, spent_ms=10.0, ended_s=3.0)
    overtaken.wait_for(3.5)
    assert overtaken.spent_ms == pytest.approx(0.0)

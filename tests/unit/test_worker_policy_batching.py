"""What the batcher, the estimator and the credits decide."""

from __future__ import annotations

import random
from typing import Any

import pytest

from schemas.profile import Latency
from schemas.work import WORK_VERSION, WorkOrder
from workers.policy.batcher import Batch, Batcher, BatchRules, QueuedOrder, Wait
from workers.policy.credits import credits_of
from workers.policy.estimator import REFRESH_SAMPLES, TAIL_SAMPLES, WINDOW_SAMPLES, LatencyEstimator
from workers.policy.progress import LaneProgress


def linear(fixed_ms: float, row_ms: float) -> Any:
    """Latency of a device that takes this for a call and this for each row; p95 is a tenth more."""
    return lambda rows: Latency(fixed_ms + row_ms * rows, 1.1 * (fixed_ms + row_ms * rows))


def queued(request_id: str, *, deadline_ms: int = 1_000, rows: int = 1, variant: str = "t/v", attempt: int = 1, priority: int = 0) -> QueuedOrder:
    order = WorkOrder(WORK_VERSION, "e", "main", variant, 0.9, "w", 1, 0, 0, deadline_ms, rows, attempt, 1, priority)
    return QueuedOrder(request_id, request_id, order, b"", "application/json", 0, 0)


def batcher(*orders: QueuedOrder, rows_max: int = 8, latency: Any = None, sizes: tuple[int, ...] = ()) -> Batcher:
    made = Batcher(hop_ms=8.0)
    for variant in ("t/v", "t/w"):
        made.host(variant, BatchRules(latency or linear(10.0, 1.0), rows_max, sizes))
    for order in orders:
        assert made.add(order)
    return made


def ids(orders: Any) -> list[str]:
    return [order.id for order in orders]


def start(made: Batcher, now_ms: float = 0.0, *, arriving: bool = False) -> list[str]:
    decision = made.next_batch(now_ms, arriving=arriving)
    assert isinstance(decision, Batch)
    return ids(decision.orders)


def test_an_idle_device_starts_what_is_there_at_once() -> None:
    made = batcher(queued("a"))
    assert start(made) == ["a"]
    assert made.next_batch(0.0) is None
    assert made.waiting_rows == 0


def test_earliest_deadline_first_and_full_batches() -> None:
    made = batcher(*(queued(str(deadline), deadline_ms=deadline) for deadline in (900, 300, 700, 500)), rows_max=3)
    assert start(made) == ["300", "500", "700"]
    assert start(made) == ["900"]


def test_priority_goes_before_the_deadline_and_zero_is_the_middle() -> None:
    made = batcher(
        queued("low", deadline_ms=200, priority=9), queued("unset", deadline_ms=900), queued("high", deadline_ms=950, priority=1), rows_max=1
    )
    assert [start(made)[0] for _ in range(3)] == ["high", "unset", "low"]


def test_the_variant_whose_head_is_most_urgent_goes_first() -> None:
    made = batcher(queued("a", deadline_ms=900), queued("b", deadline_ms=300, variant="t/w"), queued("c", deadline_ms=800, variant="t/w"))
    assert start(made) == ["b", "c"]
    assert start(made) == ["a"]


def test_a_batch_grows_only_while_the_earliest_deadline_stays_safe() -> None:
    # p95 of 2 rows: 13.2 ms, of 3 rows: 14.3 ms; with the hop, 22 ms leave room for two.
    made = batcher(queued("a", deadline_ms=22), queued("b"), queued("c"))
    assert start(made) == ["a", "b"]
    assert start(made) == ["c"]


def test_a_follower_in_greater_hurry_ends_the_batch() -> None:
    made = batcher(queued("a", priority=1), queued("b", deadline_ms=21))
    assert start(made) == ["a"]


def test_what_is_known_to_arrive_is_waited_for_until_the_deadline_would_be_unsafe() -> None:
    made = batcher(queued("a", deadline_ms=100))
    decision = made.next_batch(0.0, arriving=True)
    assert decision == Wait(pytest.approx(100 - 8 - 1.1 * 12))
    assert made.waiting_rows == 1
    made.add(queued("b", deadline_ms=200))
    assert start(made, decision.until_ms, arriving=True) == ["a", "b"]


def test_a_full_batch_waits_for_nobody() -> None:
    made = batcher(queued("a"), queued("b"), rows_max=2)
    assert start(made, arriving=True) == ["a", "b"]


def test_what_cannot_finish_is_dropped_before_it_costs_anything() -> None:
    made = batcher(queued("past", deadline_ms=-5), queued("hopeless", deadline_ms=20), queued("just", deadline_ms=21), queued("later"))
    assert ids(made.drop_late(0.5)) == ["past", "hopeless"]
    assert made.waiting_rows == 2
    assert made.next_drop_ms() == pytest.approx(21 - 8 - 12.1)
    assert ids(made.drop_late(1.0)) == ["just"]
    assert start(made) == ["later"]
    assert made.next_drop_ms() is None


def test_a_variant_that_turned_out_faster_keeps_its_orders() -> None:
    made = batcher(queued("a", deadline_ms=25))
    made.host("t/v", BatchRules(linear(1.0, 1.0), 8))
    assert made.drop_late(10.0) == []
    assert start(made, 10.0) == ["a"]


def test_a_variant_that_turned_out_slower_drops_heads_that_cannot_finish() -> None:
    made = batcher(queued("a", deadline_ms=40), queued("b", deadline_ms=45), queued("c", deadline_ms=500))
    made.host("t/v", BatchRules(linear(50.0, 1.0), 8))
    assert ids(made.drop_late(0.0)) == ["a", "b"]
    assert start(made) == ["c"]


def test_an_id_is_queued_once_and_keeps_the_higher_attempt() -> None:
    made = batcher(queued("a"))
    assert not made.add(queued("a", attempt=2))
    assert made.known("a").order.attempt == 2
    assert not made.add(queued("a", attempt=1))
    assert made.known("a").order.attempt == 2
    assert start(made) == ["a"]
    assert not made.add(queued("a", attempt=3))
    assert made.waiting_rows == 0
    made.finish(queued("a"))
    assert made.add(queued("a"))


def test_a_later_attempt_for_another_variant_changes_what_is_said_and_not_what_is_computed() -> None:
    made = batcher(queued("a", rows=2))
    assert not made.add(queued("a", attempt=2, variant="t/w", rows=5))
    known = made.known("a")
    assert (known.order.attempt, known.order.variant, known.order.rows) == (2, "t/v", 2)
    assert start(made) == ["a"]
    assert (made.waiting("t/v"), made.waiting("t/w"), made.waiting_rows) == (0, 0, 0)


def test_a_request_larger_than_a_batch_runs_alone() -> None:
    made = batcher(queued("big", rows=20, deadline_ms=900), queued("small", deadline_ms=950))
    decision = made.next_batch(0.0)
    assert ids(decision.orders) == ["big"]
    assert decision.rows == 20
    assert start(made) == ["small"]


def test_rows_count_against_the_limit() -> None:
    made = batcher(queued("a", rows=5), queued("b", rows=4), rows_max=8)
    assert start(made) == ["a"]
    assert start(made) == ["b"]


def test_handing_back_and_unloading_empty_the_queue() -> None:
    made = batcher(queued("a"), queued("b", variant="t/w"), queued("c"))
    assert made.waiting("t/v") == 2
    assert ids(made.take("t/v")) == ["a", "c"]
    assert not made.hosts("t/v")
    assert made.waiting("t/v") == 0
    assert made.take("t/v") == []
    assert ids(made.take_all()) == ["b"]
    assert made.waiting_rows == 0
    assert made.drop_late(10_000.0) == []
    assert made.next_batch(0.0) is None


def test_padding_goes_to_the_sizes_of_the_backend() -> None:
    rules = BatchRules(linear(1.0, 1.0), 6, (1, 2, 4, 8))
    assert [rules.padded(rows) for rows in (1, 2, 3, 5, 6, 7, 12, 13)] == [1, 2, 4, 8, 8, 9, 16, 17]
    assert BatchRules(linear(1.0, 1.0), 6).padded(5) == 5
    assert rules.p95_ms(3) == pytest.approx(1.1 * 5)


def test_batches_stop_growing_where_the_rate_does() -> None:
    assert BatchRules(linear(0.0, 2.0), 32).efficient_rows() == 4
    assert BatchRules(linear(20.0, 0.1), 32).efficient_rows() == 32
    assert BatchRules(linear(20.0, 0.1), 24, (1, 8, 16, 24, 32)).efficient_rows() == 24
    assert start(batcher(*(queued(str(n)) for n in range(9)), rows_max=32, latency=linear(0.0, 2.0))) == ["0", "1", "2", "3"]


PROFILE = {1: Latency(1.0, 1.2, 100), 4: Latency(2.0, 2.4, 100), 16: Latency(6.0, 7.2, 100)}


def test_an_estimator_begins_with_the_profile() -> None:
    made = LatencyEstimator(PROFILE)
    assert made.estimates == PROFILE
    assert made.at(4) == PROFILE[4]
    assert made.at(10).p50_ms == pytest.approx(4.0)
    assert made.at(32).p95_ms == pytest.approx(14.4)
    assert made.at(33).p50_ms == pytest.approx(13.0)
    with pytest.raises(ValueError, match="profile"):
        LatencyEstimator({})


def test_a_device_that_is_slower_than_its_profile_is_found_out() -> None:
    made = LatencyEstimator(PROFILE)
    for _ in range(200):
        made.observe(4, 4.0)
    assert made.at(4).p50_ms == pytest.approx(4.0, rel=0.15)
    assert made.at(4).p95_ms == pytest.approx(4.0, rel=0.15)
    assert made.at(16).p50_ms > 10.0, "other sizes follow"
    for _ in range(200):
        made.observe(4, 2.0)
    assert made.at(4).p50_ms == pytest.approx(2.0, rel=0.15), "and it comes back"


def test_a_few_disturbed_batches_do_not_move_the_estimate() -> None:
    random.seed(1)
    made = LatencyEstimator(PROFILE)
    for number in range(WINDOW_SAMPLES * 2):
        made.observe(1, 100.0 if number % 40 == 0 else random.uniform(0.9, 1.1))
    assert made.at(1).p50_ms == pytest.approx(1.0, rel=0.1)
    assert made.at(1).p95_ms < 1.5


def test_few_samples_weigh_little_and_estimates_never_fall_with_the_batch() -> None:
    made = LatencyEstimator(PROFILE)
    for _ in range(REFRESH_SAMPLES):
        made.observe(1, 50.0)
    assert made.at(1).p50_ms < 30.0
    assert made.at(1).p50_ms <= made.at(4).p50_ms <= made.at(16).p50_ms
    assert made.at(1).p95_ms >= made.at(1).p50_ms


def test_a_profile_of_a_busy_machine_in_which_larger_batches_are_faster_is_no_reason_for_nonsense() -> None:
    made = LatencyEstimator({1: Latency(9.0, 9.5, 2), 2: Latency(5.0, 8.0, 2), 4: Latency(4.0, 12.0, 2)})
    assert made.estimates == {1: Latency(9.0, 9.5, 2), 2: Latency(9.0, 9.5, 2), 4: Latency(9.0, 12.0, 2)}
    for _ in range(64):
        made.observe(32, 40.0)
    assert 1.0 < made.at(32).p50_ms < 400.0


def test_a_small_batch_that_costs_more_than_a_large_one_raises_both() -> None:
    made = LatencyEstimator({1: Latency(1.0, 1.2, 100), 16: Latency(1.1, 1.3, 100)})
    for _ in range(WINDOW_SAMPLES * 2):
        made.observe(1, 50.0)
        made.observe(16, 1.1)
    assert made.at(1).p50_ms > 30.0
    assert made.at(16).p50_ms == made.at(1).p50_ms
    assert made.at(16).p95_ms == made.at(1).p95_ms


def test_between_sizes_and_beyond_them_measurements_count_by_ratio() -> None:
    made = LatencyEstimator(PROFILE)
    for _ in range(REFRESH_SAMPLES * 10):
        made.observe(10, 8.0)
        made.observe(20, 2.0 * 22 / 3)
    assert made.at(16).p50_ms == pytest.approx(12.0, rel=0.2)


@pytest.mark.parametrize("actual_ms", [100.0, 0.05])
def test_a_guess_gives_way_to_the_first_few_calls(actual_ms: float) -> None:
    made = LatencyEstimator({1: Latency(1.0, 3.0)})
    for _ in range(2):
        made.observe(1, actual_ms)
    assert made.at(1).p50_ms == 1.0
    made.observe(1, actual_ms)
    assert made.at(1).p50_ms == pytest.approx(actual_ms, rel=0.5, abs=0.3)
    for _ in range(5):
        made.observe(1, actual_ms)
    assert made.at(1).p50_ms == pytest.approx(actual_ms, rel=0.1, abs=0.05)
    assert made.at(1).p95_ms == pytest.approx(3 * made.at(1).p50_ms), "too few for a tail of its own"
    for _ in range(TAIL_SAMPLES):
        made.observe(1, actual_ms)
    assert made.at(1).p95_ms == pytest.approx(actual_ms, rel=0.15, abs=0.15)


def test_a_slow_first_call_is_not_believed() -> None:
    made = LatencyEstimator({1: Latency(1.0, 3.0)})
    made.observe(1, 800.0)
    for _ in range(3):
        made.observe(1, 2.0)
        assert made.at(1).p95_ms < 10.0


def test_a_python_task_runs_each_request_alone_and_whole() -> None:
    rules = BatchRules(LatencyEstimator({1: Latency(1.0, 3.0)}).at, 1, (), True)
    assert (rules.padded(1), rules.padded(500), rules.p95_ms(500), rules.efficient_rows()) == (1, 1, 3.0, 1)
    made = Batcher(hop_ms=8.0)
    made.host("t/v", rules)
    for order in (queued("a", rows=16), queued("b", rows=1), queued("c", rows=1)):
        made.add(order)
    assert made.drop_late(988.0) == []
    assert [start(made, arriving=True) for _ in range(3)] == [["a"], ["b"], ["c"]]


def test_credits_hold_two_efficient_batches_or_the_bridging_time() -> None:
    slow, fast, batching = (BatchRules(linear(*cost), 32) for cost in ((0.0, 2.0), (0.0, 0.01), (20.0, 0.1)))
    assert credits_of([], row_ms=None, hold_ms=40.0, rows_max=256) == 0
    assert credits_of([slow], row_ms=None, hold_ms=40.0, rows_max=256) == 19
    assert credits_of([slow, fast], row_ms=None, hold_ms=40.0, rows_max=256) == 19, "nothing ran yet: the slowest counts"
    assert credits_of([slow, fast], row_ms=0.02, hold_ms=40.0, rows_max=256) == 256
    assert credits_of([slow, fast], row_ms=50.0, hold_ms=40.0, rows_max=256) == 8
    assert credits_of([batching], row_ms=None, hold_ms=40.0, rows_max=256) == 64
    assert credits_of([batching], row_ms=None, hold_ms=40.0, rows_max=16) == 16


def test_the_watermark_passes_finished_offsets_without_a_gap() -> None:
    progress = LaneProgress(5)
    assert progress.watermark() == 5
    for offset in (7, 8, 10):
        progress.read(offset)
    progress.finish(8)
    assert progress.watermark() == 7
    progress.finish(7)
    assert progress.watermark() == 10
    progress.finish(10)
    assert progress.watermark() == 11

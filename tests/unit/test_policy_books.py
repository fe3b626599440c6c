"""The small books that the dispatcher keeps: watermarks, deadlines, queues, ladders, lanes' speed, fairness; their bounds and edges."""

from __future__ import annotations

import pytest
from policy_stage import START_MS, catalog, dispatcher, report, request

from broker.policy import events as ev
from broker.policy.entry import Entry, State
from broker.policy.expiry import BUCKET_MS, ExpiryWheel
from broker.policy.fairness import REST, Fairness
from broker.policy.ladder import Ladder
from broker.policy.lanes import SPEED_MAX, SPEED_MIN, Lane, Order
from broker.policy.tuning import Rung, allocate, hull
from broker.policy.waiting import Waiting
from broker.policy.watermark import SPAN_MAX, TRIM_BYTES, Watermark, restore
from schemas.plan import Binding
from schemas.profile import Latency
from schemas.telemetry import HostedVariant


def waiting_entry(name: str, deadline_ms: int, work_ms: float = 1.0) -> Entry:
    entry = request(name)
    entry.task, entry.deadline_ms, entry.work_ms, entry.priority = "fashion", deadline_ms, work_ms, 5
    return entry


# -- watermark


def test_the_watermark_waits_for_the_one_that_is_not_finished() -> None:
    watermark = Watermark(10)
    for offset in (12, 11, 14):
        watermark.finish(offset)
    assert (watermark.low, watermark.finished_above) == (10, 3)
    watermark.finish(10)
    assert (watermark.low, watermark.finished_above) == (13, 1)
    watermark.finish(10)
    assert watermark.low == 13, "finished twice is finished once"


def test_offsets_that_are_finished_together_are_finished_as_one_by_one() -> None:
    together, single = Watermark(10), Watermark(10)
    for offsets in ([10, 11], [13, 15, 13], [9, 12], [], [18, 14, 16, 17]):
        together.finish_all(offsets)
        for offset in offsets:
            single.finish(offset)
        assert (together.low, together.finished_above) == (single.low, single.finished_above)
        assert together.metadata(0, 4_000) == single.metadata(0, 4_000)
    assert together.low == 19


def test_a_request_that_stays_for_ever_costs_a_byte_for_each_that_passes_it() -> None:
    watermark = Watermark()
    for offset in range(1, 3 * TRIM_BYTES):
        watermark.finish(offset)
    assert watermark.finished_above == 3 * TRIM_BYTES - 1
    assert len(watermark.metadata(0, 4_000)) < 600, "a run costs next to nothing in the commit"
    watermark.finish(0)
    assert (watermark.low, watermark.finished_above) == (3 * TRIM_BYTES, 0)


def test_what_is_long_finished_is_forgotten() -> None:
    watermark = Watermark()
    last = 4 * TRIM_BYTES
    watermark.finish(last)
    for offset in range(TRIM_BYTES):
        watermark.finish(offset)
    watermark.finish(TRIM_BYTES + 1)
    watermark.finish(TRIM_BYTES)
    assert watermark.low == TRIM_BYTES + 2
    assert watermark.is_finished(last)
    assert len(watermark._above) <= last - TRIM_BYTES + 1


def test_what_is_remembered_starts_at_the_watermark() -> None:
    watermark = Watermark()
    for offset in range(100_000):
        watermark.finish(offset)
    watermark.finish(100_001)
    assert len(watermark._above) == 2


def test_metadata_speaks_of_no_more_than_it_has_time_and_room_for() -> None:
    watermark = Watermark()
    for offset in range(1, SPAN_MAX + 5_000, 2):
        watermark.finish(offset)
    whole, _ = restore(0, watermark.metadata(5, 1 << 20))
    assert whole.finished_above == SPAN_MAX // 2
    generator = 12345
    noisy = Watermark()
    for offset in range(1, 60_000):
        generator = generator * 1103515245 + 12345 & 0x7FFFFFFF
        if generator & 65536:
            noisy.finish(offset)
    text = noisy.metadata(5, 4_000)
    assert len(text) <= 4_000
    cut, since_ms = restore(0, text)
    assert since_ms == 5
    assert 5_000 < cut.finished_above < noisy.finished_above
    assert restore(0, noisy.metadata(5, 4))[0].finished_above == 0, "no room at all"


@pytest.mark.parametrize("metadata", ["", "hello", "2:5:", "1:x:", "1:²:", "1:5:%%%", "1:5:AAAA", "1:5:eJ", "1:5"])
def test_metadata_that_cannot_be_read_loses_only_what_it_knew(metadata: str) -> None:
    watermark, since_ms = restore(40, metadata)
    assert (watermark.low, watermark.finished_above) == (40, 0)
    assert since_ms in (0, 5)


def test_offsets_that_the_log_does_not_have_are_finished() -> None:
    watermark = Watermark(5)
    watermark.skip(7, 100_000)
    assert (watermark.low, watermark.is_finished(6), watermark.is_finished(99_999)) == (5, False, True)
    watermark.finish(5)
    watermark.finish(6)
    assert watermark.low == 100_000
    watermark.skip(100_000, 200_000)
    watermark.skip(100, 200)
    assert watermark.low == 200_000


# -- deadlines and queues


def test_deadlines_that_come_and_go_leave_no_trail() -> None:
    wheel = ExpiryWheel()
    stays = waiting_entry("stays", 10**9)
    wheel.add(stays, stays.deadline_ms)
    for number in range(5_000):
        entry = waiting_entry(str(number), number * BUCKET_MS)
        wheel.add(entry, entry.deadline_ms)
        wheel.remove(entry, entry.deadline_ms)
    assert len(wheel._order) < 1_100
    assert wheel.next_ms() == 10**9 + BUCKET_MS
    assert wheel.due(10**9 + BUCKET_MS) == [stays]
    assert wheel.next_ms() is None


def test_requests_that_are_answered_while_they_wait_are_dropped_from_the_queue() -> None:
    waiting = Waiting()
    entries = [waiting_entry(str(at), 1_000 + at) for at in range(3_000)]
    for entry in entries:
        waiting.push(entry)
    for entry in entries[1:]:
        waiting.forget(entry, State.DONE)
    waiting.compact()
    assert [entry.key for entry in waiting.entries()] == [b"0"]
    assert sum(queue.size for queue in waiting.queues.values()) == 1
    assert waiting.head((5, "fashion", 0)) is entries[0]


def test_an_empty_queue_has_no_rounding_left() -> None:
    waiting = Waiting()
    entries = [waiting_entry(str(at), at, 0.1 * at) for at in range(50)]
    for entry in entries:
        waiting.push(entry)
    for entry in reversed(entries):
        waiting.forget(entry, State.DONE)
    assert (waiting.count, waiting.work_ms, waiting.deadline_sum_ms, waiting.due, waiting.rows) == (0, 0.0, 0.0, {}, {})


# -- ladders and mixes


def test_a_rung_is_the_least_accurate_variant_that_meets_the_floor() -> None:
    ladder = Ladder(catalog().tasks["fashion"])
    assert [ladder.rung(floor) for floor in (0.0, 0.8427, 0.84271, 0.9001, 0.9313, 0.9338, 0.94)] == [0, 0, 1, 1, 2, 3, 4]
    assert ladder.rung(0.9001 + 1e-12) == 1, "a floor that was computed is not held to its last digit"
    for step in range(3_000):
        ladder.rung(step / 3_000)
    assert len(ladder._rungs) <= 1_024, "clients choose floors: what is remembered of them is bounded"
    assert ladder.rung(2_999 / 3_000) == 4


def test_a_variant_that_costs_more_and_is_no_better_is_not_on_the_hull() -> None:
    cheap, worse, better, same = Rung("a", 0.8, 1.0), Rung("b", 0.7, 2.0), Rung("c", 0.9, 3.0), Rung("d", 0.9, 4.0)
    assert hull([same, better, worse, cheap]) == [cheap, better]


def test_accuracy_goes_where_a_millisecond_buys_most() -> None:
    low, high = [Rung("a", 0.5, 1.0), Rung("b", 0.9, 2.0)], [Rung("b", 0.9, 2.0), Rung("c", 0.95, 4.0)]
    mixes = allocate({("t", 0): 10.0, ("t", 1): 10.0}, {("t", 0): low, ("t", 1): high}, 45.0)
    assert (mixes["t", 0].lower.key, mixes["t", 0].upper_part) == ("b", 0.0)
    assert (mixes["t", 1].lower.key, mixes["t", 1].upper.key, mixes["t", 1].upper_part) == ("b", "c", pytest.approx(0.25))
    assert allocate({("t", 0): 10.0}, {("t", 0): []}, 45.0) == {}, "nobody can answer these"


# -- lanes


def lane_of(**fields: object) -> Lane:
    lane = Lane(report("w0", **fields))
    lane.window_ms = 25.0
    said = report("w0", **fields)
    binding = Binding(worker="w0", accelerator="cpu", lane=0, variants=tuple(said.variants))
    lane.observe(said, binding, {"fashion": Ladder(catalog().tasks["fashion"])}, 4_096)
    return lane


def order(lane: Lane, name: str, now_ms: float, work_ms: float = 1.0) -> Order:
    return Order(request(name), lane, "fashion/cnn", work_ms, 1, now_ms, now_ms + 1_000.0)


def serve(lane: Lane, span_ms: float, *, rate: float, start_ms: float = START_MS) -> None:
    """Keep the lane full while it does `rate` milliseconds of work a millisecond."""
    for at in range(30):
        lane.lend(b"%d" % at, order(lane, str(at), start_ms))
    done, now_ms = 0, start_ms
    while now_ms < start_ms + span_ms:
        now_ms += 1.0 / rate
        oldest = lane.orders[b"%d" % done]
        lane.release(b"%d" % done)
        lane.answered(oldest, now_ms)
        lane.lend(b"%d" % (done + 30), order(lane, str(done), now_ms))
        done += 1


@pytest.mark.parametrize(("rate", "speed"), [(0.5, 0.5), (1.2, 1.2), (9.0, SPEED_MAX), (0.01, SPEED_MIN)])
def test_a_lane_that_is_kept_full_shows_its_speed(rate: float, speed: float) -> None:
    lane = lane_of()
    serve(lane, 8_000.0, rate=rate)
    assert lane.speed == pytest.approx(speed, rel=0.05)


def test_the_part_of_a_lane_shows_the_speed_of_the_whole() -> None:
    lane = lane_of()
    lane.share = 0.5
    serve(lane, 5_000.0, rate=0.4)
    assert lane.speed == pytest.approx(0.8, rel=0.05)


def test_what_was_learned_in_a_rush_fades_while_there_is_time() -> None:
    lane = lane_of()
    serve(lane, 5_000.0, rate=0.5)
    for key, one in list(lane.orders.items()):
        lane.release(key)
        lane.answered(one, START_MS + 5_100.0)
    serve(lane, 1.0, rate=1.0, start_ms=START_MS + 60_000.0)
    assert lane.speed == pytest.approx(1.0, abs=0.02)


def test_orders_that_are_taken_back_say_nothing_about_the_speed() -> None:
    lane = lane_of()
    serve(lane, 200.0, rate=1.0)
    lane.interrupted()
    first = next(iter(lane.orders))
    one = lane.orders[first]
    lane.release(first)
    lane.answered(one, START_MS + 50_000.0)
    assert lane.speed == 1.0, "50 s without an answer were no 50 s of work"


def test_an_order_that_is_lent_twice_counts_once() -> None:
    lane = lane_of()
    lane.lend(b"a", order(lane, "a", START_MS, 3.0))
    lane.lend(b"a", order(lane, "a", START_MS, 4.0))
    assert (lane.outstanding_ms, lane.outstanding_rows) == (4.0, 1)
    assert lane.release(b"unknown") is None


def test_options_are_those_that_are_worth_their_cost() -> None:
    said = {
        "fashion/linear": HostedVariant(state="ready", latency={1: Latency(5.0, 6.0)}),
        "fashion/cnn": HostedVariant(state="ready", latency={1: Latency(1.0, 2.0), 8: Latency(4.0, 5.0), 64: Latency(6.0, 7.0)}),
        "fashion/wide": HostedVariant(state="draining", latency={1: Latency(1.0, 2.0)}),
    }
    lane = lane_of(variants=said, batch_size_max=8)
    (front, *_) = lane.options["fashion"]
    assert [option.key for option in front] == ["fashion/cnn"], "linear costs more and is worse, wide is on its way out"
    assert front[0].row_ms == 0.5, "the best batch that the worker takes"
    assert front[0].p95_ms(8) == 5.0
    assert [len(options) for options in lane.options["fashion"]] == [1, 1, 0, 0]
    lane.drop_variant("fashion/cnn")
    assert [len(options) for options in lane.options["fashion"]] == [0, 0, 0, 0]


# -- fairness


def test_tenants_beyond_the_limit_share_an_account() -> None:
    fairness = Fairness(tenants_max=2)
    for tenant in ("a", "b", "c", "d"):
        fairness.count(tenant, "t", 0, 1.0, 1.0)
    assert set(fairness._tenants) == {"a", "b", REST}
    assert fairness._tenants[REST].offered_ms == 2.0


def test_the_past_fades_and_is_forgotten() -> None:
    fairness = Fairness(tenants_max=9)
    fairness.fade(1_000.0)
    fairness.refused(1_000.0)
    fairness.count("a", "t", 0, 8.0, 8.0)
    fairness.count("b", "t", 0, 8.0, 0.0)
    fairness.fade(1_900.0)
    assert fairness.contended
    assert fairness.over_served("a", "t", 0)
    assert not fairness.over_served("b", "t", 0)
    assert not fairness.over_served("unknown", "t", 0)
    fairness.fade(60_000.0)
    assert (fairness._tenants, fairness._flows, fairness.contended) == ({}, {}, False)
    assert not fairness.over_served("a", "t", 0)


def test_inside_a_tenant_every_floor_gets_the_same_part() -> None:
    fairness = Fairness(tenants_max=9)
    fairness.fade(1_000.0)
    fairness.count("a", "t", 0, 100.0, 80.0)
    fairness.count("a", "t", 1, 10.0, 2.0)
    assert fairness.over_served("a", "t", 0)
    assert not fairness.over_served("a", "t", 1)


# -- retuning


def test_reports_do_not_distort_the_measured_rates() -> None:
    """A hundred reports a second: rates are counted over time, not from report to report."""
    policy = dispatcher("w0")
    for at in range(600):
        now_ms = START_MS + at * 5.0
        if at % 2:
            policy.step(ev.TelemetryObserved(report("w0", waiting_rows=1)), now_ms)
        policy.step(ev.Arrived(0, [request(f"{at}", now_ms, offset=at, floor=0.9338)]), now_ms)
        policy.step(ev.Answered(0, [b"%d" % at]), now_ms + 3.0)
    ((_, rate),) = policy.fleet.pools[0]._rates.items()
    assert rate == pytest.approx(0.2, rel=0.15), "one in 5 ms"

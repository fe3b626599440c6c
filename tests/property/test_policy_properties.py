"""Parts of the dispatcher's policy against naive versions of themselves."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.policy.entry import Entry, State
from broker.policy.expiry import BUCKET_MS as EXPIRY_BUCKET_MS
from broker.policy.expiry import ExpiryWheel
from broker.policy.fairness import _max_min
from broker.policy.laxity import Laxity
from broker.policy.recent import RecentIds
from broker.policy.tuning import Group, Rung, allocate, hull
from broker.policy.waiting import BUCKET_MS, Waiting
from broker.policy.watermark import Watermark, restore


def entry(key: int, deadline_ms: int, work_ms: float = 1.0, priority: int = 5, rung: int = 0) -> Entry:
    made = Entry(b"%d" % key, 0, key, 0, "e", None, None, None, priority, "", 1, 1, None)
    made.deadline_ms, made.work_ms, made.task, made.rung = deadline_ms, work_ms, "t", rung
    return made


# -- watermark


@given(
    st.integers(0, 1_000),
    st.lists(st.tuples(st.sampled_from(["finish", "skip"]), st.integers(0, 120), st.integers(1, 30)), max_size=60),
    st.integers(14, 400),
    st.integers(0, 10**13),
)
def test_the_watermark_is_a_set_of_finished_offsets_and_survives_its_metadata(
    low: int, doings: list[tuple[str, int, int]], bytes_max: int, since_ms: int
) -> None:
    watermark, finished = Watermark(low), set[int]()
    for what, at, count in doings:
        if what == "finish":
            watermark.finish(low + at)
            finished.add(low + at)
        else:
            watermark.skip(low + at, low + at + count)
            finished.update(range(low + at, low + at + count))
        expected = next(offset for offset in range(low, low + 400) if offset not in finished)
        assert watermark.low == expected
        assert watermark.finished_above == sum(offset > expected for offset in finished)
    assert all(watermark.is_finished(offset) == (offset < low or offset in finished) for offset in range(low + 200))
    metadata = watermark.metadata(since_ms, max(bytes_max, len(f"1:{since_ms}:")))
    assert len(metadata) <= max(bytes_max, len(f"1:{since_ms}:"))
    successor, since_again_ms = restore(watermark.low, metadata)
    assert (successor.low, since_again_ms, successor.since_ms) == (watermark.low, since_ms, since_ms)
    claimed = {offset for offset in range(low + 200) if successor.is_finished(offset)}
    assert claimed <= finished | set(range(low)), "what is cut is only knowledge of finished work"
    if bytes_max == 400:
        assert claimed == {offset for offset in range(low + 200) if watermark.is_finished(offset)}


@given(st.text(max_size=40) | st.builds("1:{}:{}".format, st.text(max_size=5), st.text(max_size=30)))
def test_metadata_of_somebody_else_says_nothing(metadata: str) -> None:
    watermark, since_ms = restore(7, metadata)
    assert watermark.low >= 7
    assert since_ms >= 0


# -- room by deadline


@given(
    st.lists(st.tuples(st.integers(0, 600), st.floats(0.1, 40.0), st.sampled_from([1, 5, 9])), max_size=25),
    st.integers(0, 700),
    st.floats(0.1, 4.0),
    st.floats(0.0, 60.0),
    st.lists(st.tuples(st.integers(0, 700), st.floats(0.1, 20.0)), max_size=4),
)
def test_room_is_what_every_later_deadline_can_spare(
    jobs: list[tuple[int, float, int]], deadline: int, capacity: float, busy_ms: float, taken: list[tuple[int, float]]
) -> None:
    now_ms, slack, hop_ms = 1_000_000.0, 0.9, 8.0
    base = int(now_ms)
    waiting = Waiting()
    for at, (due, work_ms, priority) in enumerate(jobs):
        waiting.push(entry(at, base + due, work_ms, priority))
    laxity = Laxity(waiting, 5, capacity=capacity, busy_ms=busy_ms, now_ms=now_ms, slack=slack, hop_ms=hop_ms)
    ahead_ms = busy_ms + sum(work_ms for _, work_ms, priority in jobs if priority < 5)
    mine = [((base + due) // BUCKET_MS, work_ms) for due, work_ms, priority in jobs if priority == 5]
    known = sorted({bucket for bucket, _ in mine})

    def usable_ms(end_ms: float) -> float:
        return max((end_ms - now_ms) * slack - hop_ms, 0.0)

    for due, work_ms in taken:
        laxity.take(base + due, work_ms)
        bucket = (base + due) // BUCKET_MS
        later = next((other for other in known if other >= bucket), None)
        if later is None:
            known.append(bucket)
        mine.append((bucket if later is None else later, work_ms))
    own = (base + deadline) // BUCKET_MS
    here = capacity * usable_ms(base + deadline) - ahead_ms - sum(work_ms for bucket, work_ms in mine if bucket < own)
    later_rooms = [
        capacity * usable_ms((bucket + 1) * BUCKET_MS) - ahead_ms - sum(work_ms for other, work_ms in mine if other <= bucket)
        for bucket in known
        if bucket >= own
    ]
    assert laxity.room_ms(base + deadline) == pytest.approx(min([here, *later_rooms]), abs=1e-6)


# -- how accurate

rungs = st.lists(
    st.builds(Rung, st.uuids().map(str), st.floats(0.5, 0.99).map(lambda x: round(x, 3)), st.floats(0.1, 5.0).map(lambda x: round(x, 2))),
    min_size=1,
    max_size=4,
    unique_by=(lambda rung: rung.accuracy, lambda rung: rung.row_ms),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9).map(float), rungs), min_size=1, max_size=2), st.floats(0.0, 60.0))
def test_the_allocation_is_as_good_as_any(classes: list[tuple[float, list[Rung]]], capacity_ms: float) -> None:
    demand: dict[Group, float] = {("t", at): rows for at, (rows, _) in enumerate(classes)}
    ladders: dict[Group, list[Rung]] = {("t", at): list(ladder) for at, (_, ladder) in enumerate(classes)}
    mixes = allocate(demand, ladders, capacity_ms)
    assert set(mixes) == set(demand)
    cost_ms = sum(demand[group] * _mean(mix.lower.row_ms, mix.upper.row_ms, mix.upper_part) for group, mix in mixes.items())
    value = sum(demand[group] * _mean(mix.lower.accuracy, mix.upper.accuracy, mix.upper_part) for group, mix in mixes.items())
    least_ms = sum(demand[group] * min(rung.row_ms for rung in ladders[group]) for group in demand)
    if least_ms > capacity_ms:
        assert cost_ms == pytest.approx(least_ms)
        return
    assert cost_ms <= capacity_ms + 1e-6
    # The linear program's optimum is at a vertex: at most one class mixes two variants, all others take one.
    assert value >= _best(demand, ladders, capacity_ms) - 1e-6


def _mean(lower: float, upper: float, part: float) -> float:
    return lower + (upper - lower) * part


def _best(demand: dict[Group, float], ladders: dict[Group, list[Rung]], capacity_ms: float) -> float:
    groups = list(demand)
    best = 0.0
    for choice in product(*(ladders[group] for group in groups)):
        cost_ms = sum(demand[group] * rung.row_ms for group, rung in zip(groups, choice, strict=True))
        value = sum(demand[group] * rung.accuracy for group, rung in zip(groups, choice, strict=True))
        if cost_ms <= capacity_ms:
            best = max(best, value)
        for group, rung in zip(groups, choice, strict=True):
            for other in ladders[group]:
                more_ms = demand[group] * (other.row_ms - rung.row_ms)
                if cost_ms <= capacity_ms < cost_ms + more_ms:
                    best = max(best, value + demand[group] * (other.accuracy - rung.accuracy) * (capacity_ms - cost_ms) / more_ms)
    return best


@given(rungs)
def test_the_hull_rises_ever_more_slowly_and_leaves_nothing_above_it(ladder: list[Rung]) -> None:
    steps = hull(ladder)
    gains = [(b.accuracy - a.accuracy) / (b.row_ms - a.row_ms) for a, b in pairwise(steps)]
    assert all(gain > 0 for gain in gains)
    assert gains == sorted(gains, reverse=True)
    assert steps[0].row_ms == min(rung.row_ms for rung in ladder)
    assert steps[-1].accuracy == max(rung.accuracy for rung in ladder)
    for rung in ladder:
        below = [step for step in steps if step.row_ms <= rung.row_ms]
        above = [step for step in steps if step.row_ms >= rung.row_ms]
        if below and above and above[0].row_ms > below[-1].row_ms:
            part = (rung.row_ms - below[-1].row_ms) / (above[0].row_ms - below[-1].row_ms)
            assert rung.accuracy <= _mean(below[-1].accuracy, above[0].accuracy, part) + 1e-9


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8), st.floats(0.0, 1.0))
def test_the_fair_level_uses_up_the_total(offers: list[float], part: float) -> None:
    total = sum(offers) * part
    level = _max_min(sorted(offers), total)
    assert sum(min(offer, level) for offer in offers) == pytest.approx(total, abs=1e-6)


# -- books


@given(st.lists(st.tuples(st.sampled_from(["push", "forget", "pop", "compact"]), st.integers(0, 50), st.floats(0.0, 9.0)), max_size=80))
def test_what_waits_is_counted_and_comes_out_by_deadline(doings: list[tuple[str, int, float]]) -> None:
    waiting, there = Waiting(), dict[int, Entry]()
    for at, (what, number, work_ms) in enumerate(doings):
        kind = (5, "t", 0)
        if what == "push":
            there[at] = entry(at, number * 7, work_ms)
            waiting.push(there[at])
        elif what == "forget" and there:
            waiting.forget(there.pop(sorted(there)[number % len(there)]), State.DONE)
        elif what == "pop" and (head := waiting.head(kind)) is not None:
            assert head.deadline_ms == min(one.deadline_ms for one in there.values())
            waiting.take(kind, head, State.LEASED)
            there = {key: one for key, one in there.items() if one is not head}
        elif what == "compact":
            waiting.compact()
        assert waiting.count == len(there)
        assert waiting.work_ms == pytest.approx(sum(one.work_ms for one in there.values()), abs=1e-6)
        assert sum(waiting.rows.values()) == len(there)
        assert {id(one) for one in waiting.entries()} == {id(one) for one in there.values()}
        assert (waiting.head(kind) is None) == (not there)


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "due"]), st.integers(0, 300)), max_size=80))
def test_what_is_due_comes_once_and_neither_early_nor_a_bucket_late(doings: list[tuple[str, int]]) -> None:
    wheel, there, now_ms = ExpiryWheel(), dict[int, Entry](), 0
    for at, (what, number) in enumerate(doings):
        if what == "add":
            there[at] = entry(at, now_ms + number)
            wheel.add(there[at], there[at].deadline_ms)
        elif what == "remove" and there:
            gone = there.pop(sorted(there)[number % len(there)])
            wheel.remove(gone, gone.deadline_ms)
            wheel.remove(gone, gone.deadline_ms)
        elif what == "due":
            now_ms += number
            for one in wheel.due(now_ms):
                assert one.deadline_ms <= now_ms
                del there[one.offset]
            assert all(one.deadline_ms + EXPIRY_BUCKET_MS > now_ms for one in there.values())
        wake_ms = wheel.next_ms()
        assert (wake_ms is None) == (not there)
        if wake_ms is not None:
            first_ms = min(one.deadline_ms for one in there.values())
            assert first_ms < wake_ms <= first_ms + EXPIRY_BUCKET_MS


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 5))
def test_the_latest_ids_are_known_and_no_more(ids: list[int], count_max: int) -> None:
    recent, order = RecentIds(count_max), list[int]()
    for number in ids:
        if number not in order[-count_max:]:
            order.append(number)
        recent.add([b"%d" % number])
        assert {n for n in range(13) if b"%d" % n in recent} == set(order[-count_max:])
        assert len(recent) == len(set(order[-count_max:]))

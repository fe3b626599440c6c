"""The dispatcher's policy under load, in virtual time: who is served, how accurately, and what capacity is wasted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest
from policy_stage import LADDER, START_MS, Stage, Tally, request

from broker.policy.entry import Entry

FLOORS = (0.8, 0.9, 0.93, 0.932)
"""One floor for each variant: the cheapest that meets it is another one for each."""
MEAN_WORK_MS = sum(row_ms + 0.15 for _, row_ms in LADDER.values()) / 4
SPAN_MS = 4_000.0


def arrivals(load: float, *, seed: int = 1, tenants: Sequence[str] = ("",), span_ms: float = SPAN_MS) -> Iterator[Entry]:
    """Poisson arrivals of all floors alike with deadlines of 150 to 600 ms; `load`: cheapest work offered, per capacity of one lane."""
    random = Random(seed)
    now_ms = START_MS
    while True:
        now_ms += random.expovariate(load / MEAN_WORK_MS)
        if now_ms > START_MS + span_ms:
            return
        yield request(f"{seed}-{now_ms}", now_ms, floor=random.choice(FLOORS), timeout_ms=random.randint(150, 600), tenant=random.choice(tenants))


def total(tallies: dict[object, Tally]) -> Tally:
    whole = Tally()
    for tally in tallies.values():
        whole.offered += tally.offered
        whole.completed += tally.completed
        whole.late += tally.late
        whole.accuracy_sum += tally.accuracy_sum
        whole.floor_sum += tally.floor_sum
    return whole


@pytest.mark.parametrize(("load", "hop_ms", "others"), [(1.5, 2.0, 0), (3.0, 2.0, 0), (3.0, 8.0, 0), (3.0, 4.0, 1)])
def test_under_overload_capacity_is_used_and_every_floor_gets_its_share(load: float, hop_ms: float, others: int) -> None:
    stage = Stage(hop_ms=hop_ms, others=others)
    tallies = stage.run(arrivals(load))
    whole = total(tallies)
    assert stage.busy_ms >= 0.92 * SPAN_MS, "capacity went to waste"
    assert whole.late == 0, "computed in vain"
    assert sum(tally.completed for tally in tallies.values()) >= 0.92 * SPAN_MS / MEAN_WORK_MS, "served work"
    for floor, tally in tallies.items():
        assert tally.served == pytest.approx(whole.served, rel=0.15), f"floor {floor}"


def test_at_half_load_all_is_answered_and_spare_capacity_becomes_accuracy() -> None:
    stage = Stage(hop_ms=5.0)
    tallies = stage.run(arrivals(0.5))
    whole = total(tallies)
    assert whole.completed == whole.offered
    assert whole.accuracy_sum / whole.completed > 0.93
    assert tallies[0.8].accuracy > 0.925, "the lowest floor has the most to gain"
    assert stage.busy_ms > 0.75 * SPAN_MS


def test_with_little_load_everybody_gets_the_best() -> None:
    tallies = Stage().run(arrivals(0.1))
    assert {floor: tally.accuracy for floor, tally in tallies.items()} == pytest.approx(dict.fromkeys(FLOORS, 0.9338))


@pytest.mark.parametrize("hop_ms", [2.0, 8.0])
def test_the_way_there_and_back_is_not_taken_for_a_slow_lane(hop_ms: float) -> None:
    stage = Stage(hop_ms=hop_ms)
    stage.run(arrivals(0.6))
    (lane,) = stage.policy.fleet.lanes
    assert lane.speed == pytest.approx(1.0, abs=0.05)


def test_a_lane_that_is_slower_than_its_profiles_is_found_out_under_load() -> None:
    stage = Stage(speed=0.6)
    whole = total(stage.run(arrivals(1.2)))
    (lane,) = stage.policy.fleet.lanes
    assert lane.speed == pytest.approx(0.6, abs=0.05)
    assert whole.late <= 0.005 * whole.offered


def test_two_dispatchers_on_a_lane_each_use_their_part() -> None:
    """The other one is idle here: its part stays free at first, and is used as far as the lane turns out to be faster than half."""
    stage = Stage(others=1)
    tallies = stage.run(arrivals(0.5))
    assert total(tallies).served == 1.0
    assert stage.policy.fleet.share == 0.5
    stage = Stage(others=1)
    whole = total(stage.run(arrivals(1.2)))
    assert whole.late <= 0.005 * whole.offered
    assert whole.served > 0.75


def test_the_flood_of_one_tenant_leaves_a_light_one_served() -> None:
    light = list(arrivals(0.15, seed=7, tenants=("light",)))
    flood = list(arrivals(4.0, seed=8, tenants=("flood",)))
    stage = Stage(group_of=lambda entry: entry.tenant)
    tallies = stage.run(sorted([*light, *flood], key=lambda entry: entry.received_ms))
    assert tallies["light"].served >= 0.95
    assert tallies["flood"].completed >= 0.7 * SPAN_MS / MEAN_WORK_MS, "what the light one leaves is the flood's"


def test_tenants_with_the_same_appetite_get_the_same() -> None:
    stage = Stage(group_of=lambda entry: entry.tenant)
    tallies = stage.run(arrivals(3.0, tenants=("a", "a", "a", "b")))
    assert tallies["a"].completed == pytest.approx(tallies["b"].completed, rel=0.25), "a asks for three times as much"


def test_a_burst_with_far_deadlines_is_admitted_and_answered() -> None:
    burst = [request(f"b{at}", START_MS, floor=0.8, timeout_ms=60_000) for at in range(10_000)]
    whole = total(Stage().run(burst))
    assert whole.completed == 10_000


def test_priority_comes_first_under_overload() -> None:
    ordinary, urgent = list(arrivals(1.5, seed=3)), list(arrivals(0.4, seed=4))
    for entry in urgent:
        entry.priority = 1
    stage = Stage(group_of=lambda entry: entry.priority == 1)
    tallies = stage.run(sorted([*ordinary, *urgent], key=lambda entry: entry.received_ms))
    assert tallies[True].served >= 0.99
    assert tallies[False].completed >= 0.5 * SPAN_MS / MEAN_WORK_MS


def test_several_lanes_are_used_alike() -> None:
    stage = Stage(workers=("w0", "w1", "w2"))
    whole = total(stage.run(arrivals(6.0, span_ms=1_500.0)))
    assert stage.busy_ms >= 0.92 * 3 * 1_500.0
    assert whole.late == 0

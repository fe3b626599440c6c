"""What an endpoint asks for: demand by floor, paths, multiplicity, budgets."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from optimizer_stage import endpoint, snapshot, variant, workers

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.paths import (
    compute_ms,
    demand_by_floor,
    demand_of_task,
    demand_rps,
    main_floor,
    multiplicity,
    paths_of,
    stage_budgets,
)
from scaler.optimizers.snapshot import FloorDemand, MeasuredPath, StageDemand

NAN = float("nan")
TREE = (
    StageDemand(name="detect", task="d", rows={"*": 2.0}),
    StageDemand(name="car", task="c", after="detect", rows={"d/good": 3.0, "*": 1.0}),
    StageDemand(name="face", task="f", after="detect", rows={"d/good": 0.5}),
)
VARIANTS = [
    variant("good", 0.9, {"a": 10.0}, task="d"),
    variant("fast", 0.6, {"a": 50.0}, task="d"),
    variant("c", 0.8, {"a": 100.0}, task="c"),
    variant("f", 0.5, {"a": 25.0}, task="f"),
]


@pytest.fixture
def capacity():
    return Capacity(snapshot(VARIANTS, workers(3)))


def test_demand_is_gathered_by_floor_and_bad_numbers_are_taken_out():
    floors = (
        FloorDemand(floor=0.5, rate_rps=1.0, forecast_rps=2.0),
        FloorDemand(floor=0.5, rate_rps=1.0, forecast_rps=3.0),
        FloorDemand(floor=NAN, rate_rps=7.0, forecast_rps=NAN),
        FloorDemand(floor=0.9, rate_rps=NAN, forecast_rps=float("inf")),
        FloorDemand(floor=0.7, rate_rps=5.0, forecast_rps=-5.0),
    )
    asked = endpoint("e", "d")
    asked = type(asked)(endpoint="e", stages=asked.stages, floors=floors, timeout_ms=100.0)
    assert [(each.floor, each.rate_rps) for each in demand_by_floor(asked)] == [(0.0, 7.0), (0.5, 5.0), (0.7, 0.0), (0.9, 0.0)]
    assert demand_rps(asked) == 12.0
    assert main_floor(asked) == 0.0


def test_the_time_for_computing_is_what_the_hops_of_the_longest_path_leave():
    assert compute_ms(endpoint("e", "d", timeout_ms=100.0), 8.0) == 100.0 - 3 * 8.0
    assert compute_ms(endpoint("e", *TREE, timeout_ms=100.0), 8.0) == 100.0 - 5 * 8.0
    assert compute_ms(endpoint("e", "d", timeout_ms=20.0), 8.0) == 0.0
    assert compute_ms(endpoint("e", "d", timeout_ms=NAN), 8.0) == 0.0


def test_budgets_go_by_the_fastest_variants_and_no_way_gets_more_than_all(capacity):
    budgets = stage_budgets(endpoint("e", *TREE), capacity, 600.0)
    # Fastest: detect 20 ms, car 10, face 40. The longest way has 60.
    assert budgets["detect"] == pytest.approx(200.0)
    assert budgets["face"] == pytest.approx(400.0)
    assert budgets["car"] == pytest.approx(600.0 * 10 / 30)
    assert budgets["detect"] + budgets["car"] <= 600.0


def test_rows_follow_from_the_variant_before(capacity):
    good = {"detect": "d/good", "car": "c/c", "face": "f/f"}
    assert multiplicity(endpoint("e", *TREE), good) == {"detect": 2.0, "car": 6.0, "face": 1.0}
    fast = good | {"detect": "d/fast"}
    assert multiplicity(endpoint("e", *TREE), fast) == {"detect": 2.0, "car": 2.0, "face": 2.0}


def test_paths_are_all_combinations_most_accurate_first(capacity):
    paths = paths_of(endpoint("e", *TREE), capacity)
    assert [path.variants["detect"] for path in paths] == ["d/good", "d/fast"]
    assert paths[0].accuracy == pytest.approx(0.9 * 0.8 * 0.5)
    assert paths_of(endpoint("e", *TREE), capacity, hosted=frozenset({"d/fast", "c/c", "f/f"})) == paths[1:]
    assert paths_of(endpoint("e", "d", "unheard-of"), capacity) == ()


def test_a_measured_combination_counts_instead_of_the_product(capacity):
    measured = (
        MeasuredPath({"detect": "d/fast"}, 0.55),
        MeasuredPath({"detect": "d/fast", "car": "c/c"}, 0.5),
        MeasuredPath({"detect": "d/good"}, NAN),
    )
    paths = paths_of(endpoint("e", *TREE, measured=measured), capacity)
    assert [path.accuracy for path in paths] == [0.5, pytest.approx(0.36)]


def test_too_many_paths_are_thinned_over_the_whole_range_of_accuracy():
    ladder = [variant(f"v{step}", 0.5 + 0.05 * step, {"a": 100.0 / (1 + step)}, task=task) for task in "wxyz" for step in range(8)]
    capacity = Capacity(snapshot(ladder, workers(1)))
    paths = paths_of(endpoint("e", *"wxyz"), capacity, 100)
    assert 20 <= len(paths) <= 100
    assert paths[0].accuracy > 0.5
    assert paths[-1].accuracy < 0.1


def test_the_rows_of_a_task_add_up_over_its_stages():
    assert demand_of_task(endpoint("e", *TREE), 10.0) == {"d": 20.0, "c": 20.0, "f": 10.0}
    assert demand_of_task(endpoint("e", "d", "d"), 10.0) == {"d": 20.0}


def test_of_the_branches_of_a_switch_the_mean_counts_by_the_rows_that_take_each(capacity):
    """Three of four rows are cars."""
    detect, car, face = TREE
    taken = (detect, replace(car, switch="kind", rows={"*": 3.0}), replace(face, switch="kind", rows={"*": 1.0}))
    best = paths_of(endpoint("e", *taken), capacity)[0]
    assert best.accuracy == pytest.approx(0.9 * (3.0 * 0.8 + 0.5) / 4.0)
    assert paths_of(endpoint("e", *TREE), capacity)[0].accuracy == pytest.approx(0.9 * 0.8 * 0.5)
    nobody = (detect, replace(car, switch="kind", rows={"*": 0.0}), replace(face, switch="kind", rows={"*": 0.0}))
    assert paths_of(endpoint("e", *nobody), capacity)[0].accuracy == pytest.approx(0.9 * 0.65)

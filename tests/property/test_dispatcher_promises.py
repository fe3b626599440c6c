"""The dispatcher's promises under random histories: arrivals, work, losses, plans, catalogs, crashes and rebalances in any order."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from dispatcher_checks import check_nothing_left, check_outcomes
from dispatcher_machine import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OFTEN = ["arrive", "read", "hear", "flush", "work", "wait"]
SOMETIMES = ["commit", "change_worker", "report", "change_plan", "fail_sends", "return_orders", "heal", "heal", "heal"]
SELDOM = ["start_worker", "lose_orders", "hang", "stop_worker", "change_catalog", "restore_catalog", "wait_long", "rebalance", "crash"]
OPERATIONS = [*OFTEN * 8, *SOMETIMES * 2, *SELDOM]
WARM = [("change_plan", 3), ("heal", 1), *[("hear", seed) for seed in range(4)]]
# What once broke a promise, or came close, as (seed, length).
REGRESSIONS = [(52, 60), (57, 20), (51, 20), (87, 20), (92, 60), (330, 150), (338, 20), (535, 20), (10519, 20)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1 << 20)), min_size=10, max_size=100))
def test_every_history_ends_with_one_outcome_for_every_id_and_nothing_left(history: list[tuple[str, int]]) -> None:
    run_history(history)


@pytest.mark.parametrize(("seed", "length"), [*REGRESSIONS, *((seed, 150) for seed in range(60))])
def test_long_histories_from_seeds(seed: int, length: int) -> None:
    run_history(history_of(seed, length))


def test_the_model_reaches_what_it_is_meant_to_check() -> None:
    seen: Counter[str] = Counter()
    for seed in range(10, 28):
        world = run_history(history_of(seed, 150))
        for log in world.responses:
            seen.update(response.outcome for response in log)
            seen.update(f"answered by {response.by[0]}" for response in log)
        seen.update(world.reached)
    outcomes = ["completed", "expired", "rejected", "failed"]
    refusals = [f"refused-{code}" for code in ("overloaded", "quota", "infeasible_deadline", "infeasible_accuracy", "attempts_exhausted")]
    expected = [*outcomes, *refusals, "sends", "retries", "dead-letters", "answered by w", "answered by d"]
    assert {name for name in expected if not seen[name]} == set()
    assert seen["completed"] > 100


def history_of(seed: int, length: int) -> list[tuple[str, int]]:
    random = Random(seed)
    return [(random.choice(OPERATIONS), random.randrange(1 << 20)) for _ in range(length)]


def run_history(history: list[tuple[str, int]]) -> World:
    world = World()
    for operation, seed in [*WARM, *history]:
        world.run(operation, Random(f"{operation}-{seed}"))
    world.settle()
    check_outcomes(world)
    check_nothing_left(world)
    return world

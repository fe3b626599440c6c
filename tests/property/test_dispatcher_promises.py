"""The dispatcher's promises under random histories: arrivals, work, losses, plans, catalogs, crashes and rebalances in any order."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dispatcher_machine import World

OPERATIONS = (
    "arrive arrive arrive arrive read read read read hear hear hear flush flush flush work work work wait wait wait commit "
    "start_worker change_worker change_worker change_worker report report change_plan fail_sends lose_orders stop_worker return_orders "
    "change_catalog restore_catalog wait_long rebalance crash"
).split()
WARM = [("change_plan", 3), ("start_worker", 1), ("start_worker", 2), ("start_worker", 3), *(("change_worker", seed) for seed in range(12))]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1 << 20)), max_size=90))
def test_every_history_ends_with_one_outcome_for_every_id_and_nothing_left(history: list[tuple[str, int]]) -> None:
    run_history(history)


def run_history(history: list[tuple[str, int]]) -> World:
    world = World()
    for operation, seed in [*WARM, *history]:
        world.run(operation, Random(f"{operation}-{seed}"))
    world.settle()
    world.check_outcomes()
    world.check_nothing_left()
    return world

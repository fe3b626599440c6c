"""2,000 small clusters with faults of all kinds, each from a seed, in virtual time: no checker sees a broken promise."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from seed_runs import Runs, Seed, regression_seeds, run_seeds
from sim_scenarios import FAULTS, SCENARIOS, random_scenario

SEEDS = 2_000
GRAPH_PART = 10
"""One seed of so many runs a graph."""
CHUNK = 50


def seeds() -> list[Seed]:
    return [("graph" if seed % GRAPH_PART == 0 else "random", seed) for seed in range(SEEDS)]


def test_seeds_that_once_failed() -> None:
    assert run_seeds(regression_seeds()).failures == []


def test_the_file_of_seeds_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "seeds").write_text("# why\n\nrandom 17  # it broke\nhanded back 3\n")
    assert regression_seeds(tmp_path / "seeds") == [("random", 17), ("handed back", 3)]
    assert {name for name, _ in regression_seeds()} <= SCENARIOS.keys()


@pytest.mark.timeout(1_800)  # of a machine that has other work too: alone it takes two to three minutes
def test_no_seed_breaks_a_promise() -> None:
    wanted = seeds()
    chunks = [wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK)]
    total = Runs()
    with ProcessPoolExecutor(max(2, (os.cpu_count() or 2)), mp_context=multiprocessing.get_context("spawn")) as processes:
        for runs in processes.map(run_seeds, chunks):
            total.add(runs)
    assert total.failures == [], f"{len(total.failures)} of {SEEDS} seeds failed, the first:\n" + "\n".join(total.failures[:5])
    assert total.seeds == SEEDS
    assert min(total.faults[kind] for kind in FAULTS) > SEEDS / 4, total.faults
    assert min(total.outcomes[outcome] for outcome in ("completed", "expired", "rejected")) > SEEDS, total.outcomes


def test_the_same_seed_is_the_same_run() -> None:
    first, second = (run_seeds([("random", seed) for seed in range(5)]) for _ in range(2))
    assert first == second
    assert random_scenario(3) == random_scenario(3) != random_scenario(4)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "random"])
def test_the_scenarios_of_planted_bugs_are_sound(name: str) -> None:
    assert run_seeds([(name, seed) for seed in range(4)]).failures == []

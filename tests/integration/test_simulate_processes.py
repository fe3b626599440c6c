"""Runs in processes: one that raises, dies or hangs costs its own job, and nothing stays behind."""

from __future__ import annotations

import math

import psutil
from simulate_work import work

from deploy.simulation.processes import Processes


def test_a_job_that_raises_dies_or_hangs_costs_itself_alone() -> None:
    told: list[tuple[int, float]] = []
    jobs = [b"a", b"raise", b"die", b"hang", b"slow", b"b", b"c"]
    with Processes(work, 2) as pool:
        outcomes = pool.run(jobs, lambda number, at_s: told.append((number, at_s)))
    assert [outcome.error for outcome in outcomes] == [
        "",
        "ValueError: as asked",
        "its process ended by itself (exit code 7)",
        "optimizer 'odd' has not returned after 0.3 s",
        "",
        "",
        "",
    ]
    assert [outcome.value.rstrip(b"0123456789") for outcome in outcomes] == [b"a", b"", b"", b"", b"slow", b"b", b"c"]
    assert (4, 1.5) in told
    assert sorted(number for number, at_s in told if math.isinf(at_s)) == list(range(len(jobs)))


def test_processes_are_used_again_and_gone_in_the_end() -> None:
    with Processes(work, 1) as pool:
        first, second = pool.run([b"a", b"b"])
        (third,) = pool.run([b"c"])
    numbers = {outcome.value[1:] for outcome in (first, second, third)}
    assert len(numbers) == 1, "one process did all"
    assert not psutil.pid_exists(int(numbers.pop()))

"""Bugs planted into the policies, one line each: the checkers see every one of them, so that their silence means something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from planting import BUGS, ROOT, Bug

pytestmark = pytest.mark.timeout(300)
SEEDS_MAX = 60
"""Each bug is seen within so many seeds."""
CLEAN_SEEDS = 8


def plant(name: str, seeds: int) -> dict[str, Any]:
    argv = [sys.executable, str(Path(__file__).with_name("planting.py")), name, "0", str(seeds)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def planted() -> dict[str, Future[dict[str, Any]]]:
    """All bugs, each in a process of its own, as many at a time as there are processors."""
    pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2))
    return {bug.name: pool.submit(plant, bug.name, SEEDS_MAX) for bug in BUGS} | {"none": pool.submit(plant, "none", CLEAN_SEEDS)}


def test_there_are_enough_of_them_and_none_twice() -> None:
    assert len(BUGS) >= 12
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert len({(bug.module, bug.line, bug.wrong) for bug in BUGS}) == len(BUGS)


def test_without_a_bug_the_same_scenarios_pass(planted: dict[str, Future[dict[str, Any]]]) -> None:
    assert planted["none"].result() == {"seed": None, "checkers": [], "first": ""}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_checkers_see(bug: Bug, planted: dict[str, Future[dict[str, Any]]]) -> None:
    seen = planted[bug.name].result()
    assert seen["seed"] is not None, "no checker has seen it"
    assert set(seen["checkers"]) & set(bug.checkers), seen


def test_a_line_that_is_not_there_is_told() -> None:
    code = "import planting; planting.seen_by(planting.Bug('x', 'broker.policy.pool', 'no such line', '', ()), [0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False)
    assert "has this line 0 times" in done.stderr

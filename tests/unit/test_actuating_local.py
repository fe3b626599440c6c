"""What `up` may start and end: ranges on the command line, who starts and ends, and the plan of the stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.scaling import Change, ScaleRange, ScaleRules, change
from deploy.stack_plan import UpOptions, parse_ranges, plan_stack, scale_rules, start_counts
from schemas.errors import ConfigurationError

NAMES = ("cpu-1", "cpu-2", "cpu-3", "cpu-4")


def test_ranges_of_workers() -> None:
    ranges = parse_ranges("cpu=0..4, vpu=2")
    assert ranges == {"cpu": (0, 4), "vpu": (2, 2)}
    assert start_counts(ranges) == {"cpu": 1, "vpu": 2}
    assert scale_rules(ranges, 6, 2) == ScaleRules(ranges=(ScaleRange(accelerator="cpu", least=0, most=4, threads=2),), cores=6)
    assert scale_rules(parse_ranges("cpu=2"), 0, 1) == ScaleRules()


def test_cores_alone_mean_cpu_workers() -> None:
    assert scale_rules({"cpu": (1, 1), "vpu": (1, 1)}, 4, 4).ranges == (ScaleRange(accelerator="cpu", least=1, most=4, threads=4),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpu=4..1", "'cpu=4..1': at most 1 workers are fewer than at least 4; write cpu=1..4"),
        ("cpu=1..99", "0 to 16 workers of a class, or a range"),
        ("cpu=1..", "0 to 16 workers of a class, or a range"),
        ("cpu=..2", "0 to 16 workers of a class, or a range"),
        ("cpu=1...2", "0 to 16 workers of a class, or a range"),
    ],
)
def test_a_wrong_range_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_ranges(text)
    assert message in str(raised.value)


def test_more_workers_to_start_with_than_cores_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="3 workers to start with need more than 2 cores"):
        scale_rules({"cpu": (2, 4), "vpu": (0, 2)}, 2, 1)


def test_wanted_counts_stay_within_what_is_allowed() -> None:
    rules = ScaleRules(ranges=(ScaleRange(accelerator="cpu", least=1, most=4), ScaleRange(accelerator="vpu", least=0, most=2)), cores=4)
    assert rules.allowed({}) == {"cpu": 1, "vpu": 1}
    assert rules.allowed({"cpu": 9, "vpu": 0}) == {"cpu": 4, "vpu": 0}
    assert rules.allowed({"cpu": 0, "vpu": 0}) == {"cpu": 1, "vpu": 0}
    assert rules.allowed({"cpu": 4, "vpu": 2}) == {"cpu": 3, "vpu": 1}


def test_the_drained_end_first_then_the_last() -> None:
    assert change(NAMES, {"cpu-1", "cpu-2", "cpu-3"}, (), 2, ("cpu-1",)) == Change(end=("cpu-1",))
    assert change(NAMES, {"cpu-1", "cpu-2", "cpu-3"}, (), 1, ("cpu-1",)) == Change(end=("cpu-1", "cpu-3"))
    assert change(NAMES, {"cpu-1", "cpu-2"}, (), 2, ("cpu-1",)) == Change()


def test_the_first_free_names_start_and_those_that_end_are_not_free() -> None:
    assert change(NAMES, {"cpu-2"}, (), 3, ()) == Change(start=("cpu-1", "cpu-3"))
    assert change(NAMES, {"cpu-2"}, ("cpu-1",), 2, ()) == Change(start=("cpu-3",))
    assert change(NAMES, (), NAMES, 2, ()) == Change()


def test_workers_beyond_the_first_stand_by() -> None:
    folder = Path("/nowhere")
    scale = scale_rules({"cpu": (0, 3)}, 0, 2)
    options = UpOptions(workers={"cpu": 1}, scale=scale, threads=2, models=folder, profiles=folder, cache=folder)
    plan = plan_stack(folder, options, kafka="h:1", redis="redis://h:1", prefix="p")
    workers = [role for role in plan.roles if role.role == "worker"]
    assert [(worker.name, worker.accelerator, worker.standby) for worker in workers] == [
        ("cpu-1", "cpu", False),
        ("cpu-2", "cpu", True),
        ("cpu-3", "cpu", True),
    ]
    assert plan.scale == scale

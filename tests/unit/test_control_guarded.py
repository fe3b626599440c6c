"""Guarding optimizers: who may propose, what counts as a proposal, and how long a bad one is left out."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest
from control_stage import ControlStage, proposing

from scaler.optimizers.optimizer import FEASIBLE, Explanation, Proposal
from scaler.policy.guarded import DIED, INVALID, LATE, NONSENSE, RAISED, Failure, Guard, GuardSettings, examined
from schemas.plan import Binding

SETTINGS = GuardSettings(failures_max=2, back_off_ms=1_000.0, back_off_ms_max=3_000.0)
MANY = tuple(Binding(worker=f"x{at}", accelerator="cpu", lane=at) for at in range(9))
RAISING = Failure(kind=RAISED, reason="ValueError: no")


def test_one_failure_is_forgiven_two_in_a_row_are_not() -> None:
    guard = Guard(["mine", "greedy"], SETTINGS)
    guard.failed("mine", RAISING, 0.0)
    assert guard.choose(1.0) == "mine"
    guard.succeeded("mine")
    guard.failed("mine", RAISING, 2.0)
    assert guard.choose(3.0) == "mine"
    guard.failed("mine", RAISING, 4.0)
    assert guard.choose(5.0) == "greedy"
    assert guard.left_out(5.0) == {"mine": "raised: ValueError: no; again in 1 s"}
    assert guard.choose(1_004.0) == "mine"


@pytest.mark.parametrize("kind", [LATE, DIED])
def test_who_hangs_or_dies_is_left_out_at_once_and_longer_each_time(kind: str) -> None:
    guard = Guard(["mine", "greedy"], SETTINGS)
    now_ms, waits = 0.0, list[float]()
    for _ in range(4):
        guard.failed("mine", Failure(kind=kind, reason="x"), now_ms)
        began_ms = now_ms
        while guard.choose(now_ms) != "mine":
            now_ms += 500.0
        waits.append(now_ms - began_ms)
    assert waits == [1_000.0, 2_000.0, 3_000.0, 3_000.0]


def test_the_last_one_is_always_asked_and_nobody_after_it() -> None:
    guard = Guard(["mine", "other", "greedy"], SETTINGS)
    assert guard.next_after("mine", 0.0) == "other"
    guard.failed("other", Failure(kind=LATE, reason="x"), 0.0)
    assert guard.next_after("mine", 1.0) == "greedy"
    for name in ("mine", "greedy"):
        guard.failed(name, Failure(kind=LATE, reason="x"), 0.0)
    assert guard.choose(1.0) == "greedy"
    assert guard.next_after("greedy", 1.0) is None
    assert set(guard.left_out(1.0)) == {"mine", "other"}
    with pytest.raises(ValueError, match="needed"):
        Guard([], SETTINGS)


@pytest.mark.parametrize(
    ("made", "kind", "said"),
    [
        (None, NONSENSE, "NoneType"),
        ("plan", NONSENSE, "str"),
        (Proposal(bindings=(), explanation=Explanation(status="great")), NONSENSE, "'great'"),
        (Proposal(bindings=(), explanation=Explanation(status=FEASIBLE, served={"shop": nan})), NONSENSE, "no numbers"),
        (Proposal(bindings=(1, 2), explanation=Explanation(status=FEASIBLE)), NONSENSE, "wrong kind"),  # type: ignore[arg-type]
        (Proposal(bindings=(), shares={"t": "all"}, explanation=Explanation(status=FEASIBLE)), NONSENSE, "wrong kind"),  # type: ignore[dict-item]
        (Proposal(bindings=MANY, explanation=Explanation(status=FEASIBLE)), NONSENSE, "9 bindings for 2"),
        (Proposal(bindings=(Binding(worker="w0", accelerator="gpu", lane=0),), explanation=Explanation(status=FEASIBLE)), INVALID, "class cpu"),
    ],
)  # fmt: skip
def test_what_is_no_proposal_is_told_apart(made: Any, kind: str, said: str) -> None:
    stage = ControlStage()
    stage.run(6)
    failure = examined(made, stage.policy.snapshot(stage.now_ms))
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert said in failure.reason


def test_a_proposal_passes_as_it_is() -> None:
    stage = ControlStage()
    stage.run(6)
    snapshot = stage.policy.snapshot(stage.now_ms)
    made = proposing(snapshot, {"w0": ("t/small",)})
    assert examined(made, snapshot) == made

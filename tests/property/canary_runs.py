"""Simulated canaries: seeded answers of two arms, judged after every answer, until the judge decides or the requests are over."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphs.canary import ADVANCE, CANDIDATE, HOLD, PROMOTE, ROLLBACK, STABLE, Judge
from schemas.graph import CanaryNode
from schemas.terminal import COMPLETED, EXPIRED, FAILED


class Arm(NamedTuple):
    """How an arm answers; latencies are log-normal, `busy` multiplies them and the failures as a canary goes on."""

    failed: float = 0.0
    late: float = 0.0
    median_ms: float = 20.0
    spread: float = 0.5
    correct: float | None = None


class Ended(NamedTuple):
    """How a run ended: the last action, the requests and the candidate answers until then."""

    action: str
    requests: int
    candidate_answers: int
    reason: str


def run(node: CanaryNode, stable: Arm, candidate: Arm, seed: int, *, requests: int = 4_000, agreement: float = 1.0, busier: float = 1.0) -> Ended:
    """`busier`: how much more often both arms fail, and how much slower they are, at the end than at the beginning."""
    random = np.random.default_rng(seed)
    judge = Judge(node)
    judge.enter(node.steps[0])
    uniform = random.random((requests, 5))
    normal = random.standard_normal(requests)
    answers = 0
    decided = HOLD
    for at in range(requests):
        load = busier ** (at / requests)
        to_candidate = uniform[at, 0] * 100.0 < judge.state.percent
        arm = candidate if to_candidate else stable
        name = CANDIDATE if to_candidate else STABLE
        failed, late = uniform[at, 1] < arm.failed * load, uniform[at, 2] < arm.late * load
        outcome = FAILED if failed else EXPIRED if late else COMPLETED
        judge.observe(name, outcome, arm.median_ms * load * float(np.exp(arm.spread * normal[at])))
        if arm.correct is not None:
            judge.label(name, correct=bool(uniform[at, 3] < arm.correct))
        if to_candidate and node.guardrails.agreement is not None:
            judge.pair(agreed=bool(uniform[at, 4] < agreement))
        answers += to_candidate
        decision = judge.decide() if to_candidate else None
        if decision is None or decision.action == HOLD:
            continue
        decided = decision.action
        if decided in (ROLLBACK, PROMOTE):
            return Ended(decided, at + 1, answers, decision.reason)
        assert decided == ADVANCE
        judge.enter(decision.percent)
    return Ended(HOLD, requests, answers, decided)

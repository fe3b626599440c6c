"""How often the judge is wrong, and how soon it is right: seeded canaries, looked at after every candidate answer."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from canary_runs import Arm, run
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.canary import PROMOTE, ROLLBACK, Judge
from graphs.evidence import log_evidence_worse, log_needed
from schemas.graph import CanaryNode, Guardrails

SEEDS = 80
STEPS = (20.0, 50.0, 100.0)
NODE = CanaryNode(stable="old", candidate="new", steps=STEPS, step_requests=200)
AGREEING = CanaryNode(stable="old", candidate="new", steps=STEPS, step_requests=200, guardrails=Guardrails(agreement=0.9))


def ends(node, stable, candidate, *, seeds=SEEDS, **changes):
    return [run(node, stable, candidate, seed, **changes) for seed in range(seeds)]


def share(ended, action):
    return sum(one.action == action for one in ended) / len(ended)


@pytest.mark.parametrize(
    "arm",
    [Arm(failed=0.01, late=0.03), Arm(failed=0.2, late=0.2), Arm(spread=1.5), Arm(correct=0.9)],
    ids=["usual", "broken", "slow tails", "labelled"],
)
def test_an_equal_candidate_is_seldom_rolled_back(arm):
    ended = ends(NODE, arm, arm, requests=2_500)
    assert share(ended, ROLLBACK) <= 0.05
    assert share(ended, PROMOTE) >= 0.5


def test_an_equal_candidate_is_not_blamed_for_a_busy_hour():
    """Up to 50 %, where stable still answers beside it: both get worse by six times while the canary goes on."""
    node, arm = msgspec.structs.replace(NODE, steps=(20.0, 50.0)), Arm(failed=0.02, late=0.05)
    assert share(ends(node, arm, arm, busier=6.0, requests=2_000), ROLLBACK) <= 0.05


def test_a_candidate_just_within_every_guardrail_is_seldom_rolled_back():
    stable, candidate = Arm(failed=0.01, late=0.03, correct=0.92), Arm(failed=0.03, late=0.05, median_ms=30.0, correct=0.9)
    assert share(ends(AGREEING, stable, candidate, agreement=0.9, seeds=40, requests=2_500), ROLLBACK) <= 0.05


@pytest.mark.parametrize(
    ("node", "candidate", "agreement", "answers_max"),
    [
        (NODE, Arm(failed=0.1), 1.0, 350),
        (NODE, Arm(late=0.2), 1.0, 350),
        (AGREEING, Arm(), 0.75, 350),
        (NODE, Arm(median_ms=100.0), 1.0, 350),
        (NODE, Arm(correct=0.6), 1.0, 350),
    ],
    ids=["fails", "late", "disagrees", "slow", "wrong"],
)
def test_a_bad_candidate_is_rolled_back_within_a_few_hundred_answers(node, candidate, agreement, answers_max):
    stable = Arm(correct=None if candidate.correct is None else 0.93)
    ended = ends(node, stable, candidate, seeds=50, agreement=agreement, requests=2_000)
    assert share(ended, ROLLBACK) >= 0.95
    assert np.percentile([one.candidate_answers for one in ended if one.action == ROLLBACK], 95) <= answers_max


def test_a_candidate_that_is_twice_as_slow_is_not_promoted_by_its_luck():
    ended = ends(NODE, Arm(), Arm(median_ms=40.0), seeds=40, requests=2_500)
    assert share(ended, PROMOTE) <= 0.15


def test_looking_all_the_time_keeps_the_error_probability():
    """One test alone, at its own level, on the border of what is allowed, with thousands of looks: the naive test would be wrong in most runs."""
    random = np.random.default_rng(5)
    wrong, naive, runs, count = 0, 0, 100, 3_000
    for _ in range(runs):
        candidate, stable = random.random(count) < 0.07, random.random(count) < 0.05
        bad, before = candidate.cumsum(), stable.cumsum()
        number = np.arange(1, count + 1)
        spread = np.sqrt((bad / number * (1 - bad / number) + before / number * (1 - before / number)) / number)
        naive += bool(((bad - before) / number > 0.02 + 1.645 * spread)[50:].any())
        looks = np.flatnonzero(bad - before > 0.02 * number)[::3]
        wrong += any(log_evidence_worse(int(bad[at]), int(at) + 1, int(before[at]), int(at) + 1, 0.02) >= log_needed(0.05) for at in looks)
    assert wrong / runs <= 0.05
    assert naive / runs > 0.25


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["stable", "candidate"]), st.sampled_from(["completed", "failed", "expired"]), st.floats(0, 1e7)), max_size=60
    ),
    st.sampled_from([5.0, 50.0, 100.0]),
)
def test_any_answers_are_judged_without_a_fault(answers, percent):
    judge = Judge(NODE)
    judge.enter(percent)
    for arm, outcome, latency_ms in answers:
        judge.observe(arm, outcome, latency_ms)
        decision = judge.decide()
        assert 0 <= decision.percent <= 100
        assert all(weighed.strength >= 0 and 0 <= weighed.candidate <= 1 for weighed in decision.evidence)
    counted = judge.state.candidate.answered + judge.state.stable.answered
    assert counted == len(answers)

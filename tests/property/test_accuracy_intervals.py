"""Learned intervals cover the truth as often as they say, flags come seldom where a promise is kept and soon where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.policy.posterior import credit, interval, settle
from schemas.learned import AccuracyTally

RUNS = 2_000


@pytest.mark.parametrize("rows", [50, 400, 3_000])
def test_intervals_cover_the_truth_in_95_percent_of_simulated_runs(rows):
    random = np.random.default_rng(rows)
    truths = random.uniform(0.5, 0.99, RUNS)
    right = random.binomial(rows, truths)
    covered = 0
    for truth, count in zip(truths, right, strict=True):
        _, low, high = interval(float(count), float(rows - count))
        covered += low <= truth <= high
    # Three standard deviations of 2,000 runs: 1.5 %.
    assert 0.935 <= covered / RUNS <= 0.965


@pytest.mark.parametrize("truth", [0.75, 0.9, 0.97])
def test_intervals_cover_fixed_truths_with_rows_scores_and_fading(truth):
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        tally = AccuracyTally(promised=truth)
        for _ in range(30):
            rows = int(random.integers(200, 600))
            # Scores: half of the rows are only partly right, with the same mean.
            whole = random.binomial(rows // 2, truth)
            parts = random.beta(truth * 4, (1 - truth) * 4, rows - rows // 2).sum()
            credit(tally, whole + parts, rows - whole - parts)
        settle(tally)
        assert tally.halvings >= 1
        covered += tally.low <= truth <= tally.high
    assert covered / 400 >= 0.93


def test_a_kept_promise_is_seldom_flagged_however_often_one_looks():
    random = np.random.default_rng(3)
    flagged = 0
    for _ in range(150):
        tally = AccuracyTally(promised=0.9)
        for right in random.random((200, 10)) < 0.9:
            credit(tally, float(right.sum()), float(10 - right.sum()))
            settle(tally)
            if tally.flagged:
                flagged += 1
                break
    assert flagged <= 2


def test_a_variant_that_is_nine_points_worse_is_flagged_within_some_hundred_rows():
    random = np.random.default_rng(4)
    needed = []
    for _ in range(60):
        tally, rows = AccuracyTally(promised=0.935), 0
        while not tally.flagged:
            right = int((random.random(10) < 0.845).sum())
            credit(tally, float(right), float(10 - right))
            settle(tally)
            rows += 10
        needed.append(rows)
    assert np.median(needed) <= 300
    assert max(needed) <= 900


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=40), st.floats(0, 1))
def test_any_tally_settles_within_bounds(credits_given, promised):
    tally = AccuracyTally(promised=promised)
    for right, wrong in credits_given:
        credit(tally, right, wrong)
        settle(tally)
    if tally.mean is not None:
        assert 0.0 <= tally.low <= tally.mean <= tally.high <= 1.0
    if tally.in_force is not None:
        assert 0.0 <= tally.in_force.low <= 1.0

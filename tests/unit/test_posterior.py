"""What a tally says: intervals, when they say enough, flags, and how the past fades."""

from __future__ import annotations

import pytest
from scipy.stats import beta

from scaler.policy.posterior import ROWS_MAX, WIDTH_MAX, credit, interval, restarted, settle, take_back
from schemas.learned import AccuracyTally, LearnedVariant


def tally(right=0.0, wrong=0.0, **stated):
    made = AccuracyTally(right=right, wrong=wrong, **({"promised": 0.9, "model": "m"} | stated))
    settle(made)
    return made


def test_the_interval_is_that_of_the_beta_distribution():
    mean, low, high = interval(90.0, 10.0)
    assert (low, high) == pytest.approx(beta.interval(0.95, 90.5, 10.5))
    assert mean == pytest.approx(90.5 / 101)
    assert interval(0.0, 5.0)[1] == 0.0
    assert interval(5.0, 0.0)[2] == 1.0


def test_nothing_is_in_force_before_the_interval_is_narrow():
    few, many = tally(90, 10), tally(900, 100)
    assert few.high - few.low > WIDTH_MAX
    assert few.in_force is None
    assert many.high - many.low <= WIDTH_MAX
    assert many.in_force == LearnedVariant(accuracy=round(many.mean, 6), low=round(many.low, 6), model="m")
    assert tally().mean is None


def test_a_broken_promise_is_in_force_at_once():
    broken = tally(160, 40, promised=0.95)
    assert broken.high - broken.low > WIDTH_MAX
    assert (broken.flagged, broken.in_force is not None) == (True, True)
    assert not tally(180, 20, promised=0.9).flagged
    assert not tally(5, 5, promised=1.0).flagged, "too few to say"


def test_a_flag_is_taken_back_when_the_promise_is_kept_again():
    found = tally(160, 40, promised=0.95)
    credit(found, 500, 0)
    settle(found)
    assert found.mean < 0.95
    assert found.flagged
    credit(found, 200, 0)
    settle(found)
    assert found.mean > 0.95
    assert not found.flagged


def test_what_is_in_force_moves_by_standard_deviations_only():
    found = tally(900, 100)
    before = found.in_force
    credit(found, 9, 1)
    settle(found)
    assert found.in_force is before
    credit(found, 30, 70)
    settle(found)
    assert found.in_force.accuracy < before.accuracy


def test_the_past_fades_and_what_is_taken_back_fades_with_it():
    found = AccuracyTally()
    credit(found, ROWS_MAX, 0)
    credit(found, 1, 0)
    assert (found.right, found.halvings) == ((ROWS_MAX + 1) / 2, 1)
    take_back(found, 1.0, 0.0, 0)
    assert found.right == ROWS_MAX / 2
    take_back(found, 0.0, 5.0, 1)
    assert found.wrong == 0.0


def test_another_model_starts_anew_and_another_declaration_does_not():
    found = tally(10, 0)
    assert restarted(found, 0.8, "m").right == 10
    assert restarted(found, 0.8, "m").promised == 0.8
    assert restarted(found, 0.8, "n") == AccuracyTally(promised=0.8, model="n")

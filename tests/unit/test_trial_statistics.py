"""What a trial says of numbers: known answers, and how often chance alone makes a verdict."""

from __future__ import annotations

import numpy as np
import pytest

from scaler.policy.trial_statistics import BETTER, NO_DIFFERENCE, TOO_LITTLE, WORSE, flipped, judged, paired


def test_the_interval_is_that_of_students_t() -> None:
    found = paired([0.92, 0.94, 0.90, 0.96], [0.90, 0.90, 0.90, 0.90])
    assert found is not None
    # Differences 0.02, 0.04, 0.00, 0.06: mean 0.03, standard deviation 0.02582, t(3) = 3.18245 at 97.5 %.
    assert found.mean == pytest.approx(0.03)
    assert (found.low, found.high) == (
        pytest.approx(0.03 - 3.18245 * 0.0258199 / 2, abs=1e-6),
        pytest.approx(0.03 + 3.18245 * 0.0258199 / 2, abs=1e-6),
    )
    assert (found.pairs, found.p_value) == (4, None)


def test_the_sign_flip_test_is_exact_for_few_pairs() -> None:
    # All six of one sign: only both ways of giving all the same sign are as far from zero.
    assert flipped([1.0, 2.0, 3.0, 1.0, 2.0, 3.0], 1) == pytest.approx(2 / 64)
    # 1 + 1 - 1: of the eight sums, all are as far from zero as 1.
    assert flipped([1.0, 1.0, -1.0], 1) == 1.0
    # 3, -1, 1: |sum| = 3; 5 and 3 and 3 either way: six of eight.
    assert flipped([3.0, -1.0, 1.0], 1) == pytest.approx(6 / 8)


def test_drawn_flips_come_near_to_the_exact_ones() -> None:
    differences = np.random.default_rng(3).normal(0.4, 1.0, 14)
    exact = flipped(differences.tolist(), 1)
    drawn = flipped([*differences.tolist(), 0.0], 1)
    assert drawn == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(
    ("candidate", "against", "word"),
    [
        ([0.9] * 10, [0.8 + 0.001 * at for at in range(10)], BETTER),
        ([0.8 + 0.001 * at for at in range(10)], [0.9] * 10, WORSE),
        ([0.9] * 10, [0.9] * 10, NO_DIFFERENCE),
        ([0.9005] * 10, [0.9] * 10, NO_DIFFERENCE),  # certain, and of no matter
        ([0.95, 0.85] * 5, [0.9] * 10, NO_DIFFERENCE),
        ([0.9, 0.9], [0.1, 0.1], TOO_LITTLE),
        ([], [], TOO_LITTLE),
    ],
)
def test_the_verdict_follows_the_numbers(candidate: list[float], against: list[float], word: str) -> None:
    assert judged(paired(candidate, against)) == word


def test_one_odd_interval_makes_no_verdict() -> None:
    """The interval of few pairs may be fooled by what the test of flipped signs is not, and the other way round: both are asked."""
    assert judged(paired([0.9] * 7 + [0.2], [0.9] * 8)) == NO_DIFFERENCE


@pytest.mark.parametrize("pairs", [3, 5, 8, 30])
def test_equal_optimizers_are_called_equal_in_nineteen_of_twenty_trials(pairs: int) -> None:
    random = np.random.default_rng(7)
    words = [judged(paired(random.normal(0.9, 0.02, pairs).tolist(), random.normal(0.9, 0.02, pairs).tolist())) for _ in range(300)]
    # 5 % of 300 is 15; 25 would be a chance of one in a hundred.
    assert sum(word != NO_DIFFERENCE for word in words) <= 25
    assert sum(word == BETTER for word in words) <= 17


@pytest.mark.parametrize("pairs", [8, 30])
def test_a_worse_optimizer_is_found_worse(pairs: int) -> None:
    random = np.random.default_rng(8)
    words = [judged(paired(random.normal(0.86, 0.015, pairs).tolist(), random.normal(0.9, 0.015, pairs).tolist())) for _ in range(100)]
    assert words.count(WORSE) >= 95
    assert words.count(BETTER) == 0

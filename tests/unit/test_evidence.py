"""The arithmetic of the sequential tests, against direct computation and against their own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphs.evidence import log_evidence_above, log_evidence_worse, log_needed, rank_above_quantile


def log_beta(a, b):
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def log_mixture(bad, count):
    return log_beta(bad + 0.5, count - bad + 0.5) - log_beta(0.5, 0.5)


@pytest.mark.parametrize(("bad", "count", "limit"), [(10, 40, 0.1), (40, 40, 0.5), (1, 3, 0.01), (300, 1000, 0.29)])
def test_evidence_of_one_share_is_the_mixture_over_the_likelihood_at_the_limit(bad, count, limit):
    direct = log_mixture(bad, count) - bad * math.log(limit) - ((count - bad) * math.log(1 - limit) if count > bad else 0)
    assert log_evidence_above(bad, count, limit) == pytest.approx(direct, rel=1e-9)


@pytest.mark.parametrize(
    ("arms", "margin"), [((20, 100, 1, 100), 0.02), ((5, 5, 0, 3), 0.0), ((30, 50, 10, 4_000), 0.05), ((7, 9, 6, 12), 0.1), ((50, 50, 40, 50), 0.1)]
)
def test_evidence_of_two_shares_is_the_least_over_all_that_the_margin_allows(arms, margin):
    bad, count, bad_before, count_before = arms
    shares = np.linspace(1e-6, 1 - margin - 1e-6, 200_001)
    allowed = bad * np.log(shares + margin) + (count - bad) * np.log1p(-shares - margin)
    allowed += bad_before * np.log(shares) + (count_before - bad_before) * np.log1p(-shares)
    direct = log_mixture(bad, count) + log_mixture(bad_before, count_before) - allowed.max()
    assert log_evidence_worse(*arms, margin) == pytest.approx(direct, abs=1e-3)


def test_nothing_speaks_against_what_is_within_the_limit():
    assert log_evidence_above(1, 10, 0.1) == 0.0
    assert log_evidence_above(0, 0, 0.1) == 0.0
    assert log_evidence_worse(2, 10, 1, 10, 0.1) == 0.0
    assert log_evidence_worse(5, 5, 0, 0, 0.0) == 0.0
    assert log_evidence_worse(0, 0, 0, 5, 0.0) == 0.0
    assert log_evidence_worse(10, 10, 0, 10, 1.0) == 0.0


def test_one_bad_answer_where_none_is_allowed_is_proof():
    assert log_evidence_above(1, 100, 0.0) == math.inf


def test_the_mean_of_the_evidence_is_1_where_the_share_is_the_limit():
    """The definition of a martingale, summed over all outcomes of ten observations (before the cut at what speaks for the limit)."""
    limit, count = 0.3, 10
    total = 0.0
    for bad in range(count + 1):
        chance = math.comb(count, bad) * limit**bad * (1 - limit) ** (count - bad)
        total += chance * math.exp(log_mixture(bad, count) - bad * math.log(limit) - (count - bad) * math.log(1 - limit))
        if bad > limit * count:
            assert math.exp(log_evidence_above(bad, count, limit)) <= 1 / chance
    assert total == pytest.approx(1.0)


def test_needed_is_one_over_the_error():
    assert math.exp(log_needed(0.01)) == pytest.approx(100)


@pytest.mark.parametrize(("count", "alpha"), [(528, 0.005), (1_000, 0.005), (5_000, 0.001), (300, 0.2), (7_000, 0.05)])
def test_the_rank_is_the_least_that_is_sure_enough(count, alpha):
    share = 0.99
    rank = rank_above_quantile(count, share, alpha)
    assert rank is not None

    def chance_below(rank):
        """That at least so many observations lie below the quantile."""
        number = np.arange(rank, count + 1)
        logs = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * math.log(share) + (count - k) * math.log(0.01)
            for k in number
        ]
        return float(np.exp(logs).sum())

    assert chance_below(rank) <= alpha * (1 + 1e-6)
    assert chance_below(rank - 1) > alpha


def test_too_few_observations_have_no_rank():
    assert rank_above_quantile(527, 0.99, 0.005) is None
    assert rank_above_quantile(528, 0.99, 0.005) == 528
    assert rank_above_quantile(0, 0.99, 0.005) is None

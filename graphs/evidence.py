"""How much the answers so far say against a limit: e-processes for shares, valid however often one looks and whenever one stops.

For Bernoulli observations the mixture M(p) = B(s + 1/2, f + 1/2) / B(1/2, 1/2) / (p^s (1 - p)^f) (s of them 1, f of them 0; Jeffreys' prior, that is,
the bets of Krichevsky and Trofimov) is a non-negative martingale of mean 1 where p is the truth; so is the product of two arms' mixtures where
both shares are true; and its least value over all shares that a null hypothesis allows never reaches 1/alpha but with a probability of at
most alpha (Ville's inequality).
Nothing is assumed on how the arms take turns, nor on when anyone looks. Sources: Robbins 1970 (Statistical methods related to the law of
the iterated logarithm); Howard, Ramdas, McAuliffe, Sekhon 2021 (Time-uniform, nonparametric, nonasymptotic confidence sequences, Ann. Statist. 49);
Wasserman, Ramdas, Balakrishnan 2020 (Universal inference, PNAS 117); Waudby-Smith, Ramdas 2024 (Estimating means of bounded random variables
by betting, JRSS B 86); for two samples compare Turner, Ly, Grünwald 2024 (Generic E-variables for exact sequential k-sample tests).
"""

from __future__ import annotations

from math import exp, lgamma, log, pi

_HALVINGS = 60


def log_evidence_above(bad: float, count: float, limit: float) -> float:
    """Log of the evidence that a share is above `limit`, from `bad` of `count` observations; 0 or less where nothing speaks for it."""
    if count == 0 or bad <= limit * count:
        return 0.0
    return _log_mixture(bad, count) - _log_likelihood(bad, count, limit)


def log_evidence_worse(bad: int, count: int, bad_before: int, count_before: int, margin: float) -> float:
    """Log of the evidence that the first arm's share is above the second's by more than `margin`; 0 or less where nothing speaks for it."""
    if count == 0 or count_before == 0 or bad / count <= bad_before / count_before + margin:
        return 0.0
    share = _most_likely_before(bad, count, bad_before, count_before, margin)
    allowed = _log_likelihood(bad, count, share + margin) + _log_likelihood(bad_before, count_before, share)
    return _log_mixture(bad, count) + _log_mixture(bad_before, count_before) - allowed


def log_needed(alpha: float) -> float:
    """What the log of the evidence must reach for a decision that is wrong with a probability of at most `alpha`."""
    return -log(alpha)


def rank_above_quantile(count: int, share: float, alpha: float) -> int | None:
    """Rank (from 1) of the least of `count` ordered observations that lies at or above their true `share` quantile but with probability `alpha`.

    The number of observations below that quantile is binomial (Wilks 1941); None while there are too few. For one look, at a time fixed beforehand.
    """
    if count == 0 or count * log(share) > log(alpha):
        return None
    tail, term = 0.0, count * log(share)
    # P(at least `rank` observations lie below the quantile), from the top: all of them, all but one, ...
    for rank in range(count, 0, -1):
        tail += exp(term)
        if tail > alpha:
            return rank + 1
        term += log(rank / (count - rank + 1)) + log((1 - share) / share)
    return 1


def _log_mixture(bad: float, count: float) -> float:
    return lgamma(bad + 0.5) + lgamma(count - bad + 0.5) - lgamma(count + 1.0) - log(pi)


def _log_likelihood(bad: float, count: float, share: float) -> float:
    if (bad and share <= 0.0) or (bad < count and share >= 1.0):
        return -float("inf")
    return (bad * log(share) if bad else 0.0) + ((count - bad) * log(1.0 - share) if bad < count else 0.0)


def _most_likely_before(bad: int, count: int, bad_before: int, count_before: int, margin: float) -> float:
    """The second arm's share that makes both arms most likely where the first is worse by just `margin`: the root of a falling derivative."""

    def slope(share: float) -> float:
        up = bad / (share + margin) + bad_before / share
        down = (count - bad) / (1.0 - share - margin) + (count_before - bad_before) / (1.0 - share)
        return up - down

    low, high = 0.0, 1.0 - margin
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2

"""What judged answers say of an accuracy: a Beta posterior, when that says enough, and when it says that a promise is broken.

Beta posterior with Jeffreys' prior Beta(1/2, 1/2), whose equal-tailed intervals cover a fixed truth about as often as they say (Brown, Cai,
DasGupta 2001, Interval Estimation for a Binomial Proportion, Stat. Science 16). Scores between 0 and 1 count as parts of a row: such a variable
varies no more than a Bernoulli one of its mean, so that intervals are then rather too wide. The same holds for halved tallies: the weights are
at most 1, and sum(w)^2 / sum(w^2) >= sum(w).
A promise counts as broken when the evidence of graphs/evidence.py, valid however often one looks, reaches 1 in 1,000.
"""

from __future__ import annotations

import msgspec
from scipy.special import betaincinv

from graphs.evidence import log_evidence_above, log_needed
from schemas.learned import AccuracyTally, LearnedVariant, RowTally

PRIOR = 0.5
TAIL = 0.025
"""On each side of an interval."""
WIDTH_MAX = 0.06
"""An interval that is narrower says enough: 0.06 is some 400 rows at an accuracy of 0.9."""
ROWS_MAX = 10_000.0
"""Above it a tally is halved: what is older than some thousands of rows fades."""
FLAG_ALPHA = 0.001
ROWS_MIN = 30.0
"""A flag needs as many: a promise of 1.0 would be broken by the first slip of a hand."""
SIGMAS_PER_WIDTH = 4.0
"""A 95 % interval is about so many standard deviations wide."""


def credit(tally: RowTally, right: float, wrong: float) -> None:
    """Count rows, and let the past fade."""
    tally.right += right
    tally.wrong += wrong
    while tally.right + tally.wrong > ROWS_MAX:
        tally.right /= 2.0
        tally.wrong /= 2.0
        tally.halvings += 1


def take_back(tally: AccuracyTally, right: float, wrong: float, halvings: int) -> None:
    """Undo a credit that was given when the tally had been halved `halvings` times."""
    part = 0.5 ** max(tally.halvings - halvings, 0)
    tally.right = max(tally.right - right * part, 0.0)
    tally.wrong = max(tally.wrong - wrong * part, 0.0)


def interval(right: float, wrong: float) -> tuple[float, float, float]:
    """(mean of the posterior, low, high): the equal-tailed 95 % credible interval, whose ends are 0 and 1 where no row speaks against that."""
    a, b = right + PRIOR, wrong + PRIOR
    low = 0.0 if right <= 0.0 else float(betaincinv(a, b, TAIL))
    high = 1.0 if wrong <= 0.0 else float(betaincinv(a, b, 1.0 - TAIL))
    return a / (a + b), low, high


def settle(tally: AccuracyTally) -> None:
    """Bring what follows from the counts in line with them: mean, interval, flag, and what others are told to go by."""
    rows = tally.right + tally.wrong
    if rows <= 0.0:
        tally.mean = tally.low = tally.high = None
        return
    tally.mean, tally.low, tally.high = interval(tally.right, tally.wrong)
    if tally.flagged:
        # It has to come back all the way: a variant at its border would blink.
        tally.flagged = tally.mean < tally.promised
    elif rows >= ROWS_MIN:
        tally.flagged = log_evidence_above(tally.wrong, rows, 1.0 - tally.promised) >= log_needed(FLAG_ALPHA)
    if tally.high - tally.low <= WIDTH_MAX or tally.flagged:
        _tell(tally, tally.mean, tally.low, (tally.high - tally.low) / SIGMAS_PER_WIDTH)
    else:
        tally.in_force = None


def _tell(tally: AccuracyTally, mean: float, low: float, sigma: float) -> None:
    """What is in force stays while it is within a standard deviation: with each change requests in waiting are judged anew."""
    before = tally.in_force
    if before is None or before.model != tally.model or abs(mean - before.accuracy) > sigma or abs(low - before.low) > sigma:
        tally.in_force = LearnedVariant(accuracy=round(mean, 6), low=round(low, 6), model=tally.model)


def restarted(tally: AccuracyTally, promised: float, model: str) -> AccuracyTally:
    """The tally under the present declaration; a new one where the model is another."""
    if tally.model != model:
        return AccuracyTally(promised=promised, model=model)
    return msgspec.structs.replace(tally, promised=promised)

"""Turns of a switchback: which answers count for whom, and what the report makes of them."""

from __future__ import annotations

from typing import Literal

import pytest

from scaler.policy.trial_arm import Measured
from scaler.policy.trial_periods import Periods, order_of
from scaler.policy.trial_report import Pair, report_of
from schemas.terminal import ErrorDetail, TerminalHead

Outcome = Literal["completed", "expired", "rejected", "failed"]


def head(received_ms: int, outcome: Outcome = "completed", accuracy: float | None = 0.9, error: str = "") -> TerminalHead:
    detail = ErrorDetail(error, "") if error else None
    return TerminalHead("", outcome, [], received_ms, received_ms, 1, 1, 1, error=detail, accuracy=accuracy)


def test_every_pair_has_both_and_chance_decides_who_comes_first() -> None:
    order = order_of(200, seed=3)
    pairs = list(zip(order[::2], order[1::2], strict=True))
    assert set(pairs) == {(True, False), (False, True)}
    assert 70 < sum(first for first, _ in pairs) < 130
    assert order_of(200, seed=3) == order
    assert order_of(200, seed=4) != order


def test_requests_count_for_the_turn_in_which_they_came() -> None:
    periods = Periods()
    periods.begin(1_000.0, candidate=True)
    periods.end(2_000.0)
    periods.begin(3_000.0, candidate=False)
    periods.answered(b"settling", head(2_500))
    periods.answered(b"late answer", head(1_999, "expired", None))
    periods.answered(b"good", head(1_000))
    periods.answered(b"too late", head(2_000))
    periods.answered(b"other", head(3_000, accuracy=0.8))
    assert periods.pairs() == []
    periods.end(4_000.0)
    (pair,) = periods.pairs()
    assert (pair.candidate.offered, pair.candidate.completed, pair.candidate.accuracy_sum) == (2, 1, 0.9)
    assert (pair.against.offered, pair.against.completed, pair.against.accuracy_sum) == (1, 1, 0.8)


def test_the_first_answer_of_a_key_is_the_answer_and_what_no_plan_could_spare_is_none() -> None:
    periods = Periods()
    periods.begin(0.0, candidate=True)
    periods.answered(b"a", head(1, "expired", None))
    periods.answered(b"a", head(1))
    for code in ("bad_request", "unknown_endpoint", "too_large", "quota"):
        periods.answered(code.encode(), head(1, "rejected", None, code))
    periods.answered(b"b", head(1, "rejected", None, "overloaded"))
    periods.end(10.0)
    periods.begin(10.0, candidate=False)
    periods.end(20.0)
    (pair,) = periods.pairs()
    assert (pair.candidate.offered, pair.candidate.completed) == (2, 0)


def measured(offered: int, completed: int, accuracy: float) -> Measured:
    return Measured(offered=offered, completed=completed, accuracy_sum=completed * accuracy)


def test_the_report_weighs_accuracy_over_all_that_was_asked() -> None:
    """More accurate and too late is worse than a little less accurate and on time."""
    pairs = [Pair(at_ms=float(at), candidate=measured(100, 60 + at, 0.95), against=measured(100, 99, 0.9)) for at in range(8)]
    report = report_of("shadow", ("loki", "greedy"), pairs)
    assert report.verdict == "worse"
    assert report.text.startswith("loki is worse than greedy: accuracy over all that was asked -")
    assert report.accuracy_served is not None
    assert report.accuracy_served.mean == pytest.approx(0.05)
    assert report.attainment is not None
    assert report.attainment.mean == pytest.approx(0.635 - 0.99)
    assert (report.candidate.offered, report.candidate.completed, report.candidate.attainment) == (800, 508, pytest.approx(0.635))


def test_quiet_pairs_tell_nothing() -> None:
    quiet = Pair(at_ms=0.0, candidate=measured(0, 0, 0.0), against=measured(100, 100, 0.9))
    report = report_of("switchback", ("a", "b"), [quiet] * 9)
    assert (report.verdict, report.worth, len(report.pairs)) == ("too little data", None, 9)
    assert report.text == "too little data: nothing was asked while a and b were compared"
    two = report_of("shadow", ("a", "b"), [Pair(at_ms=0.0, candidate=measured(9, 9, 0.9), against=measured(9, 1, 0.9))] * 2)
    assert two.text == "too little data: 2 comparisons with demand, 3 are the least: let the trial run longer"


def test_equal_sides_are_said_to_be_equal() -> None:
    alike = Pair(at_ms=0.0, candidate=measured(100, 99, 0.9), against=measured(100, 99, 0.9))
    report = report_of("shadow", ("a", "b"), [alike] * 10)
    assert report.text == "no difference seen between a and b: accuracy over all that was asked +0.00 points [+0.00, +0.00]"

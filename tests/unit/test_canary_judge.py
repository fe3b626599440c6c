"""The judge of a canary: what it counts, when it holds, goes on, goes back, and what it takes from one step to the next."""

from __future__ import annotations

import msgspec
import pytest

from graphs.canary import ADVANCE, CANDIDATE, HOLD, PROMOTE, ROLLBACK, STABLE, Judge
from schemas.canary import JudgeState
from schemas.graph import CanaryNode, Guardrails
from schemas.terminal import COMPLETED, EXPIRED, FAILED, REJECTED

OFF = Guardrails(failed_share=None, latency_p99=None, attainment=None, agreement=None, accuracy=None)


def node(*, steps=(10.0, 50.0, 100.0), step_requests=20, **rails):
    guardrails = msgspec.structs.replace(OFF, **rails) if rails else Guardrails()
    return CanaryNode(stable="old", candidate="new", steps=steps, step_requests=step_requests, guardrails=guardrails)


def judge(percent=10.0, **stated):
    made = Judge(node(**stated))
    made.enter(percent)
    return made


def observe(made, arm, count, outcome=COMPLETED, latency_ms=10.0):
    for _ in range(count):
        made.observe(arm, outcome, latency_ms)


def test_a_step_needs_its_answers_and_then_goes_on():
    made = judge()
    observe(made, STABLE, 100)
    observe(made, CANDIDATE, 19)
    assert made.decide().action == HOLD
    assert "19 of 20" in made.decide().reason
    observe(made, CANDIDATE, 1)
    decision = made.decide()
    assert (decision.action, decision.percent) == (ADVANCE, 50.0)


def test_after_the_last_step_the_candidate_is_promoted():
    made = judge(percent=100.0)
    observe(made, CANDIDATE, 20)
    assert (made.decide().action, made.decide().percent) == (PROMOTE, 100.0)


def test_a_share_set_by_hand_goes_on_with_the_next_larger_step():
    made = judge(percent=30.0)
    observe(made, CANDIDATE, 20)
    assert made.decide().percent == 50.0


def test_rejected_requests_count_nowhere():
    made = judge()
    observe(made, CANDIDATE, 50, REJECTED)
    assert made.state.candidate.answered == 0


@pytest.mark.parametrize(
    ("rail", "bad", "said"),
    [("failed_share", FAILED, "failed"), ("attainment", EXPIRED, "were not completed in time"), ("attainment", FAILED, "not completed in time")],
)
def test_bad_answers_roll_back_and_the_reason_has_the_figures(rail, bad, said):
    made = judge(**{rail: 0.02})
    observe(made, STABLE, 300)
    observe(made, CANDIDATE, 10, bad)
    decision = made.decide()
    assert (decision.action, decision.percent) == (ROLLBACK, 0.0)
    assert "100.0% of 10 candidate answers" in decision.reason
    assert said in decision.reason
    assert [(weighed.guardrail, weighed.strength >= 1) for weighed in decision.evidence] == [(rail, True)]


def test_expired_answers_are_no_failures():
    made = judge(failed_share=0.02)
    observe(made, STABLE, 300)
    observe(made, CANDIDATE, 30, EXPIRED)
    assert made.decide().action == ADVANCE


def test_what_stable_suffers_too_is_no_reason():
    made = judge(failed_share=0.02, attainment=0.05)
    observe(made, STABLE, 300, FAILED)
    observe(made, CANDIDATE, 30, FAILED)
    assert made.decide().action == ADVANCE


def test_outside_but_not_certain_holds_even_after_the_steps_answers():
    made = judge(failed_share=0.02)
    observe(made, STABLE, 300)
    observe(made, CANDIDATE, 20)
    observe(made, CANDIDATE, 5, FAILED)
    decision = made.decide()
    assert decision.action == HOLD
    assert "20.0% of 25 candidate answers failed, of stable's 0.0% (at most 2.0%): not certain yet" in decision.reason
    assert 0 < decision.evidence[0].strength < 1


def test_without_stable_answers_nothing_is_compared():
    made = judge(failed_share=0.02)
    observe(made, CANDIDATE, 30, FAILED)
    assert made.decide().action == ADVANCE


def test_agreement_needs_pairs_and_is_judged_by_them():
    made = judge(agreement=0.9, step_requests=40)
    observe(made, CANDIDATE, 40)
    assert "0 of 30 pairs" in made.decide().reason
    for at in range(30):
        made.pair(agreed=at % 10 != 0)
    assert made.decide().action == ADVANCE
    for _ in range(30):
        made.pair(agreed=False)
    assert made.decide().action == ROLLBACK
    assert "differ from stable's" in made.decide().reason


def test_labelled_accuracy_counts_where_there_are_labels():
    made = judge(accuracy=0.02)
    observe(made, CANDIDATE, 30)
    assert made.decide().action == ADVANCE
    for _ in range(100):
        made.label(STABLE, correct=True)
        made.label(CANDIDATE, correct=False)
    assert made.decide().action == ROLLBACK


def test_slow_answers_roll_back_once_stables_p99_is_known():
    made = judge(latency_p99=1.5, step_requests=100)
    observe(made, STABLE, 200, latency_ms=10.0)
    observe(made, CANDIDATE, 50, latency_ms=100.0)
    assert made.decide().evidence[0].answers == 0, "nothing to compare with yet"
    observe(made, STABLE, 500, latency_ms=10.0)
    assert made.state.thresholds_ms == pytest.approx((15.0, 15.0), rel=0.03)
    observe(made, STABLE, 200, latency_ms=10.0)
    observe(made, CANDIDATE, 20, latency_ms=14.0)
    assert not made.decide().evidence[0].outside
    observe(made, CANDIDATE, 20, latency_ms=16.0)
    assert made.decide().action == ROLLBACK
    assert "slower than stable's p99 allows" in made.decide().reason


def test_what_is_likely_too_slow_but_not_certainly_holds():
    made = judge(latency_p99=1.5, step_requests=20)
    for at in range(700):
        made.observe(STABLE, COMPLETED, 10.0 if at % 200 else 30.0)
    assert made.state.thresholds_ms == pytest.approx((45.0, 15.0), rel=0.03), "the largest one is the limit, the usual one the guess"
    observe(made, STABLE, 200, latency_ms=10.0)
    observe(made, CANDIDATE, 40, latency_ms=20.0)
    decision = made.decide()
    assert decision.action == HOLD
    assert "slower than stable's p99 allows" in decision.reason


def test_the_threshold_stays_within_a_step_and_follows_in_the_next():
    made = judge(latency_p99=2.0)
    observe(made, STABLE, 700, latency_ms=10.0)
    first = made.state.thresholds_ms
    observe(made, STABLE, 2_500, latency_ms=40.0)
    assert made.state.thresholds_ms == first
    made.enter(50.0)
    assert made.state.thresholds_ms == pytest.approx((80.0, 80.0), rel=0.03)


def test_each_step_counts_for_itself_and_needs_more_evidence():
    made = judge(failed_share=0.02)
    observe(made, STABLE, 300)
    observe(made, CANDIDATE, 5, FAILED)
    before = made.decide().evidence[0].strength
    made.enter(50.0)
    assert (made.state.candidate.answered, made.state.stable.answered, made.state.step) == (0, 0, 2)
    observe(made, STABLE, 300)
    observe(made, CANDIDATE, 5, FAILED)
    assert 0 < made.decide().evidence[0].strength < before


def test_at_100_percent_stables_last_answers_stay():
    made = judge(failed_share=0.02)
    observe(made, STABLE, 300)
    made.enter(100.0)
    observe(made, CANDIDATE, 10, FAILED)
    assert made.state.stable.answered == 300
    assert made.decide().action == ROLLBACK


def test_state_goes_over_the_wire_and_another_judge_goes_on():
    made = judge(step_requests=10)
    observe(made, STABLE, 700)
    observe(made, CANDIDATE, 9, EXPIRED)
    state = msgspec.json.decode(msgspec.json.encode(made.state), type=JudgeState)
    assert state == made.state
    again = Judge(made.node, state)
    assert again.decide() == made.decide()
    for one in (made, again):
        observe(one, CANDIDATE, 1)
    assert again.decide() == made.decide()


def test_deciding_changes_nothing():
    made = judge()
    observe(made, CANDIDATE, 30, FAILED)
    before = msgspec.json.encode(made.state)
    made.decide()
    assert msgspec.json.encode(made.state) == before

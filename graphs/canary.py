"""Judges a canary: folds the answers of both arms, and decides when there is enough evidence to go back, and when it may go on.

Each guardrail is a test of its own (graphs/evidence.py), valid at every moment: whoever looks after each answer is wrong no more often than
whoever looks once. All of them together roll back a candidate that is within its guardrails, and so one that is as good as stable, with
a probability of at most `alpha` over the whole canary: each guardrail that is on gets an equal part, and of that the n-th step 1/(n (n + 1)).

Each step is judged by its own answers alone. Load and the mix of requests move from step to step, and so does the candidate's share of them:
added up over steps, an equal candidate would look worse where most of its answers came at a busy hour (Simpson's paradox). Within a step both
arms see the same traffic. At 100 % there is no stable arm any more; there the candidate is compared with stable's answers of the step before, and is
blamed for whatever else has become worse since: let `steps` end below 100 where that happens.
"""

from __future__ import annotations

from math import ceil, log

import msgspec

from graphs.evidence import log_evidence_above, log_evidence_worse, log_needed, rank_above_quantile
from schemas.canary import CanaryTally, JudgeState, Weighed
from schemas.graph import CanaryNode
from schemas.terminal import COMPLETED, FAILED, REJECTED

STABLE, CANDIDATE = "stable", "candidate"
HOLD, ADVANCE, ROLLBACK, PROMOTE = "hold", "advance", "rollback", "promote"
ALPHA = 0.05
PAIRS_MIN = 30
"""Pairs of answers to the same request that a step needs where agreement is a guardrail."""
_BUCKET_BASE = 1.02
"""Latencies are kept by powers of this: thresholds are at most so much too high."""
_TAIL = 0.01
"""Of latencies above a p99."""


class Decision(msgspec.Struct, frozen=True):
    """`percent`: to the candidate from now on, where that changes (advance, promote, rollback)."""

    action: str
    reason: str
    percent: float
    evidence: tuple[Weighed, ...] = ()


class Judge:
    """Judges one canary node. `state` is all that it knows: another judge goes on from it."""

    def __init__(self, node: CanaryNode, state: JudgeState | None = None, *, alpha: float = ALPHA) -> None:
        self.node = node
        self.state = state or JudgeState()
        rails = node.guardrails
        self._watched = [name for name in rails.__struct_fields__ if getattr(rails, name) is not None]
        self._alpha = alpha / max(1, len(self._watched))

    def enter(self, percent: float) -> None:
        """A step begins: the share has moved. The last one's counts are of the past, but for stable's where it gets no requests any more."""
        state = self.state
        kept = state.stable if percent >= 100.0 and state.step else CanaryTally()
        state.percent, state.step = percent, state.step + 1
        state.candidate, state.stable = CanaryTally(), kept
        state.pairs = state.disagreed = 0
        if percent < 100.0 or not kept.timed:
            state.thresholds_ms = self._factored(state.stable_p99_ms)

    def observe(self, arm: str, outcome: str, latency_ms: float) -> None:
        """One answer (terminal record) of an arm. Rejected requests were never given to one, and count nowhere."""
        if outcome == REJECTED:
            return
        tally = self.state.stable if arm == STABLE else self.state.candidate
        tally.answered += 1
        tally.failed += outcome == FAILED
        tally.late += outcome != COMPLETED
        if outcome == COMPLETED and self.state.thresholds_ms is not None:
            certain_ms, likely_ms = self.state.thresholds_ms
            tally.timed += 1
            tally.slow += latency_ms > certain_ms
            tally.slowish += latency_ms > likely_ms
        if outcome == COMPLETED and arm == STABLE:
            self._learn_latency(latency_ms)

    def pair(self, *, agreed: bool) -> None:
        """Both arms answered the same request."""
        self.state.pairs += 1
        self.state.disagreed += not agreed

    def label(self, arm: str, *, correct: bool) -> None:
        """Somebody said what an answer should have been."""
        tally = self.state.stable if arm == STABLE else self.state.candidate
        tally.labelled += 1
        tally.wrong += not correct

    def decide(self) -> Decision:
        """What the answers so far call for; changes nothing."""
        evidence = tuple(self._weigh(name) for name in self._watched)
        for weighed in evidence:
            if weighed.strength >= 1.0:
                return Decision(ROLLBACK, f"{_said(weighed)}: certain enough to roll back", 0.0, evidence)
        here, wanted = self.state.candidate.answered, self.node.step_requests
        if here < wanted:
            return self._hold(f"{here} of {wanted} candidate answers of this step", evidence)
        if "agreement" in self._watched and self.state.pairs < min(PAIRS_MIN, wanted):
            return self._hold(f"{self.state.pairs} of {min(PAIRS_MIN, wanted)} pairs of answers to compare", evidence)
        for weighed in evidence:
            if weighed.outside:
                return self._hold(f"{_said(weighed)}: not certain yet", evidence)
        following = next((step for step in self.node.steps if step > self.state.percent), None)
        if following is None:
            return Decision(PROMOTE, f"within all guardrails over {here} answers of the last step", 100.0, evidence)
        return Decision(ADVANCE, f"within all guardrails over {here} answers", following, evidence)

    def _hold(self, reason: str, evidence: tuple[Weighed, ...]) -> Decision:
        return Decision(HOLD, reason, self.state.percent, evidence)

    def _weigh(self, name: str) -> Weighed:
        stable, candidate = self.state.stable, self.state.candidate
        alpha = self._alpha / (max(1, self.state.step) * (max(1, self.state.step) + 1))
        limit = float(getattr(self.node.guardrails, name))
        if name == "failed_share":
            return _compared(name, (candidate.failed, candidate.answered), (stable.failed, stable.answered), limit, alpha)
        if name == "attainment":
            return _compared(name, (candidate.late, candidate.answered), (stable.late, stable.answered), limit, alpha)
        if name == "accuracy":
            return _compared(name, (candidate.wrong, candidate.labelled), (stable.wrong, stable.labelled), limit, alpha)
        if name == "latency_p99":
            # One half of this guardrail's part stands for a threshold below the true one, see _learn_latency.
            sure = _compared(name, (candidate.slow, candidate.timed), (stable.slow, stable.timed), _TAIL, alpha / 2)
            likely = _compared(name, (candidate.slowish, candidate.timed), (stable.slowish, stable.timed), _TAIL, alpha / 2)
            return sure if sure.strength >= 1.0 else msgspec.structs.replace(likely, strength=sure.strength)
        return _above(name, self.state.disagreed, self.state.pairs, 1.0 - limit, alpha)

    def _learn_latency(self, latency_ms: float) -> None:
        """Keeps stable's latencies, and at 1, 2, 4, ... times the least useful number an upper limit of their p99.

        A candidate whose p99 is within the factor exceeds factor x that limit in at most 1 % of its answers; one that is as fast as stable exceeds
        any threshold as often as stable does. So the test is whether its share of answers above the threshold is more than 1 % larger than stable's.
        To go on, a candidate must be within factor x the best guess as well: the limit alone would let one pass that is a little too slow.
        The thresholds of a step do not move once answers were compared with them.
        """
        state = self.state
        bucket = ceil(log(max(latency_ms, 1e-3)) / log(_BUCKET_BASE))
        state.latencies[bucket] = state.latencies.get(bucket, 0) + 1
        state.latencies_count += 1
        if state.latencies_count < max(state.p99_learned_at * 2, 1):
            return
        looks = state.p99_looks + 1
        rank = rank_above_quantile(state.latencies_count, 1.0 - _TAIL, self._alpha / 2 / (looks * (looks + 1)))
        if rank is None:
            return
        state.p99_learned_at, state.p99_looks = state.latencies_count, looks
        guess = ceil(state.latencies_count * (1.0 - _TAIL))
        state.stable_p99_ms = _at_rank(state.latencies, rank), _at_rank(state.latencies, guess)
        if state.thresholds_ms is None:
            state.thresholds_ms = self._factored(state.stable_p99_ms)

    def _factored(self, p99_ms: tuple[float, float] | None) -> tuple[float, float] | None:
        factor = self.node.guardrails.latency_p99
        return None if p99_ms is None or factor is None else (p99_ms[0] * factor, p99_ms[1] * factor)


def _compared(name: str, candidate: tuple[int, int], stable: tuple[int, int], margin: float, alpha: float) -> Weighed:
    strength = log_evidence_worse(*candidate, *stable, margin) / log_needed(alpha)
    before = _share(*stable)
    return Weighed(
        guardrail=name,
        candidate=_share(*candidate),
        stable=before if stable[1] else None,
        limit=before + margin,
        answers=candidate[1],
        stable_answers=stable[1],
        strength=round(max(strength, 0.0), 4),
        outside=bool(candidate[1] and stable[1]) and _share(*candidate) > before + margin,
    )


def _above(name: str, bad: int, count: int, limit: float, alpha: float) -> Weighed:
    strength = log_evidence_above(bad, count, limit) / log_needed(alpha)
    return Weighed(
        guardrail=name,
        candidate=_share(bad, count),
        stable=None,
        limit=limit,
        answers=count,
        stable_answers=0,
        strength=round(max(strength, 0.0), 4),
        outside=bool(count) and bad > limit * count + 1e-9,
    )


def _share(bad: int, count: int) -> float:
    return bad / count if count else 0.0


_WORDS = {
    "failed_share": "failed",
    "attainment": "were not completed in time",
    "accuracy": "were wrong",
    "latency_p99": "were slower than stable's p99 allows",
    "agreement": "differ from stable's",
}


def _said(weighed: Weighed) -> str:
    before = "" if weighed.stable is None else f", of stable's {weighed.stable:.1%}"
    return f"{weighed.candidate:.1%} of {weighed.answers} candidate answers {_WORDS[weighed.guardrail]}{before} (at most {weighed.limit:.1%})"


def _at_rank(buckets: dict[int, int], rank: int) -> float:
    """The upper edge of the bucket that holds this rank."""
    passed = 0
    for bucket in sorted(buckets):
        passed += buckets[bucket]
        if passed >= rank:
            return _BUCKET_BASE**bucket
    return _BUCKET_BASE ** max(buckets)


def first_step(node: CanaryNode) -> float:
    """Percent that a canary starts with."""
    return node.steps[0] if node.steps else 100.0

"""Golden records of feedback, of what is learned from it, and of alerts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from schemas.alerts import Alert, decode_alert, encode_alert
from schemas.feedback import Feedback, decode_feedback, encode_feedback
from schemas.learned import (
    AccuracyState,
    AccuracyTally,
    AgreementTally,
    FeedbackCounts,
    Learned,
    LearnedVariant,
    decode_accuracy_state,
    decode_learned,
    encode_learned,
)
from schemas.terminal import OutputTensor

IN_FORCE = LearnedVariant(accuracy=0.8462, low=0.8226, model="ab" * 32)
TALLY = AccuracyTally(
    right=804.0, wrong=146.0, halvings=1, promised=0.935, model="ab" * 32, flagged=True, mean=0.8462, low=0.8226, high=0.868, in_force=IN_FORCE
)
AGREEMENT = AgreementTally(
    right=430.0, wrong=74.0, halvings=2, reference="fashion/wide", models="aa~bb", mean=0.8525, low=0.8197, high=0.8817
)  # fmt: skip
STATE_V1 = AccuracyState(
    variants={"fashion/cnn": TALLY},
    paths={"fashion": {"main=cnn": AccuracyTally(right=3.0, promised=0.9, model="abababababab")}},
    counts=FeedbackCounts(credited=950, repeated=2, conflicting=1, unanswered=3, incomparable=4, unmatched=5, invalid=6),
    waiting=7,
    offsets={"headrace.feedback:0": 971, "headrace.responses:3": 120},
    at_ms=1_700_000_000_000,
    by="scaler-1",
)
STATE = msgspec.structs.replace(STATE_V1, agreements={"fashion/cnn": AGREEMENT}, agreement_offsets={"headrace.tap.responses:3": 77})
FEEDBACK = Feedback(id="order-1", labels=(9, 2), output=OutputTensor("label", [2], "INT64", [9, 2]), score=0.5, correct=True)
ALERT = Alert(
    source="accuracy",
    kind="accuracy",
    message="fashion/cnn falls below what it promises",
    endpoint="fashion",
    variant="fashion/cnn",
    severity="critical",
    at_ms=1_700_000_000_000,
    evidence={"mean": 0.8462, "rows": 950.0},
)

Kind = tuple[str, Any, Callable[[bytes], Any], Callable[[Any], bytes]]
FEEDBACK_KINDS: list[Kind] = [
    ("feedback-v1.json", FEEDBACK, decode_feedback, encode_feedback),
    ("catalog-learned-v1.json", Learned(variants={"fashion/cnn": IN_FORCE}), decode_learned, encode_learned),
    ("accuracy-state-v2.json", STATE, decode_accuracy_state, encode_learned),
    ("alert-v1.json", ALERT, decode_alert, encode_alert),
]
EARLIER_FEEDBACK_KINDS: list[Kind] = [("accuracy-state-v1.json", STATE_V1, decode_accuracy_state, encode_learned)]

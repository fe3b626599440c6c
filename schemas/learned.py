"""Learned accuracies: what everybody acts on ({p}.catalog, `learned/accuracies`), and all that the judge knows ({p}.accuracy, compacted)."""

from __future__ import annotations

from typing import Literal

import msgspec

from schemas.decoding import strict
from schemas.names import Names, TopicSpec

LEARNED_VERSION = 1
LEARNED_KEY_PREFIX = "learned/"
LEARNED_KEY = b"learned/accuracies"
STATE_KEY = b"state"
AccuracyPolicy = Literal["declared", "learned", "lower_bound"]
DECLARED: AccuracyPolicy = "declared"
LEARNED: AccuracyPolicy = "learned"
LOWER_BOUND: AccuracyPolicy = "lower_bound"
POLICIES: tuple[AccuracyPolicy, ...] = (DECLARED, LEARNED, LOWER_BOUND)


class LearnedVariant(msgspec.Struct, frozen=True, kw_only=True):
    """What feedback says of one variant, once it says enough."""

    accuracy: float
    """Mean of the posterior."""
    low: float
    """Lower end of its 95 % credible interval."""
    model: str
    """The SHA-256 (or call) that it was learned of: of another one nothing is known."""


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """By variant key."""

    variants: dict[str, LearnedVariant] = {}
    version: int = LEARNED_VERSION


class RowTally(msgspec.Struct, kw_only=True):
    """Rows that were right and wrong. Both are halved together when they are many, so that the past fades."""

    right: float = 0.0
    wrong: float = 0.0
    halvings: int = 0
    mean: float | None = None
    """Of the posterior; with the ends of its 95 % credible interval."""
    low: float | None = None
    high: float | None = None


class AgreementTally(RowTally, kw_only=True):
    """Rows of one variant on which the most accurate one of its task said the same (`right`), or something else."""

    reference: str
    """The key of that one."""
    models: str
    """Of both: of others nothing is known."""


class AccuracyTally(RowTally, kw_only=True):
    """Rows that feedback judged, of one variant or path."""

    promised: float = 0.0
    """Declared of a variant; of a path, what the latest answer claimed."""
    model: str = ""
    flagged: bool = False
    """Below what it promises: wrong with a probability of at most 0.001."""
    in_force: LearnedVariant | None = None


class FeedbackCounts(msgspec.Struct, kw_only=True):
    """Feedback records, by what became of them."""

    credited: int = 0
    repeated: int = 0
    """Said the same once more: counted once."""
    conflicting: int = 0
    """Said something else than before: the last word counts."""
    unanswered: int = 0
    """The request expired, failed or was rejected: there is no answer to judge."""
    incomparable: int = 0
    """Other rows or another kind of label than the answer has."""
    unmatched: int = 0
    """No answer of this id came within the window, before or after."""
    invalid: int = 0
    """No feedback at all, or of no request."""


class AccuracyState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a judge knows: its successor goes on from it."""

    variants: dict[str, AccuracyTally] = {}
    paths: dict[str, dict[str, AccuracyTally]] = {}
    """Of each endpoint, by `stage=variant` of the stages that ran a model, joined by commas."""
    counts: FeedbackCounts = msgspec.field(default_factory=FeedbackCounts)
    waiting: int = 0
    """Feedback whose answer has not been seen."""
    offsets: dict[str, int] = {}
    """Records that are counted: `topic:partition` -> the next offset."""
    agreements: dict[str, AgreementTally] = {}
    """By variant key."""
    agreement_offsets: dict[str, int] = {}
    """The same as `offsets`, of what agreement is counted from."""
    at_ms: int = 0
    by: str = ""
    version: int = LEARNED_VERSION


def accuracy_topic(names: Names) -> str:
    """Of the judge's state."""
    return f"{names.prefix}.accuracy"


def accuracy_spec(names: Names, *, record_bytes_max: int = 2 << 20) -> TopicSpec:
    """To create it."""
    config = {"max.message.bytes": str(record_bytes_max), "cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
    return TopicSpec(accuracy_topic(names), 1, config)


_encode = msgspec.json.Encoder().encode
_decode_learned = strict(msgspec.json.Decoder(Learned).decode)
_decode_state = strict(msgspec.json.Decoder(AccuracyState).decode)


def encode_learned(record: Learned | AccuracyState) -> bytes:
    """The record's value."""
    return _encode(record)


def decode_learned(value: bytes) -> Learned:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode_learned(value)


def decode_accuracy_state(value: bytes) -> AccuracyState:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode_state(value)

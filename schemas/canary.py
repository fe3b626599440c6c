"""Canary records, {p}.canary (compacted): what somebody asks for (key: endpoint), and how each canary stands (key: `endpoint/node`)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from schemas.alerts import alerts_spec
from schemas.decoding import strict
from schemas.feedback import feedback_spec
from schemas.names import Names, TopicSpec

CANARY_VERSION = 1
Phase = Literal["running", "promoted", "rolled_back"]
RUNNING: Phase = "running"
PROMOTED: Phase = "promoted"
ROLLED_BACK: Phase = "rolled_back"
NODE_MARK = "/"
Percent = Annotated[float, msgspec.Meta(ge=0.0, le=100.0)]


class CanaryTally(msgspec.Struct):
    """One arm's answers of one step. `late`: not completed in time, failures included.

    Of the `timed` ones `slow` took longer than the threshold that is certain, `slowish` longer than the one that is likely.
    """

    answered: int = 0
    failed: int = 0
    late: int = 0
    timed: int = 0
    slow: int = 0
    slowish: int = 0
    labelled: int = 0
    wrong: int = 0


class JudgeState(msgspec.Struct, omit_defaults=True):
    """All that a judge knows of a canary: a new leader goes on from it."""

    percent: float = 0.0
    step: int = 0
    """Steps that were entered: each has its own part of the error probability."""
    stable: CanaryTally = msgspec.field(default_factory=CanaryTally)
    candidate: CanaryTally = msgspec.field(default_factory=CanaryTally)
    pairs: int = 0
    disagreed: int = 0
    latencies: dict[int, int] = {}
    """Stable's, over the whole canary, by bucket."""
    latencies_count: int = 0
    p99_learned_at: int = 0
    p99_looks: int = 0
    stable_p99_ms: tuple[float, float] | None = None
    """(an upper limit, the best guess)."""
    thresholds_ms: tuple[float, float] | None = None
    """What latencies of this step are compared with: the factor times both."""


class Weighed(msgspec.Struct, frozen=True, kw_only=True):
    """One guardrail's evidence: the share of bad answers of each arm, and how strongly that speaks for a candidate that is worse than allowed."""

    guardrail: str
    candidate: float
    stable: float | None
    limit: float
    """The candidate's share may be this large."""
    answers: int
    stable_answers: int
    strength: float
    """1 and above: certain enough to roll back."""
    outside: bool
    """The candidate's share is above the limit, certain or not."""


class CanaryCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What an external system writes: `{"action": "set", "percent": 25, "reason": "..."}`. `node` may be left out where the graph has one canary."""

    action: Literal["start", "set", "promote", "rollback"]
    percent: Percent | None = None
    """Of `set` (needed), of `start` (else the first step)."""
    node: str = ""
    reason: str = ""


class CanaryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a canary stands; the endpoint's record in {p}.catalog says what share the candidate gets."""

    endpoint: str
    node: str
    phase: Phase
    percent: Percent
    reason: str = ""
    changed_ms: int = 0
    evidence: tuple[Weighed, ...] = ()
    judge: JudgeState | None = None
    offsets: dict[str, int] = {}
    """Records that `judge` has counted: `topic:partition` -> the next offset."""
    command: int = -1
    """Offset of the last command that was carried out."""
    by: str = ""
    """Who wrote it: a leader goes on from its predecessor's, and takes no notice of its own."""
    version: int = CANARY_VERSION


def canary_topic(names: Names) -> str:
    """Of commands and standings."""
    return f"{names.prefix}.canary"


def canary_topics(names: Names, *, record_bytes_max: int = 2 << 20) -> list[TopicSpec]:
    """To create them."""
    common = {"max.message.bytes": str(record_bytes_max)}
    compacted = common | {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
    return [
        TopicSpec(canary_topic(names), 1, compacted),
        feedback_spec(names, record_bytes_max=record_bytes_max),
        alerts_spec(names, record_bytes_max=record_bytes_max),
    ]


def status_key(endpoint: str, node: str) -> bytes:
    """Of a CanaryStatus; endpoints have no slash in their names."""
    return f"{endpoint}{NODE_MARK}{node}".encode()


_encode = msgspec.json.Encoder().encode
_decode_command = strict(msgspec.json.Decoder(CanaryCommand).decode)
_decode_status = strict(msgspec.json.Decoder(CanaryStatus).decode)


def encode_canary(record: CanaryCommand | CanaryStatus) -> bytes:
    """The record's value."""
    return _encode(record)


def decode_command(value: bytes) -> CanaryCommand:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode_command(value)


def decode_status(value: bytes) -> CanaryStatus:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode_status(value)

"""Feedback, {p}.feedback (key: request id): what an answer should have been, said later by somebody who knows."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

from schemas.datatypes import Array
from schemas.decoding import strict
from schemas.errors import BadRequest
from schemas.names import STAMPED, Names, TopicSpec
from schemas.tensors import decode_output
from schemas.terminal import OutputTensor, Terminal

Label = int | str
Labels = tuple[Label, ...]
"""What an answer says, one for each row."""
TOLERANCE = 1e-3
"""Numbers of a correct tensor may differ from the answer's by this part of their size."""


RIGHT_SCORE = 0.5
"""A canary counts answers as right or wrong: from this score on, as right."""


class Feedback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One judgement. The first that is given of `output`, `labels`, `label`, `score` and `correct` counts, in this order."""

    id: str | None = None
    """Of the request, where the record has no key."""
    label: Label | None = None
    """Of a request of one row."""
    labels: Labels | None = None
    """One for each row."""
    output: OutputTensor | None = None
    """The tensor that the answer should have had, by its name."""
    score: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    """How right the answer was."""
    correct: bool | None = None

    @property
    def said(self) -> Labels | None:
        """The labels, where it gives any."""
        return self.labels if self.labels is not None else None if self.label is None else (self.label,)

    @property
    def judges(self) -> bool:
        """Whether it says anything of the answer."""
        return any(given is not None for given in (self.label, self.labels, self.output, self.score, self.correct))


class Judged(msgspec.Struct, frozen=True):
    """How many rows of an answer were right and wrong; parts of one where a score was given."""

    right: float
    wrong: float


def feedback_topic(names: Names) -> str:
    """Of labels that come later."""
    return f"{names.prefix}.feedback"


def feedback_spec(names: Names, *, record_bytes_max: int = 2 << 20) -> TopicSpec:
    """To create it."""
    return TopicSpec(feedback_topic(names), 1, {"max.message.bytes": str(record_bytes_max)} | STAMPED | {"retention.ms": "86400000"})


def labels_of(terminal: Terminal) -> Labels | None:
    """Labels of an answer's first output: the argmax of scores over the last axis, else the values; None where there is none."""
    return _labels(terminal.outputs[0]) if terminal.outputs else None


def _labels(output: OutputTensor) -> Labels | None:
    try:
        first = decode_output(output)
    except BadRequest:
        return None
    if first.dtype.kind == "f" and first.ndim > 1:
        return tuple(first.argmax(axis=-1).ravel().tolist())
    return tuple(item.decode(errors="replace") if isinstance(item, bytes) else item for item in first.ravel().tolist())


def compared(said: Labels, answered: Labels) -> Judged | None:
    """Row by row; None where they cannot be compared: another number of rows, or names against numbers."""
    if not answered or len(said) != len(answered) or any(isinstance(a, str) != isinstance(b, str) for a, b in zip(said, answered, strict=True)):
        return None
    right = sum(a == b for a, b in zip(said, answered, strict=True))
    return Judged(float(right), float(len(said) - right))


def judged(feedback: Feedback, terminal: Terminal) -> Judged | None:
    """What it says of this answer; None where the two cannot be compared."""
    if feedback.output is not None:
        return _compared_tensors(feedback.output, terminal)
    said = feedback.said
    if said is not None:
        answered = labels_of(terminal)
        return None if answered is None else compared(said, answered)
    score = feedback.score if feedback.score is not None else feedback.correct
    return None if score is None else Judged(float(score), 1.0 - float(score))


def agrees(feedback: Feedback, answered: Labels) -> bool | None:
    """Whether an answer that is known by its labels alone was right, in every row; None where that cannot be said."""
    said = _labels(feedback.output) if feedback.output is not None else feedback.said
    if said is not None:
        found = compared(said, answered)
        return None if found is None else found.wrong == 0.0
    if feedback.score is not None:
        return feedback.score >= RIGHT_SCORE
    return feedback.correct


def _compared_tensors(correct: OutputTensor, terminal: Terminal) -> Judged | None:
    answered = next((output for output in terminal.outputs or () if output.name == correct.name), None)
    if answered is None or answered.shape != correct.shape or answered.datatype != correct.datatype:
        return None
    try:
        ours, theirs = decode_output(answered), decode_output(correct)
    except BadRequest:
        return None
    same: Array = np.isclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE) if ours.dtype.kind == "f" else ours == theirs
    rows = same.reshape(same.shape[0], -1).all(axis=1) if same.ndim else same.reshape(1)
    return Judged(float(rows.sum()), float(rows.size - rows.sum())) if rows.size else None


_encode = msgspec.json.Encoder().encode
_decode: Any = strict(msgspec.json.Decoder(Feedback).decode)


def encode_feedback(feedback: Feedback) -> bytes:
    """The record's value."""
    return _encode(feedback)


def decode_feedback(value: bytes) -> Feedback:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode(value)

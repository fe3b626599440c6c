"""Feedback files: JSON lines of `{"id": ..., "label": ...}`, read and checked before anything is written; what `headrace feedback` publishes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from broker.log import Message
from deploy.suggestions import did_you_mean
from schemas.errors import BadRequest
from schemas.feedback import Feedback, decode_feedback, encode_feedback
from schemas.limits import Limits

STDIN = "-"
PROBLEMS_SHOWN = 10
_FIELDS = Feedback.__struct_fields__


def read_feedback(file: str, limits: Limits | None = None) -> list[Message]:
    """One message for each line of FILE (`-`: stdin), keyed by the request's id; empty lines are passed over.

    Raises BadRequest with every wrong line (the first ten): then nothing is to be written.
    """
    limits = limits or Limits()
    messages: list[Message] = []
    problems: list[str] = []
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            messages.append(_message(line, limits))
        except BadRequest as error:
            problems.append(f"{file}:{number}: {error}")
    if problems:
        more = f"\nand {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise BadRequest("\n".join(problems[:PROBLEMS_SHOWN]) + more)
    return messages


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    try:
        if file == STDIN:
            yield from _numbered(sys.stdin.buffer)
        else:
            with Path(file).open("rb") as opened:
                yield from _numbered(opened)
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read: {error.strerror}") from None


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    return enumerate(lines, start=1)


def _message(line: bytes, limits: Limits) -> Message:
    try:
        feedback = decode_feedback(line)
    except msgspec.DecodeError as error:
        raise BadRequest(f'{error}: a line is like {{"id": "3f1c", "label": 7}}') from None
    unknown = [key for key in msgspec.json.decode(line, type=dict[str, msgspec.Raw]) if key not in _FIELDS]
    if unknown:
        raise BadRequest(f"unknown field {unknown[0]!r}{did_you_mean(unknown[0], _FIELDS)}")
    if not feedback.id:
        raise BadRequest("`id` is missing: of which request?")
    if len(feedback.id.encode()) > limits.request_id_bytes_max:
        raise BadRequest(f"the id has {len(feedback.id.encode())} bytes: a request id has 1 to {limits.request_id_bytes_max}")
    if not feedback.judges:
        raise BadRequest("it says nothing of the answer: give `label`, `labels`, `output`, `score` or `correct`")
    return feedback.id.encode(), encode_feedback(msgspec.structs.replace(feedback, id=None)), ()

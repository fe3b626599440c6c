"""The child process in which an optimizer proposes: frames of msgpack come in, proposals go out, whatever the plug-in prints or raises."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from importlib import import_module
from typing import Any, BinaryIO

import msgspec

from scaler.optimizers.optimizer import Limits, Proposal
from scaler.optimizers.registry import create_optimizer
from scaler.optimizers.snapshot import Snapshot

HEAD_BYTES = 4
REASON_MAX = 2_000
ALARM_GRACE_S = 5.0


class Question(msgspec.Struct, frozen=True):
    """Propose for this snapshot."""

    snapshot: Snapshot
    time_s: float
    seed: int


class Reply(msgspec.Struct, frozen=True):
    """What became of it: a proposal (encoded), or what was raised; with neither, the process is ready."""

    proposal: bytes = b""
    raised: str = ""
    nonsense: str = ""


def main(name: str, options: dict[str, float]) -> None:
    """Serve until the pipe is closed. Standard output is ours: what the plug-in prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    try:
        optimizer = _created(name, options)
    except Exception as error:  # a plug-in may raise anything: whoever asked is told
        _send(answers, Reply(raised=_said(error)))
        return
    _send(answers, Reply())
    decode = msgspec.msgpack.Decoder(Question).decode
    while (value := _receive(questions)) is not None:
        question = decode(value)
        # Whoever asked ends a process that is late; where that one is dead, the alarm does.
        signal.alarm(math.ceil(question.time_s + ALARM_GRACE_S))
        reply = _proposed(optimizer, question)
        signal.alarm(0)
        _send(answers, reply)


def _created(name: str, options: dict[str, float]) -> Any:
    module, colon, attribute = name.partition(":")
    return getattr(import_module(module), attribute)(**options) if colon else create_optimizer(name, options)


def _proposed(optimizer: Any, question: Question) -> Reply:
    try:
        found = optimizer.propose(question.snapshot, Limits(time_s=question.time_s, seed=question.seed, clock_s=time.monotonic))
    except Exception as error:  # a plug-in may raise anything: whoever asked is told
        return Reply(raised=_said(error))
    if not isinstance(found, Proposal):
        return Reply(nonsense=f"it returned {type(found).__name__}, not a proposal")
    try:
        return Reply(proposal=msgspec.msgpack.encode(found))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return Reply(nonsense=f"its proposal cannot be encoded: {error}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:REASON_MAX]


def _receive(stream: BinaryIO) -> bytes | None:
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    length = int.from_bytes(head, "big")
    value = stream.read(length)
    return value if len(value) == length else None


def _send(stream: BinaryIO, reply: Reply) -> None:
    value = msgspec.msgpack.encode(reply)
    stream.write(len(value).to_bytes(HEAD_BYTES, "big") + value)
    stream.flush()

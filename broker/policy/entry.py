"""One live request as the dispatcher holds it, from arrival until its terminal record has been read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from graphs.tensor import Tensor
from schemas.terminal import PathStep

SHADOW_PRIORITY = 10
"""Below every request's: a shadow's stages are sent to lanes that have nothing else, and count towards no load."""


class State(IntEnum):
    """Where a live request stands."""

    NEW = 0
    WAITING = 1
    LEASED = 2
    """A worker has it, under a lease."""
    HELD = 3
    """Was handed out and lost, and is not sent again: its deadline or its dead letter will answer it."""
    ANSWERED = 4
    """Our terminal record for it is on its way to the log."""
    DONE = 5
    """Its terminal record has been read from the log."""
    RUNNING = 6
    """It runs on a graph: its stages wait, or workers have them."""


NEW, WAITING, LEASED, HELD, ANSWERED, DONE, RUNNING = State
"""The same by themselves: looking a member up costs as much as the rest of a comparison, and each request is compared many times."""


class Entry(msgspec.Struct, gc=False, eq=False):
    """A request; mutable, owned by one dispatcher. Times in Unix milliseconds."""

    key: bytes
    """The request id, UTF-8."""
    shard: int
    offset: int
    received_ms: int
    """The log's time of the request record."""
    endpoint: str
    floor: float | None
    deadline_at_ms: int | None
    timeout_ms: int | None
    priority: int
    tenant: str
    rows: int
    bytes: int
    payload: object
    """The shell's own: what it needs to write the request on. The policy never looks inside."""
    refused: tuple[str, str] | None = None
    """(code, message) where the shell could not even read the routing fields."""
    traceparent: str | None = None
    task: str = ""
    rung: int = 0
    deadline_ms: int = 0
    state: State = NEW
    counted: bool = False
    """It is part of the demand that the scaler is told of."""
    admitted: bool = False
    """Its bytes and its deadline are on the dispatcher's books."""
    work_ms: float = 0.0
    """Computing time at the cheapest variant that meets the floor."""
    attempts: int = 0
    handed_out: bool = False
    """A worker has had it, if only in its queue."""
    late: tuple[tuple[str, str], ...] = ()
    """(worker, variant key) that handed it back because there it could not be in time: it is not sent there in that variant again."""
    held_back: bool = False
    """It arrived while its shard was recovering."""
    bucket: int = 0
    """Bucket of the waiting-work histogram that holds work_ms."""
    root: Entry | None = None
    """Of a stage: the request that it belongs to. Its own key then is the name of its order."""
    instance: str = ""
    """Of a stage: which one of its request's."""


class Send(msgspec.Struct, gc=False):
    """Command: write the request to a lane."""

    entry: Entry
    accelerator: str
    lane: int
    worker: str
    incarnation: int
    variant: str
    accuracy: float
    attempt: int


class Answer(msgspec.Struct, gc=False):
    """Command: write this terminal record: completed with tensors, or with the code and message of why not."""

    entry: Entry
    outcome: str
    code: str = ""
    message: str = ""
    stage: str | None = None
    """Where a graph's stage is at fault."""
    tensors: Sequence[Tensor] = ()
    accuracy: float | None = None
    path: Sequence[PathStep] = ()


class Tap(msgspec.Struct, gc=False):
    """Command: write a shadow's answer to the taps."""

    entry: Entry
    tensors: Sequence[Tensor]
    accuracy: float
    path: Sequence[PathStep]
    node: str = ""
    """Path of the shadow."""
    revision: int = 0
    """Of the graph that the request ran on."""


class DeadLetter(msgspec.Struct, gc=False):
    """Command: write the original record to the dead letters; the answer follows when the log has it."""

    entry: Entry
    reason: str


class Commands(msgspec.Struct):
    """What one step wants done."""

    sends: list[Send] = []
    answers: list[Answer] = []
    dead_letters: list[DeadLetter] = []
    taps: list[Tap] = []

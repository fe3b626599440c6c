"""Runs jobs in processes of their own: one that dies, or that waits for an optimizer which never returns, costs that job and no other.

Not a ProcessPoolExecutor: that one is broken as a whole by a process that has to be killed.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import msgspec

from deploy.process_memory import settle_memory

LOOK_S = 0.2
JOIN_S = 5.0


class Progress(msgspec.Struct, frozen=True, tag_field="kind", tag="progress"):
    """The run has come so far in virtual time."""

    at_s: float


class Waiting(msgspec.Struct, frozen=True, tag_field="kind", tag="waiting"):
    """The run waits for something foreign that may take so long, and no longer."""

    what: str
    time_s: float


class Going(msgspec.Struct, frozen=True, tag_field="kind", tag="going"):
    """The wait is over."""


class Ended(msgspec.Struct, frozen=True, tag_field="kind", tag="ended"):
    """The job is done: what it made, or why it could not."""

    value: bytes = b""
    error: str = ""


Message = Progress | Waiting | Going | Ended
_encode = msgspec.msgpack.Encoder().encode
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

Tell = Callable[[Progress | Waiting | Going], None]
Work = Callable[[bytes, Tell], bytes]
"""What a process does with a job. It must be importable by name, as processes are spawned; whatever it raises becomes the job's error."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of one job."""

    value: bytes = b""
    error: str = ""


class _Child:
    """One process, which does one job after the other."""

    def __init__(self, work: Work) -> None:
        # Spawned, not forked: solvers and numpy have threads, whose locks a fork would copy as they stand.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.job: int | None = None
        self.waits_for = ""
        self._until_s = math.inf

    def give(self, number: int, job: bytes) -> None:
        self.job = number
        self.connection.send_bytes(job)

    def waits(self, message: Waiting | None) -> None:
        self.waits_for = "" if message is None else f"{message.what} has not returned after {message.time_s:.3g} s"
        self._until_s = math.inf if message is None else time.monotonic() + message.time_s

    @property
    def stuck(self) -> bool:
        return time.monotonic() > self._until_s

    def kill(self) -> None:
        self.process.kill()
        self.process.join(JOIN_S)
        self.connection.close()


class Processes:
    """At most `processes` at once, started when they are needed; leave the `with` and they are gone."""

    def __init__(self, work: Work, processes: int) -> None:
        self._work = work
        self._processes = processes
        self._children: list[_Child] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
        self._children.clear()

    def run(self, jobs: Sequence[bytes], on_progress: Callable[[int, float], None] | None = None) -> list[Outcome]:
        """Do all jobs; outcomes in the order of the jobs. `on_progress` gets a job's number and how far it has come, infinity at its end."""
        left, outcomes = deque(enumerate(jobs)), dict[int, Outcome]()
        while len(outcomes) < len(jobs):
            for number, outcome in self._step(left, on_progress):
                outcomes[number] = outcome
                if on_progress is not None:
                    on_progress(number, math.inf)
        return [outcomes[number] for number in range(len(jobs))]

    def _step(self, left: deque[tuple[int, bytes]], on_progress: Callable[[int, float], None] | None) -> list[tuple[int, Outcome]]:
        """Give out work, wait for a moment, and return what has ended."""
        busy = [child for child in self._children if child.job is not None]
        for child in [child for child in self._children if child.job is None][: len(left)]:
            child.give(*left.popleft())
            busy.append(child)
        while left and len(self._children) < self._processes:
            child = _Child(self._work)
            self._children.append(child)
            child.give(*left.popleft())
            busy.append(child)
        told = wait([child.connection for child in busy], LOOK_S)
        ended = [self._read(child, on_progress) for child in busy if child.connection in told]
        ended += [self._lost(child, child.waits_for) for child in busy if child.job is not None and child.connection not in told and child.stuck]
        return [end for end in ended if end is not None]

    def _read(self, child: _Child, on_progress: Callable[[int, float], None] | None) -> tuple[int, Outcome] | None:
        assert child.job is not None
        try:
            message = _messages.decode(child.connection.recv_bytes())
        except (EOFError, ConnectionError):
            child.process.join(JOIN_S)
            return self._lost(child, f"its process ended by itself (exit code {child.process.exitcode})")
        if isinstance(message, Ended):
            number, child.job = child.job, None
            return number, Outcome(message.value, message.error)
        if isinstance(message, Progress):
            if on_progress is not None:
                on_progress(child.job, message.at_s)
        else:
            child.waits(message if isinstance(message, Waiting) else None)
        return None

    def _lost(self, child: _Child, why: str) -> tuple[int, Outcome]:
        assert child.job is not None
        self._children.remove(child)
        child.kill()
        return child.job, Outcome(error=why)


def _serve(connection: Connection, work: Work) -> None:
    """The life of a process: until nobody gives it work any more."""
    settle_memory()
    while True:
        try:
            job = connection.recv_bytes()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            ended = Ended(value=work(job, lambda message: connection.send_bytes(_encode(message))))
        except KeyboardInterrupt:
            return
        except Exception as error:  # a plug-in may raise anything: it ends its own row
            ended = Ended(error=f"{type(error).__name__}: {error}")
        try:
            connection.send_bytes(_encode(ended))
        except OSError:
            return

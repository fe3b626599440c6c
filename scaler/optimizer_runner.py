"""Runs optimizers in child processes with a hard time limit: one that raises, hangs, leaks or returns nonsense costs its turn and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
import psutil
import structlog

from scaler.optimizer_child import HEAD_BYTES, Question, Reply
from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import Snapshot
from scaler.policy.guarded import DIED, LATE, NONSENSE, RAISED, Failure, Guard, GuardSettings, examined

logger = structlog.get_logger()
START_S_MAX = 30.0
"""For the process to start and to import the optimizer and its solver."""
END_S = 5.0
REPLY_BYTES_MAX = 64 << 20
MEMORY_BYTES_MAX = 2 << 30
WATCH_S = 0.1
"""Between two looks at the memory of a process that proposes."""
LINES_KEPT = 20
# The child gets this process's module search path before it imports anything, and one thread.
_BOOTSTRAP = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.putenv(name, "1")
from scaler.optimizer_child import main
main(sys.argv[2], json.loads(sys.argv[3]))
"""


_CLOSED = Failure(kind=DIED, reason="it was closed")


class OptimizerRunner:
    """One optimizer in a process of its own, started when it is first needed and again after it was ended."""

    def __init__(
        self, name: str, options: Mapping[str, float] | None = None, *, settings: GuardSettings, memory_bytes_max: int = MEMORY_BYTES_MAX
    ) -> None:
        """`name`: as in the registry, or `package.module:factory`."""
        self.name = name
        self._options = dict(options or {})
        self._settings, self._memory_bytes_max = settings, memory_bytes_max
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._decode = msgspec.msgpack.Decoder(Reply).decode
        self._decode_proposal = msgspec.msgpack.Decoder(Proposal).decode
        self._turn = asyncio.Lock()
        self._turns: set[asyncio.Task[Proposal | Failure]] = set()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return self._process.pid if self._process is not None else None

    async def propose(self, snapshot: Snapshot, seed: int) -> Proposal | Failure:
        """A proposal that can come into force, or what went wrong. Never later than the time limit and its grace (and the start of a process)."""
        # Where nobody waits for it any more it still ends: a reply that is left in the pipe would be taken for that to the next question.
        turn = asyncio.ensure_future(self._propose(snapshot, seed))
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        return await asyncio.shield(turn)

    async def _propose(self, snapshot: Snapshot, seed: int) -> Proposal | Failure:
        async with self._turn:
            failure = await self._ready()
            if failure is not None:
                return failure
            question = Question(snapshot, self._settings.time_s, seed)
            returned = await self._asked(question, self._settings.time_s + self._settings.grace_s)
            if isinstance(returned, Failure):
                return returned
            return examined(returned, snapshot)

    async def close(self) -> None:
        """End the process; whoever asks it still has a failure."""
        self._closed = True
        await self._end()
        await asyncio.gather(*self._turns, return_exceptions=True)

    async def _ready(self) -> Failure | None:
        """A process that has imported its optimizer."""
        if self._process is not None and self._process.returncode is None:
            return None
        await self._end()
        if self._closed:
            return _CLOSED
        arguments = [json.dumps(sys.path), self.name, json.dumps(self._options)]
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _BOOTSTRAP,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A Ctrl-C at the terminal is for the scaler; what the plug-in starts dies with its group.
            start_new_session=True,
        )
        self._drain = asyncio.create_task(self._drained(process))
        if self._closed:  # while the process was being made
            await self._end()
            return _CLOSED
        reply = await self._reply(START_S_MAX)
        if isinstance(reply, Failure):
            return reply
        if reply.raised:
            await self._end()
            return Failure(kind=RAISED, reason=f"it cannot be built: {reply.raised}")
        logger.info("optimizer started", optimizer=self.name, pid=process.pid)
        return None

    async def _asked(self, question: Question, time_s: float) -> Proposal | Failure:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        value = msgspec.msgpack.encode(question)
        sending = asyncio.ensure_future(self._sent(process.stdin, len(value).to_bytes(HEAD_BYTES, "big") + value))
        try:
            reply = await self._reply(time_s)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
        if isinstance(reply, Failure):
            return reply
        if reply.raised:
            return Failure(kind=RAISED, reason=reply.raised)
        if not reply.proposal:
            return Failure(kind=NONSENSE, reason=reply.nonsense or "it said nothing")
        try:
            return self._decode_proposal(reply.proposal)
        except msgspec.DecodeError as error:
            return Failure(kind=NONSENSE, reason=f"its proposal has fields of the wrong kind: {error}")

    async def _sent(self, stdin: asyncio.StreamWriter, value: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it died: whoever waits for its reply finds out
            stdin.write(value)
            await stdin.drain()

    async def _reply(self, time_s: float) -> Reply | Failure:
        """What the process says next; it is ended where that is late, too much or nothing, or its memory grows beyond the limit."""
        process = self._process
        assert process is not None
        reading = asyncio.ensure_future(self._read(process))
        watching = asyncio.ensure_future(self._watched(process))
        try:
            await asyncio.wait({reading, watching}, timeout=time_s, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and not reading.done():
                failure = watching.result()
            elif not reading.done():
                failure = Failure(kind=LATE, reason=f"no proposal after {time_s:g} s")
            else:
                found = reading.result()
                if isinstance(found, Reply):
                    return found
                failure = found
        finally:
            for task in (reading, watching):
                task.cancel()
            await asyncio.gather(reading, watching, return_exceptions=True)
        await self._end()
        return failure

    async def _read(self, process: asyncio.subprocess.Process) -> Reply | Failure:
        assert process.stdout is not None
        try:
            length = int.from_bytes(await process.stdout.readexactly(HEAD_BYTES), "big")
            if length > REPLY_BYTES_MAX:
                return Failure(kind=NONSENSE, reason=f"a reply of {length} bytes, the limit is {REPLY_BYTES_MAX}")
            return self._decode(await process.stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            if self._drain is not None:
                await asyncio.wait({self._drain}, timeout=END_S)
            last = self._lines[-1] if self._lines else "it said nothing"
            return Failure(kind=DIED, reason=f"its process ended: {last}")
        except msgspec.DecodeError as error:
            return Failure(kind=NONSENSE, reason=f"its reply cannot be read: {error}")

    async def _watched(self, process: asyncio.subprocess.Process) -> Failure:
        """Ends when the process takes more memory than it may."""
        while True:
            try:
                used = psutil.Process(process.pid).memory_info().rss
            except psutil.Error:
                used = 0  # it is gone: whoever reads finds out
            if used > self._memory_bytes_max:
                return Failure(kind=DIED, reason=f"it took {used >> 20} MiB of memory, the limit is {self._memory_bytes_max >> 20} MiB")
            await asyncio.sleep(WATCH_S)

    async def _drained(self, process: asyncio.subprocess.Process) -> None:
        """What the plug-in prints must not fill the pipe; the last lines are kept for when it dies."""
        assert process.stderr is not None
        while text := await process.stderr.read(1 << 16):
            self._lines.extend(line[:500] for line in text.decode(errors="replace").splitlines() if line.strip())

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)
            self._drain = None


class Proposed(msgspec.Struct, frozen=True):
    """What a turn gave: a proposal and whose it is; without one the plan in force stays."""

    proposal: Proposal | None
    optimizer: str
    failures: tuple[str, ...]
    """Of those that were asked before."""


class GuardedOptimizers:
    """The chosen optimizer with those that stand in for it, each in its own process."""

    def __init__(self, runners: Sequence[OptimizerRunner], settings: GuardSettings) -> None:
        """`runners`: in the order of preference."""
        self.guard = Guard([runner.name for runner in runners], settings)
        self._runners = {runner.name: runner for runner in runners}

    async def propose(self, snapshot: Snapshot, *, seed: int, now_ms: float) -> Proposed:
        """Ask one after the other until one proposes. Raises nothing of a plug-in's."""
        failures: list[str] = []
        name: str | None = self.guard.choose(now_ms)
        while name is not None:
            found = await self._runners[name].propose(snapshot, seed)
            if isinstance(found, Proposal):
                self.guard.succeeded(name)
                return Proposed(found, name, tuple(failures))
            self.guard.failed(name, found, now_ms)
            logger.warning("optimizer failed", optimizer=name, kind=found.kind, reason=found.reason)
            failures.append(f"{name} {found.kind}: {found.reason}")
            name = self.guard.next_after(name, now_ms)
        return Proposed(None, "", tuple(failures))

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(runner.close() for runner in self._runners.values()))

"""The worker's side of a Python task: starts its process, calls it, and puts another in its place where it hangs or dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref

import msgspec
import psutil

from schemas.datatypes import Array
from schemas.errors import BackendError, ModelRefused
from schemas.raw_tensors import decode_raw, encode_raw
from workers.backend import Tensors
from workers.cpu.python_tasks.frames import Closed, Frame, Oversized, receive, send
from workers.cpu.python_tasks.output_lines import OutputLines
from workers.cpu.python_tasks.returned import LIMITS

LOAD_MS_MAX = 30_000.0
"""For the process to start and to import the function."""
END_SECONDS = 5.0
# The child gets the worker's own module search path, before it imports anything, and no more threads than its binding.
_BOOTSTRAP = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.putenv(name, sys.argv[5])
from workers.cpu.python_tasks.child import main
main(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
"""


class TaskProcess:
    """One child process, its socket and what it prints. Call it from one thread at a time."""

    def __init__(self, call: str, call_ms_max: int, threads: int) -> None:
        """Starts it, and does not wait for it."""
        self._call = call
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._ready = False
        self._load_until_s = time.monotonic() + LOAD_MS_MAX / 1e3
        self.lines = OutputLines(call)
        arguments = [json.dumps(sys.path), str(theirs.fileno()), call, str(call_ms_max), str(threads)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and no shell
                [sys.executable, "-c", _BOOTSTRAP, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self.lines.descriptor,
                stderr=self.lines.descriptor,
                pass_fds=(theirs.fileno(),),
                # A Ctrl-C at the terminal is for the worker, which ends its children itself.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ModelRefused(f"{call}: no process for it: {error}") from error
        finally:
            theirs.close()
            self.lines.read()
        self._end = weakref.finalize(self, _end, self._process, ours)

    @property
    def resident_bytes(self) -> int:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def await_ready(self) -> None:
        """Raises ModelRefused with the reason where the function cannot be loaded."""
        if self._ready:
            return
        try:
            frame, _ = receive(self._connection, self._load_until_s)
        except TimeoutError:
            self.end()
            raise ModelRefused(f"{self._call} was not imported within {LOAD_MS_MAX:.0f} ms") from None
        except (Closed, Oversized, msgspec.DecodeError):
            raise ModelRefused(f"{self._call}: its process {self._ended()} while it was imported{self.lines.tail()}") from None
        if frame.error:
            self.end()
            raise ModelRefused(frame.error)
        self._ready = True

    def call(self, inputs: Tensors, parameters: bytes, timeout_ms: float) -> dict[str, Array]:
        """Raises BackendError for what the function raised or returned; Broken where the process cannot be called again."""
        until_s = time.monotonic() + timeout_ms / 1e3
        try:
            heads, parts = encode_raw(inputs)
            send(self._connection, Frame(heads, parameters), parts, until_s)
            frame, data = receive(self._connection, until_s)
            if frame.error:
                raise BackendError(f"{self._call}: {frame.error}")
            return decode_raw(data, 0, frame.tensors, LIMITS)
        except (TimeoutError, Closed, Oversized, msgspec.DecodeError, ValueError) as error:
            raise Broken(self._reason(error, timeout_ms)) from None

    def _reason(self, error: Exception, timeout_ms: float) -> str:
        if isinstance(error, TimeoutError):
            self.end()
            return f"{self._call} did not return within {timeout_ms:.0f} ms: its process was replaced"
        if isinstance(error, Closed):
            return f"{self._call}: its process {self._ended()} during the call{self.lines.tail()}"
        self.end()
        return f"{self._call} answered with what cannot be read: {error}"

    def _ended(self) -> str:
        """How it ended: `died of SIGSEGV`, `ended with code 3`."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
            return "closed its connection"
        self.end()
        if code >= 0:
            return f"ended with code {code}"
        try:
            return f"died of {signal.Signals(-code).name}"
        except ValueError:
            return f"died of signal {-code}"

    def end(self) -> None:
        """Kill it; once is enough, and it happens by itself where the object or the worker goes."""
        self._end()


class Broken(BackendError):
    """The process of a Python task is gone."""


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    if process.poll() is None:
        # The whole session: what the function started goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # in uninterruptible sleep: the kernel ends it when it can
        process.wait(END_SECONDS)

"""The worker's side of a board: its process, the memory shared with it, and a deadline on everything that is asked of it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import msgspec
import numpy as np

from workers.fpga import board_messages as say
from workers.fpga.errors import BoardLost
from workers.fpga.packing import Bytes

END_SECONDS = 5.0
Turn = threading.Lock
# The search path of the worker, behind the private copy of pynq, before the child imports anything. It moves bytes: a pool of threads that
# wakes up for each batch of an emulated fabric would only cost time.
_BOOTSTRAP = """
import json, os, sys
os.putenv("OPENBLAS_NUM_THREADS", "1")
sys.path[:] = json.loads(sys.argv[1])
from workers.fpga.board_child import main
main(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""


class BoardProcess:
    """One child process, and with it one session with the board; after BoardLost it is of no use any more.

    The child answers in the order in which it was asked. Several threads may ask: each takes a turn by asking, and reads when its turn has come.
    """

    def __init__(self, pynq_folder: Path) -> None:
        """Starts it, and does not wait for it. Raises BoardLost where there can be no process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life, held = os.pipe()
        memory = os.memfd_create("headrace-board", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, say.SHARED_BYTES)
            self._memory = mmap.mmap(memory, say.SHARED_BYTES)
            path = [str(pynq_folder), *sys.path]
            arguments = [json.dumps(path), str(theirs.fileno()), str(memory), str(life)]
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and no shell
                [sys.executable, "-c", _BOOTSTRAP, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory, life),
                # A Ctrl-C at the terminal is for the worker, which ends its children itself.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            os.close(held)
            raise BoardLost(f"no process for the board: {error}") from error
        finally:
            theirs.close()
            os.close(memory)
            os.close(life)
        self._connection = ours
        self._end = weakref.finalize(self, _end, self._process, ours, held)
        shared: Bytes = np.frombuffer(self._memory, np.uint8)
        self.areas = say.areas(shared)
        """By slot: packed input, packed output."""
        self.generation = 0
        """Counts the processes of one board; whoever keeps them says it."""
        self._turns: deque[Turn] = deque()
        self._sending = threading.Lock()
        self._lost = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: say.Request, timeout_ms: float) -> say.Reply:
        """The answer. Raises BoardLost (and ends the process) where none comes in time, or the process says that the board is lost."""
        return self.receive(self.send(request), timeout_ms)

    def send(self, request: say.Request) -> Turn:
        """Returns at once; `receive` must follow. Whoever comes later is answered later."""
        turn = threading.Lock()
        with self._sending:
            if self._turns:
                turn.acquire()  # whoever is before it lets it go
            self._turns.append(turn)
            # A process that is gone shows when its answer is read.
            with contextlib.suppress(OSError):
                say.send(self._connection, request)
        return turn

    def receive(self, turn: Turn, timeout_ms: float) -> say.Reply:
        """The answer; `timeout_ms` counts from when it can be worked on: all that was asked before has its answer by then. Raises as `ask`."""
        turn.acquire()
        try:
            return self._read(timeout_ms)
        except BoardLost as error:
            self._lost = self._lost or str(error)
            raise
        finally:
            with self._sending:
                self._turns.popleft()
                if self._turns:
                    self._turns[0].release()

    def _read(self, timeout_ms: float) -> say.Reply:
        if self._lost:
            raise BoardLost(self._lost)
        try:
            reply = say.receive_reply(self._connection, time.monotonic() + timeout_ms / 1e3)
        except TimeoutError:
            self.end()
            raise BoardLost(f"the board did not answer within {timeout_ms:.0f} ms") from None
        except (OSError, msgspec.DecodeError) as error:
            raise BoardLost(f"the board's process {self._ended()}: {error}") from None
        if reply is None:
            raise BoardLost(f"the board's process {self._ended()}")
        if isinstance(reply, say.Lost):
            self.end()
            raise BoardLost(reply.reason)
        return reply

    def end(self) -> None:
        """Kill it; once is enough, and it happens by itself where the object or the worker goes."""
        self._end()

    def hang_up(self) -> None:
        """Let it free what it holds on the board, for a short while; then end it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self.end()

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_SECONDS)
            self.end()
            return f"ended with code {code}" if code >= 0 else f"died of signal {-code}"
        self.end()
        return "closed its connection"


def _end(process: subprocess.Popen[bytes], connection: socket.socket, held: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes whoever reads
    connection.close()
    os.close(held)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # in uninterruptible sleep: the kernel ends it when it can
        process.wait(END_SECONDS)

"""Keeps one board at hand: a lock so that nobody else drives it, its process, and another one in its place, with back-off, when the board is lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import threading
from pathlib import Path

import structlog

from schemas.errors import DeviceUnavailable
from workers.fpga import board_messages as say
from workers.fpga.board_process import BoardProcess
from workers.fpga.boards import EMULATED
from workers.fpga.errors import BoardLost
from workers.fpga.pynq_copy import link_pynq

logger = structlog.get_logger()
OPEN_MS_MAX = 30_000.0
BACK_OFF_S_MIN, BACK_OFF_S_MAX = 0.2, 2.0
LOCK_FOLDER = "headrace-boards"
PORT, KNOCK_S_MAX = 7967, 2.0
"""PYNQ.remote's."""


class BoardKeeper:
    """The board of one worker. `process()` answers at once: with the process, or with the reason why there is none now."""

    def __init__(self, order: say.Open, folder: Path) -> None:
        self._order, self._folder = order, folder
        self._lock = threading.Lock()
        self._process: BoardProcess | None = None
        self._opened: say.Opened | None = None
        self._reason = ""
        self._opening: threading.Thread | None = None
        self._closed = threading.Event()
        self._board_lock: int | None = None
        self._generation = 0
        """Counts the processes: what was loaded in an earlier one is gone."""

    def open(self) -> say.Opened:
        """The board, waiting for it the first time. Raises DeviceUnavailable with the reason."""
        with self._lock:
            if self._opened is not None:
                return self._opened
        self._take_lock()
        self._reach()
        self._start(self._process_of_its_own())
        assert self._opened is not None
        return self._opened

    def process(self) -> BoardProcess:
        """Raises BoardLost where the board is away; somebody looks for it meanwhile."""
        with self._lock:
            if self._process is not None:
                return self._process
        if self._opened is None:
            self.open()
            return self.process()
        raise BoardLost(f"the board is away ({self._reason}); it is looked for")

    def lost(self, process: BoardProcess, reason: str) -> None:
        """End this process, and start another one in the background; nothing where somebody has said so already."""
        with self._lock:
            if process is not self._process:
                return
            self._process, self._reason = None, reason
            logger.warning("board lost", target=self._order.target or "here", reason=reason)
            process.end()
            self._opening = threading.Thread(target=self._reopen, name="board-keeper", daemon=True)
            self._opening.start()

    @property
    def reason(self) -> str:
        """Why the board is away; empty while it is here."""
        return "" if self._process is not None else self._reason

    def close(self) -> None:
        """Give the board back."""
        self._closed.set()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.hang_up()
        if self._board_lock is not None:
            os.close(self._board_lock)
            self._board_lock = None

    def _reopen(self) -> None:
        pause_s, process = BACK_OFF_S_MIN, None
        while not self._closed.wait(pause_s):
            try:
                # It imports pynq, which takes a second, while the board may still be away.
                process = process or self._process_of_its_own()
                self._reach()
                opening, process = process, None
                self._start(opening)
            except DeviceUnavailable as error:
                # A knock at the door is cheap; a process that opens the board in vain is not.
                pause_s = min(pause_s * 2, BACK_OFF_S_MAX) if process is None else BACK_OFF_S_MIN
                if self._reason != str(error):
                    self._reason = str(error)
                    logger.info("board still away", target=self._order.target or "here", reason=self._reason, next_try_s=pause_s)
            else:
                logger.info("board back", target=self._order.target or "here")
                return
        if process is not None:
            process.end()

    def _process_of_its_own(self) -> BoardProcess:
        return BoardProcess(link_pynq(self._folder / "pynq"))

    def _reach(self) -> None:
        """Knock: pynq waits seconds for a board that is not there. Raises DeviceUnavailable."""
        target = self._order.target
        if target in ("", EMULATED):
            return
        host, _, port = target.partition(":")
        try:
            socket.create_connection((host, int(port or PORT)), KNOCK_S_MAX).close()
        except (OSError, ValueError) as error:
            raise DeviceUnavailable(f"no board answers at {host}, port {port or PORT} ({error})") from None

    def _start(self, process: BoardProcess) -> None:
        opened = process.ask(self._order, OPEN_MS_MAX)
        if not isinstance(opened, say.Opened):
            process.end()
            raise DeviceUnavailable(f"the board cannot be opened: {opened}")
        known = self._opened
        if known is not None and (known.name, known.kind, known.part) != (opened.name, opened.kind, opened.part):
            process.end()
            raise DeviceUnavailable(f"another board is there: {opened.device}, it was {known.device}")
        with self._lock:
            if self._closed.is_set():
                process.end()
                return
            self._generation += 1
            process.generation = self._generation
            self._process, self._opened, self._reason = process, opened, ""

    def _take_lock(self) -> None:
        """One worker to a board: a lock of this machine, which the kernel gives back however the worker ends."""
        if self._order.target == EMULATED or self._board_lock is not None:
            return  # an emulated board of this process is nobody else's
        folder = Path(tempfile.gettempdir()) / LOCK_FOLDER
        name = (self._order.target or "here").replace("/", "_")
        try:
            folder.mkdir(mode=0o777, exist_ok=True)
            descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise DeviceUnavailable(f"the lock of board {name} cannot be taken in {folder}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = ""
            with contextlib.suppress(OSError):
                holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise DeviceUnavailable(f"board {name} is driven by another worker (process {holder or 'unknown'}): one worker to a board") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._board_lock = descriptor

"""One supervised child process: started with its own log, noticed when it ends, ended in order or by force."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from deploy.local import launch
from deploy.local.kafka import kafka_answers
from deploy.local.valkey import valkey_answers

LOG_BYTES_MAX = 10 << 20
CREATED_S_TOLERANCE = 1.0
NOT_STARTED = 127
CLEAN_S_MAX = 20.0


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A program that is to run, and how its readiness shows."""

    role: str
    name: str
    argv: tuple[str, ...]
    ready: str = ""
    """`kafka:HOST:PORT` and `valkey:HOST:PORT` are asked, `file:PATH` must appear; empty: ready once started."""
    clean_argv: tuple[str, ...] = ()
    """Run before each start and after the last end."""
    accelerator: str = ""
    """Of a worker whose class can be scaled."""
    standby: bool = False
    """Started only when more are wanted."""


def is_alive(pid: int, created_s: float) -> bool:
    """Whether the process that had this pid then is the one that has it now, and has not ended (a zombie has)."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created_s) <= CREATED_S_TOLERANCE and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Child:
    """The process of one spec, again and again; its output goes to NAME.log, and nobody waits for anybody over it."""

    def __init__(self, spec: ProcessSpec, logs: Path) -> None:
        self.spec = spec
        self.log_file = logs / f"{spec.name}.log"
        self.pid: int | None = None
        """None while there is no process."""
        self.created_s = 0.0
        self._process: Process | None = None
        self._started_s = 0.0
        self._end_asked = False

    async def start(self) -> None:
        """Start it; it dies with this process, however this process ends."""
        await self.clean()
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)
        # Appending, so that the log can be cut (`limit_log`) while the child writes: no pipe, no reader whose slowness could stop it.
        with self.log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                launch.__file__,
                str(os.getpid()),
                *self.spec.argv,
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                start_new_session=True,
            )
        self._started_s = time.monotonic()
        self.created_s = _created_s(self._process.pid)
        self.pid = self._process.pid
        if self._end_asked:
            self._signal(signal.SIGTERM)

    async def wait(self) -> int:
        """The exit code, as soon as it ended (negative: the signal). Its own children, if it left some, are ended too."""
        assert self._process is not None
        code = await self._process.wait()
        with suppress(ProcessLookupError, PermissionError):
            # It led a process group of its own, which outlives it only where it left somebody behind.
            os.killpg(self._process.pid, signal.SIGKILL)
        self.pid = None
        return code

    @property
    def lived_ms(self) -> float:
        """Since its last start."""
        return (time.monotonic() - self._started_s) * 1000

    def ask_to_end(self) -> None:
        """SIGTERM, once: to a role, a second one means to leave without draining."""
        if not self._end_asked:
            self._end_asked = True
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def clean(self) -> None:
        """Run the clean-up command, where there is one."""
        if self.spec.clean_argv:
            await run_clean_up(self.spec.clean_argv)

    @property
    def _ready_file(self) -> Path | None:
        kind, _, path = self.spec.ready.partition(":")
        return Path(path) if kind == "file" else None

    async def is_ready(self) -> bool:
        """Whether it runs and shows its readiness now."""
        if self.pid is None:
            return False
        if self._ready_file is not None:
            return self._ready_file.exists()
        kind, _, rest = self.spec.ready.partition(":")
        if not kind:
            return True
        host, _, port = rest.rpartition(":")
        answers = kafka_answers if kind == "kafka" else valkey_answers
        return await asyncio.to_thread(answers, host, int(port))

    def ready_note(self) -> bytes:
        """What it wrote into its ready file; empty where there is none."""
        try:
            return self._ready_file.read_bytes() if self._ready_file is not None else b""
        except OSError:
            return b""

    def limit_log(self) -> None:
        """Above LOG_BYTES_MAX: keep the log as NAME.log.1 and go on in an empty one. What is written in that very moment may be lost."""
        try:
            if self.log_file.stat().st_size <= LOG_BYTES_MAX:
                return
        except FileNotFoundError:
            return
        with suppress(OSError):  # a full disk, most likely: then the old part is given up
            shutil.copyfile(self.log_file, self.log_file.with_name(self.log_file.name + ".1"))
        os.truncate(self.log_file, 0)


async def run_clean_up(argv: Sequence[str]) -> None:
    """Run a clean-up command for at most CLEAN_S_MAX seconds; that it fails is no error, there may be nothing to clean."""
    try:
        process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    except OSError:
        return
    try:
        async with asyncio.timeout(CLEAN_S_MAX):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _created_s(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def log_tail(file: Path, lines_max: int = 12) -> str:
    """The last lines of a log, for an error message; at most 8 kB are read."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - 8192))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-lines_max:])

"""Taps as processes, for tests of what the outside does to them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tap_rig import TapRig, rows


class TapProcess:
    """`headrace taps` that is killed and started again under its name, as a supervisor does."""

    def __init__(self, rig: TapRig, name: str, folder: Path, *options: str, silent: bool = False) -> None:
        """`silent`: it writes no log."""
        self.ready_file = folder / f"{name}.ready"
        self._log = Path(os.devnull) if silent else folder / f"{name}.log"
        self._argv = [sys.executable, "-m", "deploy.cli", "taps", "--name", name, "--kafka", rig.address, "--prefix", rig.names.prefix]
        self._argv += ["--ready-file", str(self.ready_file), "--log-format", "json", *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(timeout=30)

    def kill(self) -> None:
        assert self.end(signal.SIGKILL) == -signal.SIGKILL, self._log.read_text()

    def check(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()


@contextmanager
def running(*taps: TapProcess) -> Iterator[None]:
    try:
        for tap in taps:
            tap.start()
        yield
    finally:
        for tap in taps:
            tap.end(signal.SIGKILL)


async def until_rows(folder: Path, count: int) -> None:
    async with asyncio.timeout(40):
        while not folder.exists() or len(rows(folder)) < count:
            await asyncio.sleep(0.1)

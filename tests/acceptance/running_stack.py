"""A stack that `headrace up` started, as somebody outside sees it: its command line, stack.json, logs and metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
FILES = tuple(map(str, sorted(EXAMPLE.glob("*.yaml"))))


class RunningStack:
    """The stack of one folder."""

    def __init__(self, folder: Path, prefix: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.prefix = folder, prefix
        self._environment = {**os.environ, **(environment or {})}
        # Beside the path of whoever runs the tests, and not instead of it.
        paths = [each["PYTHONPATH"] for each in (environment or {}, os.environ) if each.get("PYTHONPATH")]
        self._environment |= {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}

    def headrace(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run a command of the stack's folder; its last line."""
        argv = [sys.executable, "-m", "deploy.cli", *arguments, "--json"]
        done = subprocess.run(argv, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == code, f"headrace {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.strip().rpartition("\n")[2])

    @contextmanager
    def up(self, *arguments: str) -> Iterator[RunningStack]:
        self.headrace("up", "--detach", "--prefix", self.prefix, *arguments)
        try:
            yield self
        finally:
            self.headrace("down")

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / ".headrace" / "stack.json").read_text())

    def processes(self) -> dict[str, dict[str, Any]]:
        """Those that run now, by name."""
        return {process["name"]: process for process in self.state()["processes"]}

    def pids(self) -> dict[str, int]:
        return {name: process["pid"] for name, process in self.processes().items()}

    def names(self, role: str) -> list[str]:
        return [name for name, process in self.processes().items() if process["role"] == role]

    def signal(self, name: str, number: signal.Signals) -> int:
        pid = self.pids()[name]
        os.kill(pid, number)
        return pid

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """It keeps its connections, and does nothing."""
        pid = self.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def metric(self, process: str, name: str) -> float:
        """The sum over the labels of a metric."""
        address = self.processes()[process]["http"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def is_ready(self, process: str) -> bool:
        """Whether it runs, and says that it can serve."""
        address = self.processes().get(process, {}).get("http")
        if address is None:
            return False
        try:
            with urllib.request.urlopen(f"http://{address}/readyz", timeout=20) as answer:
                return answer.status == HTTPStatus.OK
        except OSError:  # not there, or not ready: which of them, the log tells
            return False

    def log(self, name: str) -> list[dict[str, Any]]:
        """The structured lines of one process, of all its lives."""
        lines = (self.folder / ".headrace" / "logs" / f"{name}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def workers(self) -> dict[str, dict[str, Any]]:
        """What `headrace get workers` says, by worker."""
        return {worker["worker"]: worker for worker in self.headrace("get", "workers")["workers"]}


def until(condition: Callable[[], Any], what: str, *, within_s: float = 30.0) -> Any:
    """The first true value of the condition."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return value

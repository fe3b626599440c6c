"""A watchdog that ends a process whose event loop is blocked."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Histogram

BLOCKED_EXIT_CODE = 70
BLOCKED_MS_MAX = 10_000.0
BEAT_MS = 250.0
LAG_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
log = structlog.get_logger()


def end_process(blocked_ms: float) -> None:
    """Heartbeats live on the event loop: a process that cannot beat has lost its group session and must make room."""
    sys.stderr.flush()
    log.error("event loop blocked, ending the process", blocked_ms=round(blocked_ms), exit_code=BLOCKED_EXIT_CODE)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(BLOCKED_EXIT_CODE)


class LoopWatchdog:
    """Measures how late the event loop runs what is due, and calls `blocked` from a thread when it does not run at all."""

    def __init__(
        self, registry: CollectorRegistry, *, blocked_ms_max: float = BLOCKED_MS_MAX, blocked: Callable[[float], None] = end_process
    ) -> None:
        self._lag = Histogram(
            "headrace_loop_lag_seconds",
            "How late the event loop ran a timer.",
            registry=registry,
            buckets=LAG_BUCKETS_SECONDS,
        )
        self._blocked_ms_max = blocked_ms_max
        self._beat_ms = min(BEAT_MS, blocked_ms_max / 4)
        self._blocked = blocked
        self._beaten_ms = 0.0
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Call on the running loop."""
        loop = asyncio.get_running_loop()
        self._beaten_ms = _monotonic_ms()
        self._schedule(loop)
        threading.Thread(target=self._watch, name="loop-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._beat_ms / 1000, self._beat, loop, _monotonic_ms() + self._beat_ms)

    def _beat(self, loop: asyncio.AbstractEventLoop, due_ms: float) -> None:
        self._beaten_ms = _monotonic_ms()
        self._lag.observe(max(0.0, self._beaten_ms - due_ms) / 1000)
        self._schedule(loop)

    def _watch(self) -> None:
        looked_ms = _monotonic_ms()
        since_ms = looked_ms
        while not self._stopped.wait(self._beat_ms / 1000):
            now_ms = _monotonic_ms()
            if now_ms - looked_ms > self._beat_ms * 4:
                # This thread did not run either: the whole process was stopped (SIGSTOP, a frozen container). The loop gets its time again.
                since_ms = now_ms
            looked_ms = now_ms
            blocked_ms = now_ms - max(self._beaten_ms, since_ms)
            if blocked_ms > self._blocked_ms_max:
                self._blocked(blocked_ms)
                return


def _monotonic_ms() -> float:
    return time.monotonic() * 1000

"""Runs one role as a process: logs, signals, health server, watchdog, ready file, and exit codes."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, cast

import msgspec
import structlog
import uvloop
from prometheus_client import GC_COLLECTOR, CollectorRegistry, PlatformCollector, ProcessCollector

from broker.role import Role
from deploy.configuration import RunOptions
from deploy.log_output import configure_logs
from deploy.process_memory import settle_memory
from deploy.watchdog import LoopWatchdog
from schemas.errors import HeadraceError

if TYPE_CHECKING:
    from deploy.health import HealthServer

READY_POLL_MS, LOOK_MS = 100.0, 500.0
"""Until the role is ready for the first time, and from then on."""
OpenRole = Callable[[CollectorRegistry], AbstractAsyncContextManager[Role]]
"""Builds the role on a metrics registry, and closes what it opened."""


class ReadyNote(msgspec.Struct, frozen=True):
    """The content of a ready file."""

    role: str
    name: str
    pid: int
    http: str | None


def run_role(role: str, name: str, open_role: OpenRole, options: RunOptions) -> int:
    """Run until the role ends; returns the exit code: 0 after an orderly stop, 1 where it failed (one log line says why)."""
    configure_logs(log_format=options.log_format, log_level=options.log_level, role=role, name=name)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        uvloop.run(_Process(role, name, open_role, options).run())
    except Exception as raised:  # whatever it is ends the process with one line that can be found; a defect shows its cause, too
        error = _single(raised)
        if isinstance(error, HeadraceError):
            return _failed(error.code, str(error))
        return _failed("defect", f"{type(error).__name__}: {error}", raised)
    return 0


def _single(error: BaseException) -> BaseException:
    """What a task group raised, where it was one thing only."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _single(group.exceptions[0]) if len(group.exceptions) == 1 else group


def _failed(code: str, reason: str, defect: BaseException | None = None) -> int:
    structlog.get_logger().error("failed", code=code, reason=reason, **({} if defect is None else {"exc_info": defect}))
    return 1


def _health_server(role: Role, registry: CollectorRegistry, address: str) -> HealthServer:
    from deploy.health import HealthServer as Server  # noqa: PLC0415 - in a thread, while the role starts

    return Server(role, registry, address)


class _Process:
    def __init__(self, role: str, name: str, open_role: OpenRole, options: RunOptions) -> None:
        self._role_name = role
        self._name = name
        self._open_role = open_role
        self._options = options
        self._stops = 0
        self._log = structlog.get_logger()

    async def run(self) -> None:
        ready_file = self._options.ready_file
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        registry = CollectorRegistry()
        registry.register(GC_COLLECTOR)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        watchdog = LoopWatchdog(registry)
        watchdog.start()
        starting = asyncio.current_task()
        self._handle_signals(starting.cancel if starting else lambda: False)
        try:
            async with self._open_role(registry) as role:
                self._handle_signals(role.stop)
                if self._stops:
                    return
                await self._serve(role, registry)
        except asyncio.CancelledError:
            if not self._stops:
                raise
            self._log.info("stopped before it had started")
        finally:
            watchdog.stop()
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)

    def _handle_signals(self, stop: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number, stop)

    def _signalled(self, number: signal.Signals, stop: Callable[[], object]) -> None:
        self._stops += 1
        if self._stops > 1:
            self._log.warning("second signal: leaving at once, without draining", signal=number.name)
            sys.stderr.flush()
            os._exit(1)
        self._log.info("stopping", signal=number.name)
        stop()

    async def _serve(self, role: Role, registry: CollectorRegistry) -> None:
        """The role starts at once; its HTTP side, whose library takes as long to load as all the rest, joins it."""
        running = asyncio.create_task(role.run())
        joining = asyncio.create_task(self._show(role, registry))
        try:
            await asyncio.wait({running, joining}, return_when=asyncio.FIRST_COMPLETED)
            if joining.done() and joining.exception() is not None and not running.done():
                role.stop()
            await running
            if joining.done():
                joining.result()
        finally:
            for task in (joining, running):
                task.cancel()
            await asyncio.gather(joining, running, return_exceptions=True)
        self._log.info("stopped")

    async def _show(self, role: Role, registry: CollectorRegistry) -> None:
        """Serve metrics and health where asked to, and announce the role's readiness, until cancelled."""
        address = None
        server = None
        if self._options.http is not None:
            server = await asyncio.to_thread(_health_server, role, registry, self._options.http)
            try:
                address = await server.start()
            except OSError as error:
                raise HeadraceError(
                    f"the metrics server cannot listen on {self._options.http}: {error.strerror or error}; choose another --http"
                ) from None
        self._log.info("started", http=address, pid=os.getpid())
        settle_memory()
        try:
            await self._announce(role, address)
        finally:
            if server is not None:
                await server.close()

    async def _announce(self, role: Role, address: str | None) -> None:
        """Log each change of readiness, and write the ready file the first time."""
        said: str | None = None
        ready_file = self._options.ready_file
        while True:
            reason = role.unready()
            if reason != said:
                self._log.info("not ready" if reason else "ready", **({"reason": reason} if reason else {}))
                said = reason
            if ready_file is not None and (not reason or self._options.ready_when == "running"):
                note = msgspec.json.encode(ReadyNote(self._role_name, self._name, os.getpid(), address))
                partial = ready_file.with_name(ready_file.name + ".partial")
                partial.write_bytes(note)
                partial.replace(ready_file)
                ready_file = None
            await asyncio.sleep((READY_POLL_MS if reason else LOOK_MS) / 1000)

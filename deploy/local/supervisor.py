"""The process that keeps a folder's stack running: `python -m deploy.local.supervisor FOLDER`, started by stack.start."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Collection, Coroutine
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import structlog

from deploy.local.departures import Departures
from deploy.local.process import NOT_STARTED, Child, is_alive, log_tail
from deploy.local.restart import RestartPolicy
from deploy.local.scale_orders import ScaleOrders
from deploy.local.scaling import change
from deploy.local.stack import (
    FAILED,
    GRACE_S,
    LOGS,
    PLAN_FILE,
    RUNNING,
    STARTING,
    STATE_FILE,
    STOPPING,
    Stack,
    StackProcess,
    Supervised,
    write_atomically,
)
from deploy.log_output import configure_logs
from schemas.scale import ScaleOffer, ScaleOrder

SERVERS = ("kafka", "valkey")
USAGE_ERROR = 2
STARTS_MAX = 4
"""Starts of one process before the stack, not ready yet, gives up; once ready it never does."""
FAILING_STARTS = 3
"""Deaths in a row from which on a worker counts as one that does not start."""
FAILING_LIVED_MS = 10_000.0
READY_POLL_S = 0.03
BEGIN_POLL_S = 0.01
WATCH_S = 1.0
log = structlog.get_logger()


class _StartFailed(Exception):
    """Something does not come up; says what, with its log's tail."""


class _ReadyNote(msgspec.Struct, frozen=True):
    http: str | None = None


class Supervisor:
    """Starts the servers, then the roles; restarts each that dies; ends all in the opposite order."""

    def __init__(self, folder: Path, supervised: Supervised) -> None:
        self._folder = folder
        self._supervised = supervised
        self._children = [Child(spec, folder / LOGS) for spec in supervised.processes]
        self._policies = {child.spec.name: RestartPolicy() for child in self._children}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}
        """Set for each process that is to end and stay away."""
        self._retiring: set[asyncio.Task[None]] = set()
        self._wanted = supervised.scale.allowed({})
        self._departures = Departures(supervised.kafka, supervised.prefix)
        self._stop_asked = asyncio.Event()
        self._state = STARTING
        self._progress = ""
        self._written: tuple[StackProcess, ...] = ()
        self._failure: str | None = None
        self._defect: BaseException | None = None
        pid = os.getpid()
        self._itself = StackProcess(role="supervisor", name="supervisor", pid=pid, created_s=psutil.Process(pid).create_time())

    def stop(self) -> None:
        """Ask for the end of everything."""
        self._stop_asked.set()

    async def run(self) -> int:
        """Until asked to stop; returns the exit code. stack.json is gone afterwards, or says why the stack failed."""
        self._write()
        background = [self._run_beside(self._watch())]
        error = ""
        try:
            await self._start_all(background)
            await self._stop_asked.wait()
        except _StartFailed as failure:
            error = str(failure)
        finally:
            await self._stop_all()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, *self._retiring, return_exceptions=True)
        if self._defect is not None:
            raise self._defect
        if error:
            log.error("stack failed", reason=error)
            self._write(state=FAILED, error=error)
            return 1
        (self._folder / STATE_FILE).unlink(missing_ok=True)
        return 0

    def _run_beside(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._check)
        return task

    def _check(self, task: asyncio.Task[None]) -> None:
        """A defect in here must not leave a process without its keeper: everything ends, and the defect is shown."""
        if not task.cancelled() and task.exception() is not None:
            self._defect = task.exception()
            self.stop()

    async def _start_all(self, background: list[asyncio.Task[None]]) -> None:
        servers = [child for child in self._children if child.spec.role in SERVERS]
        roles = [child for child in self._children if child.spec.role not in SERVERS and not child.spec.standby]
        await self._start_group(servers)
        background.append(self._run_beside(self._departures.run()))
        await self._start_group(roles)
        if not self._stop_asked.is_set():
            self._write(state=RUNNING, progress="ready")
            log.info("ready")
            if self._supervised.scale.ranges:
                orders = ScaleOrders(self._supervised.kafka, self._supervised.prefix, on_order=self.scale, offers=self._offers)
                background.append(self._run_beside(orders.run()))

    async def _start_group(self, group: list[Child]) -> None:
        """Start them all, and return when each was ready once, or all is to end."""
        for child in group:
            self._begin(child)
        waiting = list(group)
        while not self._stop_asked.is_set():
            if self._failure is not None:
                raise _StartFailed(self._failure)
            waiting = [child for child in waiting if not await child.is_ready()]
            if not waiting:
                return
            progress = f"starting {', '.join(child.spec.name for child in waiting)}"
            if progress != self._progress:
                self._write(progress=progress)
            await asyncio.sleep(READY_POLL_S)

    def _begin(self, child: Child) -> None:
        self._ends[child.spec.name] = asyncio.Event()
        self._keeping[child.spec.name] = self._run_beside(self._keep(child))

    async def _keep(self, child: Child) -> None:
        """Start it again whenever it ends, until it, or all, is to end."""
        policy, ends = self._policies[child.spec.name], self._ends[child.spec.name]
        while not (self._stop_asked.is_set() or ends.is_set()):
            await child.start()
            self._write()
            code = await child.wait()
            if self._stop_asked.is_set() or ends.is_set():
                break
            self._departures.announce(child.spec.role, child.spec.name)
            delay_ms = policy.died(child.lived_ms)
            log.warning("process died", process=child.spec.name, exit_code=code, lived_ms=round(child.lived_ms), restart_in_ms=delay_ms)
            self._judge_start(child, code)
            self._write()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_ms / 1000):
                    await ends.wait()

    # -- scaling

    def scale(self, order: ScaleOrder) -> None:
        """So many workers of a class are wanted: as far as that is allowed, some start or end."""
        asked = self._wanted | {order.accelerator: order.wanted}
        allowed = self._supervised.scale.allowed(asked)
        if self._stop_asked.is_set() or order.accelerator not in allowed:
            return
        if allowed[order.accelerator] != self._wanted[order.accelerator]:
            log.info("workers wanted", accelerator=order.accelerator, wanted=order.wanted, allowed=allowed, by=order.by, reason=order.reason)
        self._wanted = allowed
        for name in allowed:
            self._follow(name, order.leaving)

    def _follow(self, accelerator: str, leaving: Collection[str] = ()) -> None:
        members = {child.spec.name: child for child in self._children if child.spec.accelerator == accelerator}
        ending = {name for name in members if name in self._keeping and self._ends[name].is_set()}
        kept = {name for name in members if name in self._keeping} - ending
        due = change(list(members), kept, ending, self._wanted[accelerator], leaving)
        for name in due.start:
            self._begin(members[name])
        for name in due.end:
            self._ends[name].set()
            self._retiring.add(task := self._run_beside(self._retire(members[name])))
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, child: Child) -> None:
        """End one worker, and forget its life: its name is free for a new one."""
        name = child.spec.name
        await self._end(child)
        self._departures.announce(child.spec.role, name)
        del self._keeping[name]
        self._children[self._children.index(child)] = Child(child.spec, self._folder / LOGS)
        self._policies[name] = RestartPolicy()
        log.info("worker ended", process=name)
        if not self._stop_asked.is_set():
            self._follow(child.spec.accelerator)

    def _offers(self) -> list[ScaleOffer]:
        """By class, without the time."""
        rules = self._supervised.scale
        return [
            ScaleOffer(
                accelerator=each.accelerator,
                least=each.least,
                most=each.most,
                threads=each.threads,
                cores=rules.cores,
                wanted=self._wanted[each.accelerator],
                running=sum(child.pid is not None for child in self._children if child.spec.accelerator == each.accelerator),
                failing=self._failing(each.accelerator),
                by="supervisor",
            )
            for each in rules.ranges
        ]

    def _failing(self, accelerator: str) -> str:
        for child in self._children:
            deaths = self._policies[child.spec.name].deaths_in_row
            lives = child.pid is not None and child.lived_ms >= FAILING_LIVED_MS
            if child.spec.accelerator == accelerator and deaths >= FAILING_STARTS and not lives:
                return f"{child.spec.name} died {deaths} times in a row: {log_tail(child.log_file, 1)}"
        return ""

    def _judge_start(self, child: Child, code: int) -> None:
        hopeless = code in (USAGE_ERROR, NOT_STARTED) or self._policies[child.spec.name].deaths_in_row >= STARTS_MAX
        if self._state == STARTING and self._failure is None and hopeless:
            self._failure = f"{child.spec.name} does not start (exit code {code}); the end of {child.log_file}:\n{log_tail(child.log_file)}"

    async def _watch(self) -> None:
        """Once a second: bound the logs, write down where restarted processes now serve their metrics, and end with the owner."""
        owner_pid = self._supervised.owner_pid
        owner_s = psutil.Process(owner_pid).create_time() if owner_pid is not None and psutil.pid_exists(owner_pid) else 0.0
        while True:
            for child in self._children:
                await asyncio.to_thread(child.limit_log)
            if self._written != self._running():
                self._write()
            if owner_pid is not None and not is_alive(owner_pid, owner_s):
                log.info("owner ended", owner_pid=owner_pid)
                self.stop()
            await asyncio.sleep(WATCH_S)

    async def _stop_all(self) -> None:
        self._stop_asked.set()
        self._write(state=STOPPING, progress="stopping")
        for stage in self._stages():
            await asyncio.gather(*(self._end(child) for child in stage))
        log.info("stopped")

    def _stages(self) -> list[list[Child]]:
        """Producers of work before what they need."""
        last = ("sink", "valkey", "kafka")
        first = [child for child in self._children if child.spec.role not in last]
        return [first, *([child for child in self._children if child.spec.role == role] for role in last)]

    async def _end(self, child: Child) -> None:
        task = self._keeping.get(child.spec.name)
        if task is None:
            return
        self._ends[child.spec.name].set()
        child.ask_to_end()
        done, _ = await asyncio.wait([task], timeout=GRACE_S)
        if not done:
            log.warning("process did not end in time, killing it", process=child.spec.name, grace_s=GRACE_S)
            child.kill()
            await asyncio.wait([task])
        await child.clean()
        self._write()

    def _write(self, *, state: str | None = None, progress: str | None = None, error: str = "") -> None:
        self._state = state or self._state
        self._progress = self._progress if progress is None else progress
        self._written = self._running()
        supervised = self._supervised
        stack = Stack(
            kafka=supervised.kafka,
            redis=supervised.redis,
            prefix=supervised.prefix,
            gateway=supervised.gateway,
            state=self._state,
            progress=self._progress,
            error=error,
            supervisor=self._itself,
            processes=self._written,
            clean_argvs=tuple(child.spec.clean_argv for child in self._children if child.spec.clean_argv),
        )
        write_atomically(self._folder / STATE_FILE, stack)

    def _running(self) -> tuple[StackProcess, ...]:
        return tuple(self._describe(child, child.pid) for child in self._children if child.pid is not None)

    def _describe(self, child: Child, pid: int) -> StackProcess:
        try:
            http = msgspec.json.decode(child.ready_note(), type=_ReadyNote).http
        except msgspec.DecodeError:
            http = None
        restarts = self._policies[child.spec.name].restarts
        return StackProcess(role=child.spec.role, name=child.spec.name, pid=pid, created_s=child.created_s, restarts=restarts, http=http)


async def _supervise(folder: Path) -> int:
    supervised = msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=Supervised)
    supervisor = Supervisor(folder, supervised)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    return await supervisor.run()


def _see_begin(pid: int, state_file: Path) -> int:
    """0 as soon as the supervisor has written its state; 1 where it ended without."""
    while not state_file.exists():
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return 0 if state_file.exists() else 1
        time.sleep(BEGIN_POLL_S)
    return 0


def main() -> None:
    """Detach from whoever started this process, and supervise."""
    folder = Path(sys.argv[1])
    detached_pid = os.fork()
    if detached_pid != 0:
        # The starter waits for this one only: it has no zombie to reap later, and its end does not touch the supervisor.
        os._exit(_see_begin(detached_pid, folder / STATE_FILE))
    os.setsid()
    configure_logs(log_format=None, log_level="info", role="supervisor", name="supervisor")
    sys.exit(asyncio.run(_supervise(folder)))


if __name__ == "__main__":
    main()

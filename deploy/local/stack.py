"""The stack of one folder: what is to run, what runs (stack.json), and how it is started and ended from outside."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import time
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from deploy.local.kafka import QUICK_JVM, prepare_kafka
from deploy.local.kafka_install import find_kafka
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.process import ProcessSpec, is_alive, log_tail, run_clean_up
from deploy.local.scaling import ScaleRules
from deploy.local.valkey import find_valkey, valkey_argv, valkey_url
from schemas.errors import ConfigurationError

STATE_FILE, PLAN_FILE, LOCK_FILE, LOGS, READY = "stack.json", "supervised.json", "lock", "logs", "ready"
SUPERVISOR_LOG = "supervisor.log"
STARTING, RUNNING, STOPPING, FAILED = "starting", "ready", "stopping", "failed"
START_S_MAX = 90.0
GRACE_S = 10.0
STOP_S_MAX = 4 * GRACE_S + 5.0
"""Four stages (roles, sink, Valkey, Kafka), each with its grace."""
POLL_S = 0.03
LOCK_S_MAX = 5.0

Progress = Callable[[str], None]


class RoleSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One role process; `argv` may contain {kafka}, {redis}, {prefix} and {ready} (the path for --ready-file)."""

    role: str
    name: str
    argv: list[str]
    accelerator: str = ""
    """Of a worker whose class can be scaled."""
    standby: bool = False
    """Started only when more are wanted."""


class StackPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to run. Where an address is given, no such server is started."""

    folder: Path
    prefix: str
    kafka: str | None = None
    redis: str | None = None
    kafka_home: str | None = None
    roles: list[RoleSpec]
    scale: ScaleRules = ScaleRules()
    gateway: str | None = None
    owner_pid: int | None = None
    """The stack ends when this process has ended; None: it stays until it is stopped."""
    jvm_options: tuple[str, ...] = QUICK_JVM
    cache_folder: Path | None = None


class StackProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process that runs now; `created_s` tells it from a later one with the same pid."""

    role: str
    name: str
    pid: int
    created_s: float
    restarts: int = 0
    http: str | None = None
    """Address of its metrics and health server, where it has one."""

    def is_alive(self) -> bool:
        return is_alive(self.pid, self.created_s)


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """The content of stack.json. A process that is down for the moment is not in `processes`."""

    kafka: str
    redis: str
    prefix: str
    gateway: str | None = None
    state: str = STARTING
    progress: str = ""
    error: str = ""
    supervisor: StackProcess
    processes: tuple[StackProcess, ...] = ()
    clean_argvs: tuple[tuple[str, ...], ...] = ()

    def alive(self) -> list[StackProcess]:
        """What really runs now, the supervisor first."""
        return [process for process in (self.supervisor, *self.processes) if process.is_alive()]


class Supervised(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor is told: commands ready to run, servers before roles."""

    kafka: str
    redis: str
    prefix: str
    gateway: str | None
    owner_pid: int | None
    processes: tuple[ProcessSpec, ...]
    scale: ScaleRules = ScaleRules()


def write_atomically(file: Path, record: msgspec.Struct) -> None:
    """Whoever reads sees the old content or the new one."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
    partial.replace(file)


def read(folder: Path) -> Stack | None:
    """The stack as its supervisor last wrote it down, None where there is none; ask its processes whether they are alive.

    Raises ConfigurationError where the file is not a stack's.
    """
    file = folder / STATE_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Stack)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{file} is not a stack's state ({error}): end its processes by hand and delete it") from None


async def start(plan: StackPlan, *, on_progress: Progress, s_max: float = START_S_MAX) -> Stack:
    """Start the stack and return when all of it is ready; it lives on without this process.

    What an earlier supervisor that was killed may have left is ended first. Raises ConfigurationError where a stack already runs here, where Kafka or
    Valkey cannot be found, and (everything ended again, the failing log's tail in the message) where something does not start within `s_max` seconds.
    """
    folder = plan.folder.resolve()
    for needed in (folder / LOGS, folder / READY):
        needed.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        await _take(lock, folder)
        return await _start_locked(plan, folder, lock, on_progress, s_max)
    finally:
        os.close(lock)


async def _start_locked(plan: StackPlan, folder: Path, lock: int, on_progress: Progress, s_max: float) -> Stack:
    loop = asyncio.get_running_loop()

    def report(text: str) -> None:
        loop.call_soon_threadsafe(on_progress, text)

    try:
        await stop(folder)
        supervised = await asyncio.to_thread(_prepare, plan, folder, report)
        write_atomically(folder / PLAN_FILE, supervised)
        try:
            await _spawn_supervisor(folder, lock)
            async with asyncio.timeout(s_max):
                return await _until_ready(folder, on_progress)
        except TimeoutError:
            stack = read(folder)
            raise ConfigurationError(
                f"the stack was not ready within {s_max:.0f} s ({stack.progress if stack else 'no state'}); see {folder / LOGS}"
            ) from None
    except BaseException:  # cancelled too: half a stack is never left behind
        await stop(folder)
        raise


async def _take(lock: int, folder: Path) -> None:
    """Locked by this process, and from its start on by the supervisor as well, which inherits it: one stack for a folder."""
    deadline_s = time.monotonic() + LOCK_S_MAX
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stack = read(folder)
            # A supervisor that was killed counts as dead before its last thread is gone, and with that its lock.
            going = stack is not None and not stack.supervisor.is_alive()
            if not going or time.monotonic() > deadline_s:
                raise ConfigurationError(f"a stack already runs in {folder}: look with `headrace status`, end it with `headrace down`") from None
            await asyncio.sleep(POLL_S)
        else:
            return


def _prepare(plan: StackPlan, folder: Path, on_progress: Progress) -> Supervised:
    processes: list[ProcessSpec] = []
    kafka, redis = plan.kafka, plan.redis
    if kafka is None:
        installation = find_kafka(home=plan.kafka_home, cache_folder=plan.cache_folder, on_progress=on_progress)
        broker, controller = free_ports(2)
        kafka = f"{LOOPBACK}:{broker}"
        on_progress(f"preparing Kafka ({installation.source})")
        command = prepare_kafka(installation, folder / "kafka", (broker, controller), jvm_options=plan.jvm_options)
        processes.append(ProcessSpec(role="kafka", name="kafka", argv=command.argv, ready=f"kafka:{kafka}", clean_argv=command.clean_argv))
    if redis is None:
        program, (port,) = find_valkey(), free_ports(1)
        redis = valkey_url(port)
        argv = valkey_argv(program, port, folder)
        processes.append(ProcessSpec(role="valkey", name="valkey", argv=tuple(argv), ready=f"valkey:{LOOPBACK}:{port}"))
    for role in plan.roles:
        ready = folder / READY / role.name
        words = {"{kafka}": kafka, "{redis}": redis, "{prefix}": plan.prefix, "{ready}": str(ready)}
        watched = any("{ready}" in word for word in role.argv)
        argv = [_replace(word, words) for word in role.argv]
        spec = ProcessSpec(role=role.role, name=role.name, argv=tuple(argv), ready=f"file:{ready}" if watched else "")
        processes.append(msgspec.structs.replace(spec, accelerator=role.accelerator, standby=role.standby))
    names = [process.name for process in processes]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"two processes have one name: {', '.join(sorted(names))}")
    return Supervised(
        kafka=kafka,
        redis=redis,
        prefix=plan.prefix,
        gateway=plan.gateway,
        owner_pid=plan.owner_pid,
        processes=tuple(processes),
        scale=plan.scale,
    )


def _replace(word: str, words: dict[str, str]) -> str:
    for placeholder, value in words.items():
        word = word.replace(placeholder, value)
    return word


async def _spawn_supervisor(folder: Path, lock: int) -> None:
    """The process started here detaches a supervisor with a session of its own, and ends when that has written stack.json."""
    log_file = folder / LOGS / SUPERVISOR_LOG
    # -P: a folder named `deploy` in the working folder must not be taken for ours.
    argv = (sys.executable, "-P", "-m", "deploy.local.supervisor", str(folder))
    with log_file.open("ab") as output:
        process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=output, stderr=STDOUT, pass_fds=(lock,))
        code = await process.wait()
    if code != 0:
        raise ConfigurationError(f"the supervisor ended with exit code {code}:\n{log_tail(log_file)}")


async def _until_ready(folder: Path, on_progress: Progress) -> Stack:
    said = ""
    while True:
        stack = read(folder)
        if stack is None:
            raise ConfigurationError("the stack was stopped while it started")
        if stack.progress != said:
            said = stack.progress
            on_progress(said)
        if stack.state == RUNNING:
            return stack
        if stack.error:
            raise ConfigurationError(stack.error)
        if not stack.supervisor.is_alive() and read(folder) == stack:
            raise ConfigurationError(f"the supervisor ended unexpectedly:\n{log_tail(folder / LOGS / SUPERVISOR_LOG)}")
        await asyncio.sleep(POLL_S)


async def stop(folder: Path) -> list[int]:
    """End everything that stack.json names and that still is what it names; returns the pids that were ended, the supervisor's first.

    A supervisor that lives does it in order; where it does not (killed, or hung), what is left is ended by force. Raises ConfigurationError
    where a process cannot be ended.
    """
    stack = read(folder)
    if stack is None:
        return []
    ended = {process.pid: process for process in stack.alive()}
    if stack.supervisor.pid in ended:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(stack.supervisor.pid).terminate()
        await _until_gone([stack.supervisor], STOP_S_MAX)
        # It may have restarted something meanwhile, and written that down.
        stack = read(folder) or stack
        ended |= {process.pid: process for process in stack.alive()}
    left = [process for process in ended.values() if process.is_alive()]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process.pid).kill()
    left = await _until_gone(left, GRACE_S)
    if left:
        raise ConfigurationError(f"cannot be ended: {', '.join(f'{process.name} (pid {process.pid})' for process in left)}")
    for argv in stack.clean_argvs:
        await run_clean_up(argv)
    (folder / STATE_FILE).unlink(missing_ok=True)
    return list(ended)


async def _until_gone(processes: list[StackProcess], s_max: float) -> list[StackProcess]:
    """Those still alive after at most `s_max` seconds."""
    deadline_s = time.monotonic() + s_max
    while left := [process for process in processes if process.is_alive()]:
        if time.monotonic() > deadline_s:
            break
        await asyncio.sleep(POLL_S)
    return left

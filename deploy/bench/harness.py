"""What every row of the benchmark stands on: a genuine Kafka, processes that end with the benchmark, cores, and a fresh set of topics."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec
import psutil

from broker.kafka import KafkaLog
from broker.log import Log
from deploy.local.kafka import STEADY_JVM, prepare_kafka
from deploy.local.kafka_install import find_kafka
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.process import Child, ProcessSpec, log_tail
from schemas.errors import HeadraceError
from schemas.names import Names

READY_S_MAX = 60.0
END_S_MAX = 12.0
POLL_S = 0.02
PROGRAM = (sys.executable, "-P", "-m")
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


class BenchmarkFailed(HeadraceError):
    """A part of the benchmark did not do what it was started for."""

    code = "benchmark_failed"


class Cores(msgspec.Struct, frozen=True):
    """Which processor cores the worker under test has to itself, and which all others share; empty: nothing can be pinned here."""

    worker: tuple[int, ...]
    others: tuple[int, ...]

    @classmethod
    def split(cls) -> Cores:
        """The first core for the worker, the rest for everybody else."""
        if not hasattr(os, "sched_getaffinity"):
            return cls((), ())
        usable = sorted(os.sched_getaffinity(0))
        return cls((usable[0],), tuple(usable[1:])) if len(usable) > 1 else cls((), ())

    @property
    def all(self) -> tuple[int, ...]:
        return self.worker + self.others


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep every thread that the process has now (and those that these start later) on these cores; without cores nothing happens."""
    if not cores:
        return
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        for thread in psutil.Process(pid).threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


class Crew:
    """Processes that work together for a while on topics of their own, and end together."""

    def __init__(self, kafka: str, names: Names, folder: Path) -> None:
        self.names = names
        self._kafka, self._folder = kafka, folder
        self._children: list[tuple[Child, asyncio.Task[int]]] = []

    async def role(self, role: str, name: str, *arguments: str, ready_when: str = "serving", cores: Sequence[int] = ()) -> int:
        """Start a role through the command line, as everybody does; returns its pid when it is ready."""
        ready = self._folder / f"{name}.ready"
        shared = ("--kafka", self._kafka, "--prefix", self.names.prefix, "--name", name, "--log-format", "json")
        argv = (*PROGRAM, "deploy.cli", role, *shared, "--ready-file", str(ready), "--ready-when", ready_when, *arguments)
        return await self._start(ProcessSpec(role=role, name=name, argv=argv, ready=f"file:{ready}"), cores)

    async def program(
        self, module: str, name: str, settings: msgspec.Struct, *, cores: Sequence[int] = (), variables: Mapping[str, str] = NO_VARIABLES
    ) -> int:
        """Start `python -m module SETTINGS`, a program of the benchmark itself; it creates the file `settings.ready` when it is.

        `variables`: of its environment, for libraries that read theirs before anything of ours runs.
        """
        ready: str = getattr(settings, "ready", "")
        set_before = ("env", *(f"{variable}={value}" for variable, value in variables.items())) if variables else ()
        argv = (*set_before, *PROGRAM, module, msgspec.json.encode(settings).decode())
        return await self._start(ProcessSpec(role="bench", name=name, argv=argv, ready=f"file:{ready}" if ready else ""), cores)

    def pids(self) -> dict[str, int]:
        """Of every process that runs, by name."""
        return {child.spec.name: child.pid for child, _ in self._children if child.pid is not None}

    def path(self, name: str) -> str:
        """A file in the crew's own folder."""
        return str(self._folder / name)

    async def result(self, path: str, s_max: float) -> Any:
        """What a program wrote as its result, as soon as it is there. Raises BenchmarkFailed where it does not come."""
        deadline_s = time.monotonic() + s_max
        while (result := _content(path)) is None:
            self.check()
            over = all(ended.done() for _, ended in self._children) and _content(path) is None
            if over or time.monotonic() > deadline_s:
                raise BenchmarkFailed(f"no {path} within {s_max:.0f} s:\n{self._states()}")
            await asyncio.sleep(POLL_S)
        return msgspec.json.decode(result)

    def check(self) -> None:
        """Raises BenchmarkFailed, with the tail of its log, where a process has ended that should run; an orderly end is none."""
        for child, ended in self._children:
            if ended.done() and ended.result() != 0:
                raise BenchmarkFailed(f"{child.spec.name} ended with exit code {ended.result()}:\n{log_tail(child.log_file)}")

    def _states(self) -> str:
        return "\n".join(
            f"{child.spec.name}: {'ended' if ended.done() else 'runs'} (pid {child.pid})\n{log_tail(child.log_file)}"
            for child, ended in self._children
        )

    async def end(self) -> None:
        """End what was started, the last first."""
        for child, _ in reversed(self._children):
            child.ask_to_end()
        if self._children:
            await asyncio.wait([ended for _, ended in self._children], timeout=END_S_MAX)
        for child, ended in self._children:
            if not ended.done():
                child.kill()
                await ended
        self._children.clear()

    async def _start(self, spec: ProcessSpec, cores: Sequence[int]) -> int:
        child = Child(spec, self._folder)
        await child.start()
        ended = asyncio.create_task(child.wait())
        self._children.append((child, ended))
        pid = child.pid
        assert pid is not None
        pin(pid, cores)
        deadline_s = time.monotonic() + READY_S_MAX
        while not await child.is_ready():
            if ended.done():
                raise BenchmarkFailed(f"{spec.name} ended with exit code {ended.result()} before it was ready:\n{log_tail(child.log_file)}")
            if time.monotonic() > deadline_s:
                raise BenchmarkFailed(f"{spec.name} was not ready within {READY_S_MAX:.0f} s:\n{log_tail(child.log_file)}")
            await asyncio.sleep(POLL_S)
        return pid


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def announce(path: str, content: object = None) -> None:
    """Write a ready file or a result, for `Crew` to find; it appears whole."""
    partial = Path(path + ".partial")
    partial.write_bytes(msgspec.json.encode(content))
    partial.replace(path)


class Harness:
    """Async context manager: Kafka runs inside it, and nothing is left of it afterwards."""

    def __init__(
        self, kafka: str | None, say: Callable[[str], None], *, kafka_home: str | None = None, jvm_options: tuple[str, ...] = STEADY_JVM
    ) -> None:
        """`kafka`: an address; None starts one of our own, with these options."""
        self._jvm_options = jvm_options
        self._address, self._say, self._kafka_home = kafka, say, kafka_home
        self._folder = Path()
        self._kafka: tuple[Child, asyncio.Task[int]] | None = None
        self._log: KafkaLog | None = None
        self.cores = Cores.split()

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
        try:
            if self._address is None:
                self._address = await self._start_kafka()
            self._log = KafkaLog(self._address)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._close()

    @property
    def kafka(self) -> str:
        """Bootstrap address."""
        assert self._address is not None
        return self._address

    @property
    def log(self) -> Log:
        """The log, for what the benchmark itself reads and writes."""
        assert self._log is not None
        return self._log

    @property
    def kafka_pid(self) -> int | None:
        """Where it runs here."""
        return self._kafka[0].pid if self._kafka is not None else None

    @property
    def own_kafka(self) -> bool:
        """Whether Kafka runs here, where it can be pinned."""
        return self._kafka is not None

    @asynccontextmanager
    async def crew(self) -> AsyncGenerator[Crew]:
        """Processes under a prefix of their own, its topics created before and deleted after."""
        async with self.bare_crew() as crew:
            names = crew.names
            await self.log.create_topics(names.topics())
            try:
                yield crew
            finally:
                await crew.end()
                await self._delete_topics(names)

    @asynccontextmanager
    async def bare_crew(self) -> AsyncGenerator[Crew]:
        """Processes that need no topics."""
        names = Names(f"bench-{secrets.token_hex(4)}")
        folder = self._folder / names.prefix
        folder.mkdir()
        crew = Crew(self.kafka, names, folder)
        try:
            yield crew
        finally:
            await crew.end()

    @property
    def folder(self) -> Path:
        """Kept until the end of the benchmark."""
        return self._folder

    @asynccontextmanager
    async def pinned(self) -> AsyncGenerator[Cores]:
        """Kafka and this process leave the worker's core alone."""
        pids = [os.getpid(), *([self._kafka[0].pid] if self._kafka is not None and self._kafka[0].pid else [])]
        for pid in pids:
            pin(pid, self.cores.others)
        try:
            yield self.cores
        finally:
            for pid in pids:
                pin(pid, self.cores.all)

    async def _delete_topics(self, names: Names) -> None:
        with suppress(HeadraceError):  # topics left over in a Kafka that is ending are nobody's loss
            await self.log.delete_topics([topic.name for topic in names.topics()])

    async def _start_kafka(self) -> str:
        installation = await asyncio.to_thread(lambda: find_kafka(home=self._kafka_home, on_progress=self._say))
        broker, controller = free_ports(2)
        command = await asyncio.to_thread(prepare_kafka, installation, self._folder / "kafka", (broker, controller), jvm_options=self._jvm_options)
        address = f"{LOOPBACK}:{broker}"
        self._say(f"starting Kafka ({installation.source}) at {address}")
        child = Child(
            ProcessSpec(role="kafka", name="kafka", argv=command.argv, ready=f"kafka:{address}", clean_argv=command.clean_argv), self._folder
        )
        await child.start()
        ended = asyncio.create_task(child.wait())
        self._kafka = (child, ended)
        deadline_s = time.monotonic() + READY_S_MAX
        while not await child.is_ready():
            if ended.done() or time.monotonic() > deadline_s:
                raise BenchmarkFailed(f"Kafka did not start:\n{log_tail(child.log_file)}")
            await asyncio.sleep(POLL_S)
        return address

    async def _close(self) -> None:
        if self._log is not None:
            await self._log.close()
        if self._kafka is not None:
            child, ended = self._kafka
            child.ask_to_end()
            await asyncio.wait([ended], timeout=END_S_MAX)
            if not ended.done():
                child.kill()
                await ended
            await child.clean()
        shutil.rmtree(self._folder, ignore_errors=True)

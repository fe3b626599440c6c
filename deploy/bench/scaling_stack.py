"""The stack of the rows about scaling: a dispatcher and two workers, under a scaler with a given optimizer or under plans written by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

from broker.log import Log, TopicPartition, Writer
from deploy.bench.exchange import Exchange, exchange
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.prefilled import written
from deploy.bench.scaling_load import Came, Offer, Photos, Step, judged
from deploy.bench.scaling_models import FIRST, Ladder
from deploy.bench.scaling_parts import parts_of, used
from deploy.catalog_apply import apply_files
from schemas.names import Names
from schemas.plan import PLAN_KEY, Binding, Plan, encode_plan
from schemas.telemetry import Departed, DispatcherReport, Returned, WorkerReport, decode_telemetry
from schemas.terminal import decode_terminal_head

WORKERS: tuple[str, ...] = ("worker-1", "worker-2")
WARM_UP = (Step(2.0, {FIRST: 10.0}),)
WARM = 0.5
"""Part of the warm-up that is answered in time by a stack that serves, however busy the machine is."""
LINGER_S = 0.005
GRACE_S = 1.5
READ_MS = 100
READY_S_MAX = 60.0
Report = WorkerReport | DispatcherReport


class Stack:
    """What runs, and how to ask it."""

    def __init__(self, harness: Harness, crew: Crew, opened: Exchange, ladder: Ladder, plans: Writer) -> None:
        """`plans`: a writer that stays open, as a scaler's does."""
        self.harness, self.crew, self.opened, self.ladder = harness, crew, opened, ladder
        self._plans = plans
        self.photos = Photos(ladder.photos)
        self.epoch = 0
        """Of the last plan written by hand."""

    @property
    def names(self) -> Names:
        return self.crew.names

    async def play(self, offer: Offer, *, grace_s: float = GRACE_S) -> Came:
        """Publish, wait for the answers (at most so long after the last request), judge."""
        self.opened.answers.clear()
        before = used(self.crew.pids(), self.harness.kafka_pid)
        await self.opened.play(offer.requests, self.crew.check, grace_s=grace_s, linger_s=LINGER_S)
        after = used(self.crew.pids(), self.harness.kafka_pid)
        terminals = [decode_terminal_head(answer.value) for answer in self.opened.answers.values()]
        profiles = {profile.variant.rpartition("/")[2]: profile.batches for profile in self.ladder.profiles}
        return msgspec.structs.replace(judged(offer, self.opened.answers), parts=parts_of(terminals, profiles, before, after, len(WORKERS)))

    async def direct(self, hosted: Mapping[str, Sequence[str]]) -> float:
        """Write the next plan: variant keys by worker. Returns when (Unix ms)."""
        self.epoch += 1
        return await write_plan(self._plans, self.names, plan_of(hosted, self.epoch))


def plan_of(hosted: Mapping[str, Sequence[str]], epoch: int) -> Plan:
    """Each worker on the lane of its place; the dispatcher shares requests out by load."""
    bindings = tuple(
        Binding(worker=worker, accelerator="cpu", lane=lane, variants=tuple(variants), batch_size_max=8)
        for lane, (worker, variants) in enumerate(hosted.items())
    )
    return Plan(epoch=epoch, bindings=bindings, planner="bench", reason="written by hand", made_ms=int(time.time() * 1000))


async def write_plan(writer: Writer, names: Names, plan: Plan) -> float:
    """Returns when it began to be written (Unix ms)."""
    began_ms = time.time() * 1000
    await writer.write(names.plan, 0, [(PLAN_KEY, encode_plan(plan), ())])
    return began_ms


@asynccontextmanager
async def scaled(
    harness: Harness, ladder: Ladder, optimizer: str, workers: Sequence[str] = WORKERS, *, memory_max: str = "8GiB"
) -> AsyncGenerator[Stack]:
    """Steered by `headrace scaler --optimizer NAME`."""

    async def begin(crew: Crew) -> None:
        await crew.role("scaler", "scaler", *scaler_arguments(optimizer), ready_when="running")

    async with _stack(harness, ladder, begin, workers, memory_max) as stack:
        yield stack


def scaler_arguments(optimizer: str) -> tuple[str, ...]:
    """Of `headrace scaler`."""
    return ("--optimizer", optimizer)


@asynccontextmanager
async def directed(harness: Harness, ladder: Ladder, hosted: Mapping[str, Sequence[str]]) -> AsyncGenerator[Stack]:
    """Without a scaler: the plan says what `hosted` does, until `Stack.direct` says otherwise."""

    async def begin(crew: Crew) -> None:
        async with written(harness.log) as writer:
            await write_plan(writer, crew.names, plan_of(hosted, 1))

    async with _stack(harness, ladder, begin, tuple(hosted), "8GiB") as stack:
        stack.epoch = 1
        yield stack


@asynccontextmanager
async def _stack(
    harness: Harness, ladder: Ladder, begin: Callable[[Crew], Awaitable[None]], workers: Sequence[str], memory_max: str
) -> AsyncGenerator[Stack]:
    async with harness.crew() as crew:
        await apply_files(harness.log, crew.names, ladder.files, harness.folder / "models")
        await begin(crew)
        where = ("--models", str(harness.folder / "models"), "--profiles", str(ladder.stored), "--cache", str(harness.folder / "cache"))
        for worker in workers:
            # Running, not serving: a plan may leave a worker empty.
            options = ("--accelerator", "cpu", "--threads", "1", "--memory-max", memory_max, *where)
            await crew.role("worker", worker, *options, ready_when="running")
        await crew.role("dispatcher", "dispatcher")
        async with exchange(harness.log, crew.names) as opened, written(harness.log) as plans:
            stack = Stack(harness, crew, opened, ladder, plans)
            await _warm_up(stack)
            yield stack


async def _warm_up(stack: Stack) -> None:
    """Ask until nearly everything is answered. Raises BenchmarkFailed."""
    deadline_s = time.monotonic() + READY_S_MAX
    came = await stack.play(stack.photos.offer(WARM_UP, seed=0))
    while came.attainment < WARM:
        if time.monotonic() > deadline_s:
            raise BenchmarkFailed(f"after {READY_S_MAX:.0f} s {came.completed} of {came.offered} easy requests are answered: {came.outcomes}")
        came = await stack.play(stack.photos.offer(WARM_UP, seed=0))


class Watch:
    """Reads {p}.telemetry from now on: every report of workers and dispatchers, in order."""

    def __init__(self, log: Log, names: Names) -> None:
        self._reader = log.reader("bench-telemetry")
        self._names = names
        self.reports: list[Report] = []
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        await self._reader.start()
        await self._reader.assign(await self._reader.end_offsets([TopicPartition(self._names.telemetry, 0)]))
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._reader.close()

    async def until(self, wanted: Callable[[Report], bool], what: str) -> Report:
        """The first report that is. Raises BenchmarkFailed where none comes."""
        deadline_s = time.monotonic() + READY_S_MAX
        at = 0
        while time.monotonic() < deadline_s:
            while at < len(self.reports):
                if wanted(self.reports[at]):
                    return self.reports[at]
                at += 1
            await asyncio.sleep(READ_MS / 5_000)
        raise BenchmarkFailed(f"no report of {what} within {READY_S_MAX:.0f} s")

    async def _read(self) -> None:
        while True:
            for records in (await self._reader.read(timeout_ms=READ_MS, records_max=2_000)).values():
                for record in records:
                    report = decode_telemetry(record.value or b"")
                    if not isinstance(report, Departed | Returned):
                        self.reports.append(report)

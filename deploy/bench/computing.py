"""What the rows that compute share: capacity by a closed loop, the stack under test on its cores, and the judgement of its answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from deploy.bench import mix
from deploy.bench.bare_models import ClosedLoop, Fifo
from deploy.bench.exchange import Answered, Exchange, exchange
from deploy.bench.harness import Crew, Harness
from deploy.catalog_apply import apply_files
from schemas import slo
from schemas.terminal import COMPLETED, TerminalHead, decode_terminal_head

HOP_MS = 20
"""A completed answer is in {p}.responses at most this much after its deadline: the wire's definition, for baselines too."""
LEAD_S = 1.5
"""From the start of the offer until the system is in its stride: not counted in goodput."""
LINGER_S = 0.005
"""Of the clients."""
WARM_UP_RPS, WARM_UP_S = 60.0, 1.0


class Played(msgspec.Struct, frozen=True):
    """What came of a schedule."""

    offered: int
    completed: int
    """In time and at or above the floor."""
    attainment: float
    goodput_rps: float
    accuracy_served: float
    accuracy_asked: float
    """Mean floor of all requests."""
    served_by_floor: dict[str, float]
    """Part of the requests of each floor that was completed in time."""
    outcomes: dict[str, int]
    """Outcomes with error codes behind a slash; completions that do not count are `late` or `below its floor`."""
    variants: dict[str, int]


async def closed_loop(harness: Harness, seconds: float, seed: int) -> float:
    """Requests a second that the worker's core can answer with nothing around the work."""
    async with harness.bare_crew() as crew:
        settings = ClosedLoop(seconds=seconds, seed=seed, result=crew.path("closed-loop.json"))
        await crew.program("deploy.bench.bare_models", "closed-loop", settings, cores=harness.cores.worker)
        return (await crew.result(settings.result, seconds + 60.0))["rate_rps"]


@asynccontextmanager
async def stack(harness: Harness, folder: Path) -> AsyncGenerator[tuple[Crew, Exchange]]:
    """Dispatcher, planner and one worker with one thread; profiles and models are kept in `folder` from one to the next."""
    async with harness.crew() as crew:
        await apply_files(harness.log, crew.names, mix.FILES, folder / "models")
        others = harness.cores.others
        await crew.role("scaler", "scaler", ready_when="running", cores=others)
        where = ("--models", str(folder / "models"), "--profiles", str(folder / "profiles"), "--cache", str(folder / "cache"))
        await crew.role("worker", "worker", "--accelerator", "cpu", "--threads", "1", *where, cores=harness.cores.worker)
        await crew.role("dispatcher", "dispatcher", cores=others)
        async with exchange(harness.log, crew.names) as opened:
            await opened.play(mix.schedule(WARM_UP_RPS, WARM_UP_S, seed=0).requests, crew.check)
            yield crew, opened


@asynccontextmanager
async def fifo(harness: Harness) -> AsyncGenerator[tuple[Crew, Exchange]]:
    """The early-bound consumer in place of dispatcher and worker."""
    async with harness.crew() as crew:
        names = crew.names
        settings = Fifo(
            kafka=harness.kafka, requests=names.requests, responses=names.responses, group=names.dispatchers_group, ready=crew.path("fifo.ready")
        )
        await crew.program("deploy.bench.bare_models", "fifo", settings, cores=harness.cores.worker)
        async with exchange(harness.log, names) as opened:
            await opened.play(mix.schedule(WARM_UP_RPS, WARM_UP_S, seed=0).requests, crew.check)
            yield crew, opened


async def offer(opened: Exchange, crew: Crew, schedule: mix.Schedule, *, grace_s: float = 1.5) -> Played:
    """Play a schedule and judge what came back."""
    opened.answers.clear()
    began_s = await opened.play(schedule.requests, crew.check, grace_s=grace_s, linger_s=LINGER_S)
    await asyncio.sleep(0)
    return judge(schedule, opened.answers, began_s)


def judge(schedule: mix.Schedule, answers: dict[bytes, Answered], began_s: float) -> Played:
    """Goodput counts what got into the log between LEAD_S after the beginning and the end of the offer; attainment counts every request."""
    good: dict[bytes, TerminalHead] = {}
    outcomes: Counter[str] = Counter()
    counted = 0
    first_ms, last_ms = (began_s + LEAD_S) * 1000, (began_s + schedule.seconds) * 1000
    for key, ask in schedule.asks.items():
        answer = answers.get(key)
        if answer is None:
            outcomes["unanswered"] += 1
            continue
        terminal = decode_terminal_head(answer.value)
        verdict = _verdict(terminal, answer, ask.floor)
        outcomes[verdict] += 1
        if verdict == COMPLETED:
            good[key] = terminal
            counted += first_ms <= answer.written_ms <= last_ms
    asked = Counter(ask.floor for ask in schedule.asks.values())
    met = Counter(schedule.asks[key].floor for key in good)
    return Played(
        offered=len(schedule.asks),
        completed=len(good),
        attainment=slo.attainment(len(good), len(schedule.asks)),
        goodput_rps=slo.goodput_rps(counted, max(schedule.seconds - LEAD_S, 1e-9)),
        accuracy_served=slo.effective_accuracy_served([terminal.accuracy or 0.0 for terminal in good.values()]),
        accuracy_asked=sum(ask.floor for ask in schedule.asks.values()) / len(schedule.asks),
        served_by_floor={f"{floor:g}": met[floor] / asked[floor] for floor in sorted(asked)},
        outcomes=dict(outcomes),
        variants=dict(Counter(terminal.path[-1].variant for terminal in good.values())),
    )


def _verdict(terminal: TerminalHead, answer: Answered, floor: float) -> str:
    if terminal.outcome != COMPLETED:
        return f"{terminal.outcome}/{terminal.error.code if terminal.error else ''}"
    deadline_ms = terminal.deadline_ms or 0
    if terminal.finished_ms > deadline_ms or answer.written_ms > deadline_ms + HOP_MS:
        return "late"
    return COMPLETED if (terminal.accuracy or 0.0) >= floor else "below its floor"

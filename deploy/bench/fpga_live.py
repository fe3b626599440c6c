"""Rows: what a board adds to a processor at equal floors, and how a board that froze comes back; both over genuine Kafka."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec
import numpy as np

from broker.published import Request, publish
from deploy.bench import mix
from deploy.bench.computing import Played, judge
from deploy.bench.exchange import Exchange, Timed, exchange
from deploy.bench.fpga_overhead import need_pynq, start_boards
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.catalog_apply import apply_files
from deploy.demo.boards import CATALOG
from deploy.snapshots import read_alive
from schemas.errors import LogUnavailable
from schemas.limits import Limits
from schemas.names import Names

FLOORS = ((0.88, 0.8), (0.93, 0.2))
"""(accuracy floor, part of the requests); a board meets the first one."""
ROWS, TIMEOUT_MS, BODIES = 32, 600, 32
WARM_UP_TRIES = 8
RATES_RPS = tuple(25.0 * 1.4**step for step in range(10))
OVERLOADED, OFFER_S = 0.6, 6.0
"""Offered to either, ever more, until so little of it is served in time; the best of it counts."""
GAIN = 1.5
WORKER = "fpga-1"
CALM_RPS, FREEZE_AT_S, FROZEN_S, WATCH_S = 20.0, 3.0, 3.0, 15.0
BACK_S_MAX, ATTAINMENT = 10.0, 0.95


def schedule(rate_rps: float, seconds: float, seed: int, floors: Sequence[tuple[float, float]] = FLOORS, rows: int = ROWS) -> mix.Schedule:
    """Poisson arrivals of images with these floors."""
    random = np.random.default_rng(seed)
    count = max(1, round(rate_rps * seconds))
    at_s = np.cumsum(random.exponential(1.0 / rate_rps, count))
    asked = random.choice([floor for floor, _ in floors], count, p=[part for _, part in floors])
    images = mix.images()
    requests: list[Timed] = []
    asks: dict[bytes, mix.Ask] = {}
    for number in range(count):
        at = number % BODIES * rows
        request = Request(
            endpoint=mix.ENDPOINT,
            inputs={"image": images[at : at + rows]},
            min_accuracy=float(asked[number]),
            timeout_ms=TIMEOUT_MS,
            request_id=uuid.uuid4().hex,
        )
        message = publish(request, "msgpack", Limits()).message
        requests.append(Timed(float(at_s[number]), message))
        asks[message[0] or b""] = mix.Ask(float(asked[number]), TIMEOUT_MS)
    return mix.Schedule(requests, asks, float(at_s[-1]))


@asynccontextmanager
async def stack(harness: Harness, *, board: str) -> AsyncGenerator[tuple[Crew, Exchange]]:
    """A dispatcher, a planner, a processor, and a board: `emulated`, the address of one, or none where it is empty."""
    await _warm(harness)
    async with harness.crew() as crew:
        folder = harness.folder
        await apply_files(harness.log, crew.names, CATALOG, folder / "models")
        where = ("--models", str(folder / "models"), "--profiles", str(folder / "profiles"), "--cache", str(folder / "cache"))
        await crew.role("scaler", "scaler", ready_when="running")
        await crew.role("worker", "cpu-1", "--accelerator", "cpu", "--threads", "1", *where)
        if board:
            await crew.role("worker", WORKER, "--accelerator", "fpga", "--device", board, *where)
        await crew.role("dispatcher", "dispatcher")
        async with exchange(harness.log, crew.names) as opened:
            await opened.play(schedule(30.0, 1.0, 0, rows=4).requests, crew.check)
            yield crew, opened


async def _warm(harness: Harness) -> None:
    """A Kafka that has just started may not answer its first calls in time on a busy machine."""
    for left in reversed(range(WARM_UP_TRIES)):
        try:
            await harness.log.create_topics(Names("bench-warm-up").topics())
        except LogUnavailable:
            if not left:
                raise
        else:
            return


async def offer(opened: Exchange, crew: Crew, planned: mix.Schedule) -> Played:
    """Play and judge."""
    opened.answers.clear()
    began_s = await opened.play(planned.requests, crew.check, grace_s=1.5)
    return judge(planned, opened.answers, began_s)


class FpgaMixed:
    """The row."""

    name = "fpga-mixed"
    title = "a processor and an emulated board, against the processor alone, at equal floors"
    once = False
    figures = (Figure(key="served", what="requests/s in time", unit="/s", limit=GAIN, at_least=True, baseline="the processor alone"),)

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        need_pynq()
        curves: dict[str, list[Played]] = {}
        for who, board in (("alone", ""), ("mixed", "emulated")):
            curve = curves[who] = []
            async with stack(harness, board=board) as (crew, opened):
                for rate_rps in RATES_RPS:
                    say(f"{who} at {rate_rps:.0f} requests/s")
                    curve.append(await offer(opened, crew, schedule(rate_rps, scale.seconds(OFFER_S), run)))
                    if curve[-1].attainment < OVERLOADED:
                        break
        alone, mixed = (max(played.goodput_rps for played in curve) for curve in curves.values())
        return Measured({"served": Sample(mixed, alone)}, {who: msgspec.to_builtins(curve) for who, curve in curves.items()})


class FpgaRecovery:
    """The row: a board behind PYNQ.remote is stopped with SIGSTOP under load, and goes on later."""

    name = "fpga-recovery"
    title = f"a board freezes for {FROZEN_S:g} s"
    once = False
    figures = (
        Figure(key="back", what="back after thawing", unit="s", limit=BACK_S_MAX, of_ratio=False),
        Figure(key="attainment", what="SLO attainment, freeze included", unit="", limit=ATTAINMENT, at_least=True, of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        del scale
        need_pynq()
        async with harness.bare_crew() as boards:
            (address,) = await start_boards(boards, 1)
            pid = boards.pids()["board-0"]
            async with stack(harness, board=address) as (crew, opened):
                # Both can serve these: what the board cannot finish is finished elsewhere.
                planned = schedule(CALM_RPS, FREEZE_AT_S + FROZEN_S + WATCH_S, run, ((0.8, 1.0),), rows=4)
                playing = asyncio.create_task(offer(opened, crew, planned))
                try:
                    await asyncio.sleep(FREEZE_AT_S)
                    say("the board freezes")
                    os.kill(pid, signal.SIGSTOP)
                    await self._until(harness, crew, ready=False)
                    await asyncio.sleep(FROZEN_S)
                finally:
                    os.kill(pid, signal.SIGCONT)
                thawed_s = time.monotonic()
                await self._until(harness, crew, ready=True)
                back_s = time.monotonic() - thawed_s
                played = await playing
        return Measured({"back": Sample(back_s), "attainment": Sample(played.attainment)}, {"played": msgspec.to_builtins(played)})

    async def _until(self, harness: Harness, crew: Crew, *, ready: bool) -> None:
        deadline_s = time.monotonic() + WATCH_S * 2
        while True:
            report = (await read_alive(harness.log, crew.names)).workers.get(WORKER)
            if report is not None and (report.state == "ready" and not report.reason) == ready:
                return
            if time.monotonic() > deadline_s:
                raise BenchmarkFailed(f"the worker of the board is {report.state if report else 'silent'}: {report.reason if report else ''}")
            await asyncio.sleep(0.1)

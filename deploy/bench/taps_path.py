"""Row: what a tap of every request takes from the requests: their p99 and attainment at 0.7 x capacity, with and without it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence

import psutil

from deploy.bench import computing, mix
from deploy.bench.exchange import Exchange
from deploy.bench.graph_shadow import Side, waits_ms
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.prefilled import shards_of, written
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from schemas.catalog import EndpointSpec, catalog_key, encode_catalog
from schemas.tap import TapSpec

ALONE, TAPPED = "bench-alone", "bench-tapped"
LOAD = 0.7
OFFER_S = 8.0
LOOP_S = 2.5
SETTLE_S = 1.0
END_S_MAX = 10.0
KNOWN_S_MAX = 15.0


class TapsPath:
    """The row."""

    name = "taps-path"
    title = f"a tap of every request, at {LOAD:g} x capacity"
    once = False
    figures = (
        Figure(key="p99", what="p99 of the requests", unit="ms", limit=1.03, baseline="the same requests without a tap"),
        Figure(key="lost", what="attainment lost", unit="points", limit=3.0, of_ratio=False),
        Figure(key="tapped", what="part of the requests whose answers were tapped", unit="", limit=1.0, at_least=True, of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        async with harness.pinned(), computing.stack(harness, harness.folder) as (crew, opened):
            specs = [EndpointSpec(name=ALONE, task=mix.TASK), EndpointSpec(name=TAPPED, task=mix.TASK, taps=TapSpec())]
            async with written(harness.log) as writer:
                await writer.write(crew.names.catalog, 0, [(catalog_key(spec), encode_catalog(spec), ()) for spec in specs])
            for spec in specs:
                await _known(opened, crew, spec.name)
            say("closed loop")
            capacity_rps = await computing.closed_loop(harness, LOOP_S, run)
            sides = {True: Side(), False: Side()}
            # There and back again, each time with the same requests: a machine that drifts favours neither.
            for part, tapped in enumerate((False, True, True, False)):
                say(f"{'with' if tapped else 'without'} a tap, part {part + 1} of 4")
                schedule = mix.schedule(capacity_rps * LOAD, scale.seconds(OFFER_S), 2 * run + part // 2, endpoint=TAPPED if tapped else ALONE)
                pid = await _start(crew, part, harness.cores.others) if tapped else None
                before = await _tapped(harness, crew)
                played = await computing.offer(opened, crew, schedule)
                if pid is not None:
                    await asyncio.sleep(SETTLE_S)
                    await _end(pid)
                sides[tapped].note(waits_ms(schedule, opened.answers, opened.sent_s), played, await _tapped(harness, crew) - before)
        on, off = sides[True], sides[False]
        samples = {
            "p99": Sample(on.p99_ms, off.p99_ms),
            "lost": Sample((off.attainment - on.attainment) * 100),
            "tapped": Sample(on.copied / on.offered),
        }
        return Measured(samples, {"capacity_rps": capacity_rps, "with": on.details(), "without": off.details()})


async def _known(opened: Exchange, crew: Crew, endpoint: str) -> None:
    deadline_s = time.monotonic() + KNOWN_S_MAX
    while (await computing.offer(opened, crew, mix.schedule(20.0, 0.5, seed=0, endpoint=endpoint))).attainment == 0.0:
        if time.monotonic() > deadline_s:
            raise BenchmarkFailed(f"endpoint {endpoint} answered nothing within {KNOWN_S_MAX:.0f} s")


async def _start(crew: Crew, part: int, cores: Sequence[int]) -> int:
    """A tap that has caught up with what is in the log already."""
    pid = await crew.role("taps", f"tap-{part}", "--group", f"{crew.names.prefix}.bench-tap", cores=cores)
    await asyncio.sleep(SETTLE_S)
    return pid


async def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + END_S_MAX
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline_s:
            raise BenchmarkFailed("the tap does not end")
        await asyncio.sleep(0.05)


async def _tapped(harness: Harness, crew: Crew) -> int:
    """Requests whose answers were tapped so far, by their ids."""
    reader = harness.log.reader("bench-taps")
    await reader.start()
    found: set[bytes | None] = set()
    try:
        await reader.assign(dict.fromkeys(shards_of(crew.names.tap_responses), "earliest"))
        while True:
            read = await reader.read(timeout_ms=300, records_max=5_000)
            if not read:
                return len(found)
            found.update(record.key for records in read.values() for record in records)
    finally:
        await reader.close()

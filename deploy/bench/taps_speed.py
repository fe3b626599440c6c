"""Rows: how many records a second one tap copies, to Kafka and to Parquet files, from a log that holds them already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from deploy.bench.dispatcher_cpu import CpuMeter
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.memory import resident_mb
from deploy.bench.prefilled import shards_of
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.tap_records import fill_exchanges, publish_tapped
from deploy.configuration import Connection
from deploy.roles.taps import TapOptions, default_group
from schemas.names import Names

COUNT = 60_000
RUN_S_MAX = 120.0
POLL_S = 0.05
Progress = Callable[[], Awaitable[int]]


class TapSpeed:
    """A row: `records` are what is read, a request and its answer each."""

    once = False

    def __init__(self, sink: str, limit_rps: float) -> None:
        self.name = f"taps-{sink}"
        self._sink = sink
        to = "CloudEvents in Kafka transactions" if sink == "kafka" else "rows of Parquet files"
        self.title = f"one tap, every request, 1 kB each way: {to}"
        records = "records copied a second" if sink == "kafka" else "rows written a second"
        self.figures = (
            Figure(key="rate", what=records, unit="1/s", limit=limit_rps, at_least=True, of_ratio=False),
            Figure(key="cpu", what="processor time of a request with its answer", unit="us", of_ratio=False),
            Figure(key="resident", what="resident memory at the end", unit="MB", of_ratio=False),
        )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        count = scale.count(COUNT)
        async with harness.crew() as crew:
            say(f"{count} requests with their answers")
            await publish_tapped(harness.log, crew.names)
            await fill_exchanges(harness.log, crew.names, count)
            say("copying")
            folder = crew.path("rows")
            options = ["--parquet", folder] if self._sink == "parquet" else []
            reader = harness.log.reader("bench", group=_group(crew.names, self._sink, folder))
            await reader.start()
            try:
                partitions = shards_of(crew.names.responses)

                async def copied() -> int:
                    return sum(at.offset for at in (await reader.committed_all(partitions)).values())

                pid = await crew.role("taps", "tap", "--niceness", "0", *options, ready_when="running")
                meter = CpuMeter(pid)
                try:
                    begun_s, first = await _first(copied, crew)
                    seconds = await _until(copied, count, crew) - begun_s
                    cpu_us = meter.spent_s(begun_s, begun_s + seconds) / max(count - first, 1) * 1e6
                finally:
                    meter.close()
            finally:
                await reader.close()
            each = 1 if self._sink == "parquet" else 2
            samples = {"rate": Sample((count - first) * each / seconds), "cpu": Sample(cpu_us), "resident": Sample(resident_mb(pid))}
            return Measured(samples, {"count": count, "first": first, "seconds": seconds})


def _group(names: Names, sink: str, folder: str) -> str:
    options = {"folder": Path(folder)} if sink == "parquet" else {}
    return default_group(Connection(prefix=names.prefix), TapOptions(sink=sink, options=options))


async def _first(copied: Progress, crew: Crew) -> tuple[float, int]:
    """When the first of it was seen to be stored (Unix time), and how much that was."""
    while not (done := await copied()):
        crew.check()
        await asyncio.sleep(POLL_S)
    return time.time(), done


async def _until(copied: Progress, count: int, crew: Crew) -> float:
    """When all of it was stored (Unix time)."""
    end_s = time.monotonic() + RUN_S_MAX
    while (done := await copied()) < count:
        crew.check()
        if time.monotonic() > end_s:
            raise BenchmarkFailed(f"{done} of {count} requests were tapped within {RUN_S_MAX:.0f} s")
        await asyncio.sleep(POLL_S)
    return time.time()

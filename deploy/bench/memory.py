"""Row: what a dispatcher with a hundred thousand waiting requests holds, and whether anything grows at capacity."""

from __future__ import annotations

import asyncio
import time
from statistics import median

import psutil

from broker.log import Log, TopicPartition
from deploy.bench import computing, mix
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.prefilled import fill, json_body, publish_control, start_null_worker
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from schemas.telemetry import DispatcherReport, decode_telemetry

WAITING = 100_000
TIMEOUT_MS = 600_000
WAIT_S_MAX = 60.0
MEGABYTE = 1 << 20
SOAK_LOAD = 1.0
LOOP_S = 2.0
SAMPLE_S = 0.5
KEPT = 60
"""Samples of each role that go into the JSON."""
PART_S = 30.0
"""A long soak is published in parts of this length."""


def resident_mb(pid: int) -> float:
    """Resident set of a process."""
    return psutil.Process(pid).memory_info().rss / MEGABYTE


async def _until_waiting(log: Log, crew: Crew, count: int) -> None:
    """Until the dispatcher says that so many requests are with it."""
    reader = log.reader("bench-telemetry")
    await reader.start()
    deadline_s = time.monotonic() + WAIT_S_MAX
    try:
        await reader.assign({TopicPartition(crew.names.telemetry, 0): "latest"})
        while time.monotonic() < deadline_s:
            crew.check()
            for records in (await reader.read(timeout_ms=500, records_max=1_000)).values():
                for record in records:
                    report = decode_telemetry(record.value or b"")
                    if isinstance(report, DispatcherReport) and report.waiting + report.leased >= count:
                        return
        raise BenchmarkFailed(f"the dispatcher has not taken {count} requests within {WAIT_S_MAX:.0f} s")
    finally:
        await reader.close()


async def waiting(harness: Harness, count: int) -> tuple[float, float]:
    """(resident MB with so many requests waiting, MB before them)."""
    async with harness.crew() as crew:
        names = crew.names
        await publish_control(harness.log, names, lanes=1)
        await start_null_worker(harness, crew, spends_ms=None)
        pid = await crew.role("dispatcher", "dispatcher")
        before_mb = resident_mb(pid)
        await fill(harness.log, names.requests, (json_body(TIMEOUT_MS) for _ in range(count)))
        await _until_waiting(harness.log, crew, count)
        return resident_mb(pid), before_mb


async def soak(harness: Harness, seconds: float) -> tuple[float, dict[str, list[float]]]:
    """(largest growth of a role over the second half, as a part of its size at half time; every role's resident MB over time)."""
    async with harness.pinned():
        capacity_rps = await computing.closed_loop(harness, LOOP_S, 0)
        async with computing.stack(harness, harness.folder) as (crew, opened):
            pids = {name: pid for name, pid in crew.pids().items() if name in ("dispatcher", "worker")}
            sizes: dict[str, list[float]] = {name: [] for name in pids}

            async def watch() -> None:
                while True:
                    for name, pid in pids.items():
                        sizes[name].append(resident_mb(pid))
                    await asyncio.sleep(SAMPLE_S)

            watching = asyncio.create_task(watch())
            try:
                left_s, part = seconds, 0
                while left_s > 0:
                    await computing.offer(opened, crew, mix.schedule(capacity_rps * SOAK_LOAD, min(PART_S, left_s), part), grace_s=0.2)
                    left_s, part = left_s - PART_S, part + 1
            finally:
                watching.cancel()
    return max(_growth(samples) for samples in sizes.values()), sizes


def _growth(samples: list[float]) -> float:
    """From the middle tenth to the last tenth."""
    tenth = max(len(samples) // 10, 1)
    half = median(samples[len(samples) // 2 - tenth : len(samples) // 2 + 1])
    return median(samples[-tenth:]) / half - 1.0


class Memory:
    """The row."""

    name = "memory"
    title = f"{WAITING} waiting requests of 1 kB; growth at capacity"
    once = True
    figures = (
        Figure(key="waiting", what=f"RSS with {WAITING} waiting", unit="MB", limit=400.0, of_ratio=False),
        Figure(key="growth", what="RSS growth in the second half", unit="", limit=0.05, of_ratio=False),
        Figure(key="soak", what="length of the soak", unit="min", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        say(f"{WAITING} requests wait")
        full_mb, empty_mb = await waiting(harness, WAITING)
        say(f"soak at capacity, {scale.soak_s / 60:g} minutes")
        growth, sizes = await soak(harness, scale.soak_s)
        samples = {"waiting": Sample(full_mb), "growth": Sample(growth), "soak": Sample(scale.soak_s / 60)}
        return Measured(
            samples, {"empty_mb": empty_mb, "resident_mb": {name: values[:: max(len(values) // 60, 1)] for name, values in sizes.items()}}
        )

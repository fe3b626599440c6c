"""Row: what an HTTP sink that nobody answers costs: a buffer of a fixed size, and drops that are counted."""

from __future__ import annotations

import asyncio
import time

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.memory import resident_mb
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.tap_records import fill_exchanges, publish_tapped
from deploy.local.ports import LOOPBACK, free_ports

FIRST, SECOND = 15_000, 30_000
"""Requests, of some 3 kB as events with their answers: the first fill the buffer, the others find it full."""
RUN_S_MAX = 90.0
STILL_S = 3.0
POLL_S = 0.25
BUFFER_MB = 16.0
MEGABYTE = 1 << 20
DROPPED, BUFFERED = "headrace_tap_dropped_total", "headrace_tap_buffered_bytes"


class TapsDeadSink:
    """The row."""

    name = "taps-dead-sink"
    title = f"an HTTP sink that does not answer, with a buffer of {BUFFER_MB:g} MiB"
    once = True
    figures = (
        Figure(key="growth", what="growth of the tap, once the buffer is full", unit="MB", limit=BUFFER_MB, of_ratio=False),
        Figure(key="buffered", what="bytes that wait at the end", unit="MB", limit=BUFFER_MB + 0.1, of_ratio=False),
        Figure(key="dropped", what="part of the events counted as dropped", unit="", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        first, second = scale.count(FIRST), scale.count(SECOND)
        nobody, http = free_ports(2)
        async with harness.crew() as crew:
            await publish_tapped(harness.log, crew.names)
            await fill_exchanges(harness.log, crew.names, first)
            say("the buffer fills")
            options = ("--sink", "http", "--url", f"http://{LOOPBACK}:{nobody}/", "--http", f"{LOOPBACK}:{http}")
            pid = await crew.role("taps", "tap", *options, ready_when="running")
            await _until_still(http, crew)
            before_mb = resident_mb(pid)
            say("and is full")
            await fill_exchanges(harness.log, crew.names, second)
            found = await _until_still(http, crew)
            after_mb = resident_mb(pid)
        samples = {
            "growth": Sample(after_mb - before_mb),
            "buffered": Sample(found[BUFFERED] / MEGABYTE),
            "dropped": Sample(found[DROPPED] / (2 * (first + second))),
        }
        return Measured(samples, {"before_mb": before_mb, "after_mb": after_mb, **found})


async def _until_still(http: int, crew: Crew) -> dict[str, float]:
    """The tap's metrics, when it has dropped something and drops no more: all of the log has come by."""
    end_s = time.monotonic() + RUN_S_MAX
    said, since_s = 0.0, time.monotonic()
    while True:
        crew.check()
        found = await _metrics(http)
        if found[DROPPED] != said:
            said, since_s = found[DROPPED], time.monotonic()
        elif said and time.monotonic() - since_s > STILL_S:
            return found
        if time.monotonic() > end_s:
            raise BenchmarkFailed(f"the tap has not come to rest within {RUN_S_MAX:.0f} s: {found}")
        await asyncio.sleep(POLL_S)


async def _metrics(http: int) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{LOOPBACK}:{http}/metrics") as answer:
        text = await answer.text()
    found: dict[str, float] = dict.fromkeys((DROPPED, BUFFERED), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in found:
                found[sample.name] += sample.value
    return found

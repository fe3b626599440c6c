"""Row: what a scaler takes of processor and memory, with 100 and 1,000 workers that only telemetry knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import psutil

from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.memory import MEGABYTE
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.scaling_load import FLOOR
from deploy.bench.scaling_models import FIRST, SECOND, Ladder, prepared
from deploy.bench.scaling_stack import scaler_arguments
from deploy.bench.scaling_telemetry import CLASSES, Simulated, generate
from deploy.catalog_apply import apply_files
from schemas.errors import HeadraceError

OPTIMIZER = "headrace"
FEW, MANY = 100, 1_000
LOAD = 0.5
"""Of what these workers would compute at the most accurate variant."""
SETTLE_S, MEASURED_S = 6.0, 20.0
"""Two periodic plans are in it."""
SAMPLE_S = 0.5
LANES_MAX = 64
"""Of a class: beyond it workers report and are not bound, so that Kafka has not thousands of partitions to make."""


class Spent(NamedTuple):
    """Processor seconds, by the process alone and with its children (the optimizer's), and memory."""

    own_s: float
    all_s: float
    resident_mb: float


def spent(pid: int) -> Spent:
    """Until now. What processes share is counted once (PSS), where the system tells."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    cpu_s, resident = 0.0, 0.0
    for one in family:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            cpu_s += times.user + times.system
            resident += getattr(one.memory_full_info(), "pss", 0) or one.memory_info().rss
    ended = process.cpu_times()
    # Children that have ended, and were waited for, count for their parent.
    cpu_s += getattr(ended, "children_user", 0.0) + getattr(ended, "children_system", 0.0)
    return Spent(ended.user + ended.system, cpu_s, resident / MEGABYTE)


class Cost(NamedTuple):
    """Over the measured time."""

    own_ms_per_s: float
    all_part: float
    resident_mb: float
    plans: int
    """Published while it was measured: one that says what the last one said is not."""
    bound: int
    """Workers that the plan in force binds to something."""


async def cost(harness: Harness, ladder: Ladder, workers: int, seconds: float) -> Cost:
    """Of a scaler with so many workers; a plan is in force when measuring begins."""
    latency = {f"{task}/{profile.variant.partition('/')[2]}": profile.batches for task in (FIRST, SECOND) for profile in ladder.profiles}
    rate_rps = LOAD * workers * 1000 / ladder.milliseconds(ladder.best)
    simulated = Simulated(workers, latency, {FIRST: rate_rps * 0.7, SECOND: rate_rps * 0.3}, FLOOR)
    async with _crew(harness, workers) as crew:
        await apply_files(harness.log, crew.names, ladder.files, harness.folder / "models")
        pid = await crew.role("scaler", "scaler", *scaler_arguments(OPTIMIZER), ready_when="running")
        generating = asyncio.create_task(generate(harness.log, crew.names, simulated))
        try:
            await asyncio.sleep(SETTLE_S)
            return await _measured(crew, pid, simulated, seconds)
        finally:
            generating.cancel()
            with suppress(asyncio.CancelledError):
                await generating


@asynccontextmanager
async def _crew(harness: Harness, workers: int) -> AsyncGenerator[Crew]:
    """With lanes for these workers, as an operator of so many would have made them."""
    async with harness.bare_crew() as crew:
        topics = crew.names.topics(lanes=min(-(-workers // len(CLASSES)), LANES_MAX))
        await harness.log.create_topics(topics)
        try:
            yield crew
        finally:
            await crew.end()
            with suppress(HeadraceError):  # topics left over in a Kafka that is ending are nobody's loss
                await harness.log.delete_topics([topic.name for topic in topics])


async def _measured(crew: Crew, pid: int, simulated: Simulated, seconds: float) -> Cost:
    if not any(binding.variants for binding in simulated.plan.bindings):
        raise BenchmarkFailed(f"no plan binds a simulated worker after {SETTLE_S:.0f} s: an idle scaler would be measured")
    before, epoch = await asyncio.to_thread(spent, pid), simulated.plan.epoch
    resident_mb = before.resident_mb
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while loop.time() - began_s < seconds:
        await asyncio.sleep(SAMPLE_S)
        crew.check()
        resident_mb = max(resident_mb, (await asyncio.to_thread(spent, pid)).resident_mb)
    after = await asyncio.to_thread(spent, pid)
    took_s = loop.time() - began_s
    bound = sum(bool(binding.variants) for binding in simulated.plan.bindings)
    own_ms = (after.own_s - before.own_s) * 1000 / took_s
    return Cost(own_ms, (after.all_s - before.all_s) / took_s, resident_mb, simulated.plan.epoch - epoch, bound)


class ScalingCost:
    """The row. Processor time of the optimizer's process counts for the part of a core, and not for the handling of telemetry."""

    name = "scaling-cost"
    title = f"a scaler with {FEW} and {MANY} workers"
    once = False
    figures = (
        Figure(key="core", what=f"processor time at {FEW} workers", unit="% of a core", limit=5.0, of_ratio=False),
        Figure(key="memory", what=f"memory at {FEW} workers", unit="MB", limit=200.0, of_ratio=False),
        Figure(key="second", what=f"one second of telemetry at {MANY}", unit="ms", limit=100.0, of_ratio=False),
        Figure(key="plans", what=f"plans made at {FEW} workers", unit="", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        ladder = await prepared(harness, say)
        seconds = scale.seconds(MEASURED_S)
        say(f"{FEW} workers")
        few = await cost(harness, ladder, FEW, seconds)
        say(f"{MANY} workers")
        many = await cost(harness, ladder, MANY, seconds)
        samples = {
            "core": Sample(few.all_part * 100),
            "memory": Sample(few.resident_mb),
            "second": Sample(many.own_ms_per_s),
            "plans": Sample(float(few.plans)),
        }
        details: dict[str, object] = {f"{FEW}": few._asdict(), f"{MANY}": many._asdict()}
        return Measured(samples, details)

"""Row: what late binding is worth at 1.2 x capacity, against the consumer that one writes in an afternoon."""

from __future__ import annotations

import msgspec

from deploy.bench import computing, mix
from deploy.bench.harness import Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale

LOAD = 1.2
OFFER_S = 10.0
LOOP_S = 2.5


class LateBinding:
    """The row."""

    name = "late-binding"
    title = f"attainment at {LOAD:g} x capacity, deadlines {mix.TIMEOUT_MS_MIN}-{mix.TIMEOUT_MS_MAX} ms"
    once = False
    figures = (Figure(key="attainment", what="SLO attainment", unit="", limit=2.0, at_least=True, baseline="one consumer group, FIFO, no expiry"),)

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        seconds = scale.seconds(OFFER_S)
        async with harness.pinned():
            say("closed loop")
            capacity_rps = await computing.closed_loop(harness, LOOP_S, run)
            schedule = mix.schedule(capacity_rps * LOAD, seconds, run)
            say(f"FIFO consumer at {capacity_rps * LOAD:.0f} requests/s")
            async with computing.fifo(harness) as (crew, opened):
                early = await computing.offer(opened, crew, schedule)
            say(f"Headrace at {capacity_rps * LOAD:.0f} requests/s")
            async with computing.stack(harness, harness.folder) as (crew, opened):
                late = await computing.offer(opened, crew, schedule)
        details: dict[str, object] = {"capacity_rps": capacity_rps, "fifo": msgspec.to_builtins(early), "ours": msgspec.to_builtins(late)}
        return Measured({"attainment": Sample(late.attainment, early.attainment)}, details)

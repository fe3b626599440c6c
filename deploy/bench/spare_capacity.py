"""Row: at half the capacity every request is answered in time, and the room is used for accuracy."""

from __future__ import annotations

import msgspec

from deploy.bench import computing, mix
from deploy.bench.harness import Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale

LOAD = 0.5
OFFER_S = 9.0
LOOP_S = 2.5
GAIN_MIN = 0.5


class SpareCapacity:
    """The row. The gain is the part of the way from the accuracy asked for to the best variant's that the answers go."""

    name = "spare-capacity"
    title = f"at {LOAD:g} x capacity"
    once = False
    figures = (
        Figure(key="attainment", what="SLO attainment", unit="", limit=0.99, at_least=True, of_ratio=False),
        Figure(key="accuracy", what="effective accuracy", unit="", baseline="mean floor asked for"),
        Figure(key="gain", what="way from floors to best", unit="", limit=GAIN_MIN, at_least=True, of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        async with harness.pinned():
            say("closed loop")
            capacity_rps = await computing.closed_loop(harness, LOOP_S, run)
            say(f"{capacity_rps * LOAD:.0f} requests/s")
            async with computing.stack(harness, harness.folder) as (crew, opened):
                played = await computing.offer(opened, crew, mix.schedule(capacity_rps * LOAD, scale.seconds(OFFER_S), run))
        best = max(variant.accuracy for variant in mix.fashion_task().variants)
        gain = (played.accuracy_served - played.accuracy_asked) / (best - played.accuracy_asked)
        samples = {
            "attainment": Sample(played.attainment),
            "accuracy": Sample(played.accuracy_served, played.accuracy_asked),
            "gain": Sample(gain),
        }
        return Measured(samples, {"capacity_rps": capacity_rps, **msgspec.to_builtins(played)})

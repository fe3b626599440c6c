"""Row: goodput at 1.5 x and 3 x capacity, against what the same worker does in a closed loop without any broker."""

from __future__ import annotations

import msgspec

from deploy.bench import computing, mix
from deploy.bench.harness import Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale

LOADS = (1.5, 3.0)
OFFER_S = 12.0
LOOP_S = 2.5
SHARE_MIN = 0.5
BASELINE, MEAN = "closed loop, no broker", "mean of all floors"


def _figures() -> tuple[Figure, ...]:
    figures: list[Figure] = []
    for load in LOADS:
        figures.append(Figure(key=f"goodput-{load:g}", what=f"goodput at {load:g} x", unit="/s", limit=0.9, at_least=True, baseline=BASELINE))
        figures.append(
            Figure(
                key=f"share-{load:g}",
                what=f"least served floor at {load:g} x",
                unit="",
                limit=SHARE_MIN,
                at_least=True,
                baseline="mean of all floors",
            )
        )
    return tuple(figures)


class Overload:
    """The row. A floor's share is the part of its requests that is served, and the must says that none falls far behind the mean."""

    name = "overload"
    title = f"goodput under overload, floors {', '.join(f'{floor:g}' for floor, _ in mix.FLOORS)}, {mix.ROWS} images a request"
    once = False
    figures = _figures()

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        samples: dict[str, Sample] = {}
        details: dict[str, object] = {}
        async with harness.pinned(), computing.stack(harness, harness.folder) as (crew, opened):
            say("closed loop")
            before_rps = await computing.closed_loop(harness, LOOP_S, run)
            for load in LOADS:
                say(f"{before_rps * load:.0f} requests/s ({load:g} x)")
                played = await computing.offer(opened, crew, mix.schedule(before_rps * load, scale.seconds(OFFER_S), run))
                say("closed loop again")
                after_rps = await computing.closed_loop(harness, LOOP_S, run)
                samples[f"goodput-{load:g}"] = Sample(played.goodput_rps, (before_rps + after_rps) / 2)
                samples[f"share-{load:g}"] = Sample(min(played.served_by_floor.values()), played.attainment)
                details[f"{load:g}"] = {"closed_loop_rps": (before_rps, after_rps), **msgspec.to_builtins(played)}
                before_rps = after_rps
        return Measured(samples, details)

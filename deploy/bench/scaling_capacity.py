"""Row: how much two workers serve at 99 % attainment when accuracy may give way, against the most accurate variant alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from deploy.bench import scaling_prediction
from deploy.bench.harness import Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.scaling_load import Came, Step
from deploy.bench.scaling_models import FIRST, Ladder, prepared
from deploy.bench.scaling_parts import Parts, Simulated, reasons
from deploy.bench.scaling_stack import WORKERS, Stack, directed, scaled

OPTIMIZER, FIXED = "headrace", "static-accurate"
ATTAINMENT = 0.99
ACCURACY_PART = 0.85
"""Of the most accurate variant's: what is served below it counts as not served."""
GAIN = 2.5
START_FIXED, START_OURS = 0.6, 1.5
"""Where the search begins, as a part of what the processors would compute at the most accurate variant."""
STEP = 1.25
PROBES_MAX = 7
LEAD_S, PROBE_S = 3.0, 5.0
Probe = Callable[[float], Awaitable[Came]]


class Point(msgspec.Struct, frozen=True):
    """One point of the curve."""

    rate_rps: float
    attainment: float
    accuracy_served: float
    parts: Parts | None = None
    busy: float = 0.0

    def holds(self, accuracy_least: float) -> bool:
        return self.attainment >= ATTAINMENT and self.accuracy_served >= accuracy_least


class Curve(msgspec.Struct, frozen=True):
    """What was found."""

    capacity_rps: float
    """The highest rate that was served well."""
    accuracy: float
    """There."""
    points: tuple[Point, ...]

    @property
    def best(self) -> Point | None:
        """The point that is the capacity."""
        return next((point for point in self.points if point.rate_rps == self.capacity_rps), None)


def why(live: Curve, simulated: Curve) -> tuple[str, ...]:
    """Why one is not the other, as measured; empty where either has no point that held."""
    here, there = live.best, simulated.best
    if here is None or there is None or here.parts is None:
        return ()
    return reasons(here.parts, Simulated(there.rate_rps, there.busy))


async def search(probe: Probe, start_rps: float, accuracy_least: float, probes_max: int) -> Curve:
    """Up in steps while it holds, or down until it does; then once more between the last that held and the first that did not."""
    points: list[Point] = []

    async def at(rate_rps: float) -> bool:
        came = await probe(rate_rps)
        points.append(Point(rate_rps, came.attainment, came.accuracy_served, came.parts, came.busy))
        return points[-1].holds(accuracy_least)

    rate_rps = start_rps
    up = await at(rate_rps)
    while len(points) < probes_max - 1:
        rate_rps = rate_rps * STEP if up else rate_rps / STEP
        if await at(rate_rps) != up:
            # Held and missed are next to each other now.
            await at(rate_rps / STEP**0.5 if up else rate_rps * STEP**0.5)
            break
    return curve_of(points, accuracy_least)


def curve_of(points: Sequence[Point], accuracy_least: float) -> Curve:
    """Capacity 0 where no point held."""
    held = [point for point in points if point.holds(accuracy_least)]
    best = max(held, key=lambda point: point.rate_rps, default=Point(0.0, 0.0, 0.0))
    return Curve(best.rate_rps, best.accuracy_served, tuple(sorted(points, key=lambda point: point.rate_rps)))


def live(stack: Stack, probe_s: float, run: int) -> Probe:
    """Offers of the stack's own photos."""

    async def probe(rate_rps: float) -> Came:
        return await stack.play(stack.photos.offer([Step(LEAD_S + probe_s, {FIRST: rate_rps})], run, lead_s=LEAD_S))

    return probe


def virtual(ladder: Ladder, optimizer: str, probe_s: float, run: int) -> Probe:
    """The same in the simulator."""

    async def probe(rate_rps: float) -> Came:
        return await scaling_prediction.predicted(scaling_prediction.scenario(ladder, [Step(probe_s, {FIRST: rate_rps})], optimizer), run)

    return probe


class ScalingCapacity:
    """The row. The curve of either side is in the JSON."""

    name = "scaling-capacity"
    title = f"effective capacity of two workers at {ATTAINMENT:.0%} attainment"
    once = False
    figures = (
        Figure(key="capacity", what="effective capacity", unit="/s", limit=GAIN, at_least=True, baseline="the most accurate variant only"),
        Figure(
            key="accuracy",
            what="effective accuracy at that capacity",
            unit="",
            limit=ACCURACY_PART,
            at_least=True,
            baseline="the most accurate variant",
        ),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        ladder = await prepared(harness, say)
        best = ladder.accuracy(ladder.best)
        reckoned_rps = len(WORKERS) * 1000 / ladder.milliseconds(ladder.best)
        probe_s = float(round(scale.seconds(PROBE_S)))
        starts = {FIXED: reckoned_rps * START_FIXED, OPTIMIZER: reckoned_rps * START_OURS}
        say(f"only {ladder.best}")
        async with directed(harness, ladder, dict.fromkeys(WORKERS, (f"{FIRST}/{ladder.best}",))) as stack:
            fixed = await search(live(stack, probe_s, run), starts[FIXED], best * ACCURACY_PART, PROBES_MAX)
        say(f"optimizer {OPTIMIZER}")
        async with scaled(harness, ladder, OPTIMIZER) as stack:
            ours = await search(live(stack, probe_s, run), starts[OPTIMIZER], best * ACCURACY_PART, PROBES_MAX)
        say("the same, simulated")
        expected = {
            name: await search(virtual(ladder, name, probe_s, run), start_rps, best * ACCURACY_PART, PROBES_MAX) for name, start_rps in starts.items()
        }
        gain = expected[OPTIMIZER].capacity_rps / expected[FIXED].capacity_rps if expected[FIXED].capacity_rps else None
        samples = {
            "capacity": Sample(ours.capacity_rps, fixed.capacity_rps, gain),
            "accuracy": Sample(ours.accuracy, best, expected[OPTIMIZER].accuracy / best),
        }
        told = [
            f"{name}: {one.capacity_rps:.0f}/s live, {expected[name].capacity_rps:.0f}/s simulated: {reason}"
            for name, one in ((FIXED, fixed), (OPTIMIZER, ours))
            for reason in why(one, expected[name])
        ]
        details: dict[str, object] = {
            "why": told,
            "fixed": fixed,
            "ours": ours,
            "simulated": expected,
            "milliseconds": {n: ladder.milliseconds(n) for n in ladder.names},
        }
        return Measured(samples, msgspec.to_builtins(details))

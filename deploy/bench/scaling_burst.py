"""Row: a burst of three times the load for five seconds, against the most accurate variant alone and against adding workers alone."""

from __future__ import annotations

from deploy.bench import scaling_prediction
from deploy.bench.harness import Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.scaling_load import Came, Step
from deploy.bench.scaling_models import FIRST, Ladder, prepared
from deploy.bench.scaling_stack import WORKERS, directed, scaled

OPTIMIZER, FIXED, HORIZONTAL = "headrace", "static-accurate", "horizontal-only"
LOAD = 0.45
"""Before and after the burst, as a part of what the processors would compute at the most accurate variant."""
TIMES = 3.0
SETTLE_S, BEFORE_S, BURST_S, AFTER_S = 13.0, 4.0, 5.0, 4.0
"""Settling takes in one periodic plan."""


def steps(rate_rps: float) -> list[Step]:
    """The whole of it."""
    calm = {FIRST: rate_rps}
    return [Step(BEFORE_S, calm), Step(BURST_S, {FIRST: rate_rps * TIMES}), Step(AFTER_S, calm)]


class ScalingBurst:
    """The row. Violations are the part of all requests, before, in and after the burst, that was not completed in time."""

    name = "scaling-burst"
    title = f"{TIMES:g} x burst for {BURST_S:g} s"
    once = False
    figures = (
        Figure(key="fixed", what="violations", unit="", limit=1 / 5, baseline="the most accurate variant on both workers"),
        Figure(key="horizontal", what="violations ", unit="", limit=1 / 2, baseline=f"adding workers alone ({HORIZONTAL})"),
        Figure(key="accuracy", what="effective accuracy", unit="", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        ladder = await prepared(harness, say)
        rate_rps = LOAD * len(WORKERS) * 1000 / ladder.milliseconds(ladder.best)
        lived: dict[str, Came] = {}
        expected: dict[str, Came] = {}
        for name in (FIXED, HORIZONTAL, OPTIMIZER):
            say(f"{rate_rps:.0f} requests/s, then {TIMES:g} x: {name}")
            lived[name] = await _live(harness, ladder, name, rate_rps, run)
        for name in lived:
            say(f"the same, simulated: {name}")
            expected[name] = await scaling_prediction.predicted(scaling_prediction.scenario(ladder, steps(rate_rps), name), run)
        samples = {
            key: Sample(lived[OPTIMIZER].violations, lived[name].violations, _ratio(expected[OPTIMIZER], expected[name]))
            for key, name in (("fixed", FIXED), ("horizontal", HORIZONTAL))
        }
        samples["accuracy"] = Sample(lived[OPTIMIZER].accuracy_served, simulated=expected[OPTIMIZER].accuracy_served)
        shown = scaling_prediction.shown
        details = {name: {"live": shown(lived[name]), "simulated": shown(expected[name])} for name in lived}
        told = [f"{name}: {reason}" for name in lived for reason in scaling_prediction.reasons_of(lived[name], expected[name])]
        return Measured(samples, {"why": told, "rate_rps": rate_rps, **details})


async def _live(harness: Harness, ladder: Ladder, name: str, rate_rps: float, run: int) -> Came:
    """The fixed side needs no scaler: nothing is to be decided."""
    played = steps(rate_rps)
    opened = directed(harness, ladder, dict.fromkeys(WORKERS, (f"{FIRST}/{ladder.best}",))) if name == FIXED else scaled(harness, ladder, name)
    async with opened as stack:
        return await stack.play(stack.photos.offer([Step(SETTLE_S, played[0].rates_rps), *played], run, lead_s=SETTLE_S))


def _ratio(ours: Came, theirs: Came) -> float | None:
    return ours.violations / theirs.violations if theirs.violations else None

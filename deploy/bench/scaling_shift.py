"""Row: all demand moves from one endpoint to another within one second, and the workers are bound anew."""

from __future__ import annotations

import time

from deploy.bench import scaling_prediction
from deploy.bench.harness import Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.scaling_load import FLOOR, Came, Step, recovery_s
from deploy.bench.scaling_models import FIRST, SECOND, Ladder, prepared
from deploy.bench.scaling_prediction import reasons_of
from deploy.bench.scaling_stack import WORKERS, Stack, Watch, scaled
from schemas.telemetry import WorkerReport

OPTIMIZER = "headrace"
LOAD = 1.2
"""As a part of what the processors would compute at the most accurate variant: more than it can serve, less than the ladder can."""
TRICKLE_RPS = 4.0
SETTLE_S, BEFORE_S, AFTER_S = 13.0, 4.0, 16.0
"""Settling takes in one periodic plan."""
RECOVERED, RECOVERY_S_MAX, LEAST = 0.95, 10.0, 0.6
KNOWN_S_MAX = 60.0
"""What has not been measured by then stays unknown: variants are tried two at a time."""
MODELS_HELD = 5
"""So many of the ladder's variants fit into a worker's memory, of the fourteen of both tasks: what is hosted has to be chosen."""
MEGABYTE = 1 << 20


def steps(rate_rps: float, after_s: float) -> list[Step]:
    """The whole of it."""
    there = Step(BEFORE_S, {FIRST: rate_rps, SECOND: TRICKLE_RPS})
    return [there, Step(after_s, {FIRST: TRICKLE_RPS, SECOND: rate_rps})]


def figures_of(came: Came) -> tuple[float, float]:
    """(seconds from the shift until attainment stays above 95 %, least attainment of any second from the shift on)."""
    least = min((second.attainment for second in came.seconds if second.at_s >= BEFORE_S), default=0.0)
    return recovery_s(came.seconds, BEFORE_S, RECOVERED), least


async def _known(stack: Stack, watch: Watch, ladder: Ladder) -> None:
    """Under a trickle: until each variant of either task was measured, as on a cluster that has run for a while, and as the simulator knows them."""
    every = {f"{task}/{name}" for task in (FIRST, SECOND) for name in ladder.names if ladder.accuracy(name) >= FLOOR}
    calm = [Step(1.0, dict.fromkeys((FIRST, SECOND), TRICKLE_RPS))]
    deadline_s = time.monotonic() + KNOWN_S_MAX
    while time.monotonic() < deadline_s:
        reports = [report for report in watch.reports if isinstance(report, WorkerReport)]
        if every <= {key for report in reports for key, hosted in report.variants.items() if hosted.latency}:
            return
        await stack.play(stack.photos.offer(calm, seed=0))


class ScalingShift:
    """The row."""

    name = "scaling-shift"
    title = f"demand moves from {FIRST} to {SECOND} within one second"
    once = False
    figures = (
        Figure(key="recovery", what=f"attainment back above {RECOVERED:.0%} after", unit="s", limit=RECOVERY_S_MAX, of_ratio=False),
        Figure(key="least", what="least attainment of any second", unit="", limit=LEAST, at_least=True, of_ratio=False),
        Figure(key="accuracy", what="effective accuracy", unit="", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        ladder = await prepared(harness, say)
        rate_rps = LOAD * len(WORKERS) * 1000 / ladder.milliseconds(ladder.best)
        memory = MODELS_HELD * max(profile.memory_bytes for profile in ladder.profiles)
        played = steps(rate_rps, max(float(round(scale.seconds(AFTER_S))), RECOVERY_S_MAX + 2))
        async with scaled(harness, ladder, OPTIMIZER, memory_max=str(memory)) as stack, Watch(harness.log, stack.names) as watch:
            say("until the scaler knows every variant that may answer")
            await _known(stack, watch, ladder)
            say(f"{rate_rps:.0f} requests/s to {FIRST}")
            lead = Step(SETTLE_S, played[0].rates_rps)
            came = await stack.play(stack.photos.offer([lead, *played], run, lead_s=SETTLE_S))
        say("the same, simulated")
        expected = await scaling_prediction.predicted(scaling_prediction.scenario(ladder, played, OPTIMIZER, memory_bytes=memory), run)
        (recovery, least), (recovery_simulated, least_simulated) = figures_of(came), figures_of(expected)
        samples = {
            "recovery": Sample(recovery, simulated=recovery_simulated),
            "least": Sample(least, simulated=least_simulated),
            "accuracy": Sample(came.accuracy_served, simulated=expected.accuracy_served),
        }
        details: dict[str, object] = {
            "why": reasons_of(came, expected),
            "rate_rps": rate_rps,
            "memory_bytes": memory,
            "live": scaling_prediction.shown(came),
            "simulated": scaling_prediction.shown(expected),
        }
        return Measured(samples, details)

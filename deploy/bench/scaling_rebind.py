"""Row: a worker is bound anew again and again while it has more to do than it can: nothing fails, and the variants that stay are not kept waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from deploy.bench.harness import Harness
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.scaling_load import Step
from deploy.bench.scaling_models import FIRST, prepared
from deploy.bench.scaling_stack import Report, Stack, Watch, directed
from schemas.telemetry import WorkerReport
from schemas.terminal import FAILED, TerminalHead, decode_terminal_head

WORKER = "worker-1"
STAY, TURNS = ("lite0-224", "lite1-240"), ("lite2-260", "lite0-96")
"""Variants that stay, and those that take turns. The cheapest that the floor allows stays, and costs enough that Kafka is not the bottleneck."""
LOAD = 1.1
"""Of what the worker could compute at the cheapest that the floor allows: it always has work."""
TIMEOUTS_MS = (2_000,)
"""So long that what is computed is nearly always in time: an answer that comes late does not say when its batch ran, and would look like a pause."""
GRACE_S = max(TIMEOUTS_MS) / 1e3 + 1.5
LEAD_S, PLAYED_S = 4.0, 12.0
"""The lead is for Kafka, too: its first seconds cost it several times what later ones do."""
REST_S = 0.8
"""Between one rebind and the next."""


class Busy(NamedTuple):
    """The worker computed from here to there, Unix ms."""

    from_ms: float
    to_ms: float


class ScalingRebind:
    """The row. One worker alone, so that no other can hide what it does."""

    name = "scaling-rebind"
    title = f"rebinding a worker under load, {' and '.join(STAY)} stay"
    once = False
    figures = (
        Figure(key="failed", what="failed requests", unit="", limit=0.0, of_ratio=False),
        Figure(key="pause", what="longest pause of what stays", unit="ms", limit=1.0, baseline="longest batch"),
        Figure(key="between", what="longest pause between two rebinds", unit="ms", of_ratio=False),
        Figure(key="rebinds", what="rebinds", unit="", limit=2.0, at_least=True, of_ratio=False),
        Figure(key="took", what="from plan to ready, longest", unit="ms", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        ladder = await prepared(harness, say)
        rate_rps = LOAD * 1000 / ladder.milliseconds(STAY[0])
        seconds = scale.seconds(PLAYED_S)
        say(f"{rate_rps:.0f} requests/s")
        async with directed(harness, ladder, {WORKER: _hosted(TURNS[0])}) as stack, Watch(harness.log, stack.names) as watch:
            offer = stack.photos.offer([Step(LEAD_S + seconds, {FIRST: rate_rps})], run, lead_s=LEAD_S, timeouts_ms=TIMEOUTS_MS)
            until_s = time.monotonic() + LEAD_S + seconds - 1.0
            rebinding = asyncio.create_task(_rebind(stack, watch, until_s))
            came = await stack.play(offer, grace_s=GRACE_S)
            spans = await rebinding
            terminals = [decode_terminal_head(answer.value) for answer in stack.opened.answers.values()]
        computed = busy(terminals)
        pause_ms, batch_ms = longest_pause(computed, spans)
        samples = {
            "failed": Sample(float(sum(terminal.outcome == FAILED for terminal in terminals) + came.outcomes.get("unanswered", 0))),
            "pause": Sample(pause_ms, batch_ms),
            "between": Sample(longest_pause(computed, between(spans))[0]),
            "rebinds": Sample(float(len(spans))),
            "took": Sample(max((span.to_ms - span.from_ms for span in spans), default=0.0)),
        }
        return Measured(samples, {"rate_rps": rate_rps, "outcomes": came.outcomes, "variants": came.variants, "rebinds": spans})


def _hosted(turn: str) -> tuple[str, ...]:
    return tuple(f"{FIRST}/{name}" for name in (*STAY, turn))


async def _rebind(stack: Stack, watch: Watch, until_s: float) -> list[Busy]:
    """Swap the variant that takes its turn, until it is time; returns from when to when each rebind went on."""
    await asyncio.sleep(LEAD_S)
    spans: list[Busy] = []
    while time.monotonic() < until_s:
        wanted = _hosted(TURNS[(len(spans) + 1) % len(TURNS)])
        from_ms = await stack.direct({WORKER: wanted})
        epoch = stack.epoch

        def bound(report: Report, epoch: int = epoch, wanted: Sequence[str] = wanted) -> bool:
            if not isinstance(report, WorkerReport) or report.epoch < epoch:
                return False
            return all((shown := report.variants.get(key)) is not None and shown.state == "ready" for key in wanted)

        spans.append(Busy(from_ms, float((await watch.until(bound, f"{WORKER} bound anew")).at_ms)))
        await asyncio.sleep(REST_S)
    return spans


def busy(terminals: Sequence[TerminalHead]) -> list[Busy]:
    """When the worker computed, by what its answers say; answers of one batch say the same. Late ones say nothing."""
    found = {
        Busy(started_ms, started_ms + step.computed_ms)
        for terminal in terminals
        for step in terminal.path[-1:]
        if (started_ms := terminal.received_ms + step.queued_ms)
    }
    return sorted(found)


def between(spans: Sequence[Busy]) -> list[Busy]:
    """From the end of each rebind to the beginning of the next: what pauses there is not a rebind's doing."""
    return [Busy(one.to_ms, following.from_ms) for one, following in pairwise(spans)]


def longest_pause(computed: Sequence[Busy], spans: Sequence[Busy]) -> tuple[float, float]:
    """(longest time without computing that touches a span, longest batch), ms. Without a batch behind or before it a pause has no end."""
    pause_ms = 0.0
    batch_ms = max((one.to_ms - one.from_ms for one in computed), default=0.0)
    ended_ms: float | None = None
    for one in computed:
        if ended_ms is not None and any(ended_ms < span.to_ms and one.from_ms > span.from_ms for span in spans):
            pause_ms = max(pause_ms, one.from_ms - ended_ms)
        ended_ms = one.to_ms if ended_ms is None else max(ended_ms, one.to_ms)
    return pause_ms, batch_ms

"""Row: what a shadow at 100 % takes from the requests that it copies: their p99 while capacity is there, their attainment in overload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import numpy as np

from broker.log import Log
from deploy.bench import computing, mix
from deploy.bench.computing import Played
from deploy.bench.exchange import Answered, Exchange
from deploy.bench.graph_catalog import stages
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.prefilled import shards_of, written
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.catalog_checks import stage_topics
from schemas.catalog import EndpointSpec, catalog_key, encode_catalog
from schemas.graph import GraphSpec, Node, ShadowNode, StageNode
from schemas.names import Names

COPY = "cnn32-int8"
"""The variant that the copies are computed with."""
ALONE, SHADOWED = "bench-alone", "bench-shadowed"
SPARE, OVER = 0.4, 1.5
SPARE_S, OVER_S = 8.0, 8.0
"""Of each offer: each side has two of each load."""
LOOP_S = 2.5
KNOWN_S_MAX = 15.0


def endpoints() -> tuple[EndpointSpec, EndpointSpec]:
    """The same stage without and with a shadow."""
    primary: Node = StageNode(task=mix.TASK, inputs={"image": "request.image"})
    copy: Node = StageNode(task=mix.TASK, inputs={"image": "request.image"}, variants=(COPY,))
    alone = GraphSpec(nodes={"primary": primary}, output="primary")
    watched = ShadowNode(primary="primary", copy="copy", share=1.0)
    shadowed = GraphSpec(nodes={"primary": primary, "copy": copy, "watched": watched}, output="watched")
    return EndpointSpec(name=ALONE, graph=alone, revision=1), EndpointSpec(name=SHADOWED, graph=shadowed, revision=1)


@asynccontextmanager
async def stack(harness: Harness) -> AsyncGenerator[tuple[Crew, Exchange]]:
    """The stack that computes, with both endpoints, each known to the dispatcher."""
    tasks = {mix.TASK: mix.fashion_task()}
    specs = endpoints()
    async with computing.stack(harness, harness.folder) as (crew, opened):
        topics = [(spec, stage_topics(spec.graph, tasks)) for spec in specs if spec.graph is not None]
        async with stages(harness.log, crew.names, topics), written(harness.log) as writer:
            await writer.write(crew.names.catalog, 0, [(catalog_key(spec), encode_catalog(spec), ()) for spec in specs])
            for spec in specs:
                await _known(opened, crew, spec.name)
            yield crew, opened


async def _known(opened: Exchange, crew: Crew, endpoint: str) -> None:
    """Ask until it is answered."""
    deadline_s = time.monotonic() + KNOWN_S_MAX
    while time.monotonic() < deadline_s:
        if (await computing.offer(opened, crew, mix.schedule(20.0, 0.5, seed=0, endpoint=endpoint))).attainment > 0.0:
            return
    raise BenchmarkFailed(f"endpoint {endpoint} answered nothing within {KNOWN_S_MAX:.0f} s")


class Side:
    """What one endpoint came to at one load."""

    def __init__(self) -> None:
        self.waits_ms: list[float] = []
        self.completed = self.offered = self.copied = 0
        self.played: list[Played] = []

    def note(self, waits_ms: Sequence[float], played: Played, copied: int) -> None:
        """Add an offer."""
        self.waits_ms += waits_ms
        self.completed += played.completed
        self.offered += played.offered
        self.copied += copied
        self.played.append(played)

    @property
    def p99_ms(self) -> float:
        return float(np.quantile(self.waits_ms, 0.99))

    @property
    def attainment(self) -> float:
        return self.completed / self.offered

    def details(self) -> dict[str, object]:
        return {"p50_ms": float(np.median(self.waits_ms)), "p99_ms": self.p99_ms, "copied": self.copied, "offers": msgspec.to_builtins(self.played)}


def waits_ms(schedule: mix.Schedule, answers: Mapping[bytes, Answered], sent_s: Mapping[bytes, float]) -> list[float]:
    """From the sending of each request to the reading of its answer, where there is one."""
    return [(answers[key].seen_s - sent_s[key]) * 1000 for key in schedule.asks if key in answers]


async def _copied(log: Log, names: Names) -> int:
    """Shadows' answers so far."""
    reader = log.reader("bench-taps")
    await reader.start()
    try:
        return sum((await reader.end_offsets(shards_of(names.tap_responses))).values())
    finally:
        await reader.close()


class GraphShadow:
    """The row."""

    name = "graph-shadow"
    title = f"a shadow of every request, computed with {COPY}, {mix.ROWS} images a request"
    once = False
    figures = (
        Figure(key="p99", what=f"p99 of the primary at {SPARE:g} x capacity", unit="ms", limit=1.1, baseline="the same requests without a shadow"),
        Figure(key="lost", what=f"attainment lost at {OVER:g} x capacity", unit="points", limit=1.0, of_ratio=False),
        Figure(key="copied", what=f"shadows' answers a request at {SPARE:g} x", unit="", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        async with harness.pinned(), stack(harness) as (crew, opened):
            sides: dict[tuple[float, str], Side] = {}
            capacities_rps: dict[str, float] = {}
            for load, full_s in ((SPARE, SPARE_S), (OVER, OVER_S)):
                say("closed loop")
                capacity_rps = capacities_rps[f"{load:g}"] = await computing.closed_loop(harness, LOOP_S, run)
                # There and back again, each time with the same requests: a machine that drifts favours neither.
                for part, endpoint in enumerate((ALONE, SHADOWED, SHADOWED, ALONE)):
                    say(f"{endpoint} at {load:g} x capacity, part {part + 1} of 4")
                    schedule = mix.schedule(capacity_rps * load, scale.seconds(full_s), 2 * run + part // 2, endpoint=endpoint)
                    before = await _copied(harness.log, crew.names)
                    played = await computing.offer(opened, crew, schedule)
                    await asyncio.sleep(mix.TIMEOUT_MS_MAX / 1000)  # until no copy of this offer is computed any more
                    side = sides.setdefault((load, endpoint), Side())
                    side.note(waits_ms(schedule, opened.answers, opened.sent_s), played, await _copied(harness.log, crew.names) - before)
        spare, over = sides[SPARE, SHADOWED], sides[OVER, SHADOWED]
        samples = {
            "p99": Sample(spare.p99_ms, sides[SPARE, ALONE].p99_ms),
            "lost": Sample((sides[OVER, ALONE].attainment - over.attainment) * 100),
            "copied": Sample(spare.copied / spare.offered),
        }
        details: dict[str, object] = {f"{endpoint} at {load:g}": side.details() for (load, endpoint), side in sides.items()}
        return Measured(samples, {"capacities_rps": capacities_rps, **details})

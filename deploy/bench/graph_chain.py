"""Row: what each further stage of a chain adds to a request's latency when computing costs nothing, against a further bare relay in the same run.

A further stage that is handed over is two hops through Kafka (stage topic -> dispatcher, work topic -> worker); a further relay is one. One
worker hosts all stages here, so that it may go on by itself; the same with every stage handed over, as between workers, is shown beside it.
"""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np

from deploy.bench.added_latency import RATE_RPS, dispatched, relayed
from deploy.bench.graph_catalog import chain, graph_crew, stages
from deploy.bench.harness import Harness
from deploy.bench.prefilled import PLAIN
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale

SHORT, LONG = 1, 4
"""Stages."""
FEW, MANY = 2, 5
"""Relays."""
HOPS = 2
"""Of a stage: to the worker, and back to the dispatcher."""
COUNT = 1_000
"""Of each part of a run: each of the five has two."""


async def bare(harness: Harness, count: int, relays: int) -> list[float]:
    """So many relays, one behind the other: latencies in ms."""
    between = [f"hop-{at}" for at in range(1, relays)]
    async with harness.crew() as crew, stages(harness.log, crew.names, [(PLAIN, between)]):
        names = crew.names
        topics = [names.requests, *(names.stage(PLAIN.name, hop) for hop in between), names.responses]
        return await relayed(harness, crew, topics, count)


async def ours(harness: Harness, count: int, length: int, *, fuse: bool = True) -> list[float]:
    """Dispatcher and worker, on a chain of so many stages: latencies in ms."""
    endpoint = chain(length, fuse=fuse)
    async with graph_crew(harness, endpoint) as crew:
        return await dispatched(harness, crew, count, endpoint)


class Latencies(msgspec.Struct, frozen=True):
    """Milliseconds of one side."""

    p50: float
    p99: float


def latencies(waits_ms: list[float]) -> Latencies:
    """Quantiles of what was measured."""
    p50, p99 = np.quantile(waits_ms, (0.5, 0.99))
    return Latencies(float(p50), float(p99))


def further(short_ms: float, long_ms: float, more: int) -> float:
    """What each of so many more steps costs."""
    return (long_ms - short_ms) / more


class GraphChain:
    """The row."""

    name = "graph-chain"
    title = f"a chain of {LONG} stages against a graph of {SHORT}, null backend, {RATE_RPS:g} requests/s"
    once = False
    figures = (
        Figure(key="stage", what="each further stage, p50", unit="ms", limit=1.5, baseline="each further bare aiokafka relay, one hop"),
        Figure(key="handed", what="each further stage that is handed over, p50", unit="ms", baseline="two further bare aiokafka relays: its hops"),
        Figure(key="short-p99", what=f"p99, graph of {SHORT} stage", unit="ms", of_ratio=False),
        Figure(key="long-p99", what=f"p99, chain of {LONG} stages", unit="ms", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        count = scale.count(COUNT)
        graphs: dict[int, list[float]] = {SHORT: [], LONG: []}
        handed: dict[int, list[float]] = {LONG: []}
        relayed: dict[int, list[float]] = {FEW: [], MANY: []}
        # There and back again: a Kafka that gets faster while its code is compiled favours neither.
        apart = partial(ours, fuse=False)
        parts = [(ours, graphs, LONG), (bare, relayed, MANY), (apart, handed, LONG), (bare, relayed, FEW), (ours, graphs, SHORT)]
        for at, (side, found, length) in enumerate((*parts, *reversed(parts))):
            say(f"{length} {'relays' if side is bare else 'stages'}, {count} requests, part {at + 1} of {2 * len(parts)}")
            found[length].extend(await side(harness, count, length))
        short, long = latencies(graphs[SHORT]), latencies(graphs[LONG])
        few, many = latencies(relayed[FEW]), latencies(relayed[MANY])
        stage_ms = further(short.p50, long.p50, LONG - SHORT)
        handed_ms = further(short.p50, latencies(handed[LONG]).p50, LONG - SHORT)
        hop_ms = further(few.p50, many.p50, MANY - FEW)
        samples = {
            "stage": Sample(stage_ms, hop_ms),
            "handed": Sample(handed_ms, HOPS * hop_ms),
            "short-p99": Sample(short.p99),
            "long-p99": Sample(long.p99),
        }
        details = {f"{SHORT} stage": short, f"{LONG} stages": long, f"{FEW} relays": few, f"{MANY} relays": many}
        return Measured(samples, {"requests": 2 * count, **{name: msgspec.to_builtins(value) for name, value in details.items()}})

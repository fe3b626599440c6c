"""Row: what a stage of a chain costs the dispatcher in processor time, against a request of one stage without a graph."""

from __future__ import annotations

from deploy.bench.dispatcher_cpu import TIMEOUT_MS, dispatcher_us
from deploy.bench.dispatcher_cpu import ours as single_stage
from deploy.bench.graph_catalog import chain, graph_crew
from deploy.bench.harness import Harness
from deploy.bench.prefilled import fill, json_body, publish_control, start_null_worker
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from schemas.names import SHARDS

STAGES = 4
COUNT = 10_000
"""Requests on a graph; the single stage gets as many as the chain has stages."""


async def ours(harness: Harness, count: int, length: int) -> float:
    """Microseconds of processor time a request, on a chain of so many stages."""
    endpoint = chain(length)
    async with graph_crew(harness, endpoint) as crew:
        names = crew.names
        await publish_control(harness.log, names, lanes=SHARDS, endpoint=endpoint)
        await fill(harness.log, names.requests, (json_body(TIMEOUT_MS) for _ in range(count)))
        await start_null_worker(harness, crew, lanes=SHARDS)
        return await dispatcher_us(harness, crew, count)


class GraphCpu:
    """The row."""

    name = "graph-cpu"
    title = f"dispatcher CPU per stage: a chain of {STAGES} stages, 1 kB JSON bodies, 8 shards, requests pre-filled"
    once = False
    figures = (
        Figure(
            key="stage", what="CPU per stage of a chain", unit="us", limit=1.1, baseline="a request of one stage without a graph, in the same run"
        ),
        Figure(
            key="graph", what="CPU per request, graph of one stage", unit="us", baseline="a request of one stage without a graph, in the same run"
        ),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        count = scale.count(COUNT)
        say(f"one stage without a graph, {STAGES * count} requests")
        single_us = await single_stage(harness, STAGES * count)
        say(f"{STAGES} stages, {count} requests")
        chain_us = await ours(harness, count, STAGES)
        say(f"graph of one stage, {STAGES * count} requests")
        graph_us = await ours(harness, STAGES * count, 1)
        return Measured({"stage": Sample(chain_us / STAGES, single_us), "graph": Sample(graph_us, single_us)}, {"requests": count, "stages": STAGES})

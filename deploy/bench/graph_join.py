"""Row: what a row of a for_each costs the dispatcher in processor time, from the request that has the rows to the answer that joins them."""

from __future__ import annotations

import msgspec
import numpy as np

from deploy.bench.dispatcher_cpu import TIMEOUT_MS, dispatcher_us
from deploy.bench.dispatcher_cpu import ours as single_stage
from deploy.bench.graph_catalog import LINES, ROWS_MAX, for_each, graph_crew
from deploy.bench.harness import Harness
from deploy.bench.prefilled import ENDPOINT, FLOOR, fill, publish_control, start_null_worker
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from schemas.names import SHARDS
from schemas.tensors import encode_tensor
from schemas.terminal import MSGPACK_TYPE
from schemas.work import CONTENT_TYPE_HEADER

COUNT = 40
"""Requests of ROWS_MAX rows."""
COLUMNS = 16
LIMIT_US = 60.0


def rows_body() -> bytes:
    """A request of ROWS_MAX rows of 64 bytes, as msgpack."""
    lines = np.zeros((ROWS_MAX, COLUMNS), np.float32)
    fields = {"endpoint": ENDPOINT, "min_accuracy": FLOOR, "timeout_ms": TIMEOUT_MS, "inputs": [encode_tensor(LINES, lines, raw=True)]}
    return msgspec.msgpack.encode(fields)


async def ours(harness: Harness, count: int) -> float:
    """Microseconds of processor time a row."""
    endpoint = for_each()
    async with graph_crew(harness, endpoint) as crew:
        names = crew.names
        await publish_control(harness.log, names, lanes=SHARDS, endpoint=endpoint)
        body = rows_body()
        headers = ((CONTENT_TYPE_HEADER, MSGPACK_TYPE.encode()),)
        await fill(harness.log, names.requests, (body for _ in range(count)), headers=headers, batch_records=max(count // SHARDS, 1))
        await start_null_worker(harness, crew, lanes=SHARDS)
        return await dispatcher_us(harness, crew, count) / ROWS_MAX


class GraphJoin:
    """The row."""

    name = "graph-join"
    title = f"for_each over {ROWS_MAX:,} rows of {4 * COLUMNS} bytes, joined, 8 shards, requests pre-filled"
    once = False
    figures = (
        Figure(
            key="row",
            what="dispatcher CPU per row",
            unit="us",
            limit=LIMIT_US,
            of_ratio=False,
            baseline="a request of one stage without a graph, in the same run",
        ),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        count = scale.count(COUNT)
        say(f"one stage without a graph, {count * ROWS_MAX} requests")
        single_us = await single_stage(harness, count * ROWS_MAX)
        say(f"{count} requests of {ROWS_MAX} rows")
        return Measured({"row": Sample(await ours(harness, count), single_us)}, {"requests": count, "rows": ROWS_MAX})

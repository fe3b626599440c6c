"""Row: what Headrace adds to a request's latency when computing costs nothing, against two bare relays over the same three topics."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from deploy.bench.baselines import Relay
from deploy.bench.exchange import Exchange, Timed, exchange
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.null_backend import NullBackendSettings
from deploy.bench.prefilled import PLAIN, json_body, publish_control
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from schemas.catalog import EndpointSpec

RATE_RPS = 200.0
COUNT = 1_500
"""Of each quarter of a run: each side has two."""
TIMEOUT_MS = 10_000
WARM_UP = 200
WORKER = "null-0"


def schedule(count: int) -> list[Timed]:
    """Evenly spaced requests with ids of their own."""
    body = json_body(TIMEOUT_MS)
    return [Timed(at / RATE_RPS, (uuid.uuid4().hex.encode(), body, ())) for at in range(count)]


async def measure(opened: Exchange, crew: Crew, count: int) -> list[float]:
    """Play warm-up and measurement: from the sending of each request to the reading of its answer, in ms. Every request must be answered."""
    await opened.play(schedule(WARM_UP), crew.check)
    requests = schedule(count)
    before = len(opened.answers)
    await opened.play(requests, crew.check)
    await opened.until_answered(before + count, 5.0)
    keys = [request.message[0] or b"" for request in requests]
    waits_ms = [(opened.answers[key].seen_s - opened.sent_s[key]) * 1000 for key in keys if key in opened.answers]
    if len(waits_ms) < count:
        raise BenchmarkFailed(f"only {len(waits_ms)} of {count} requests were answered")
    return waits_ms


async def relayed(harness: Harness, crew: Crew, topics: Sequence[str], count: int) -> list[float]:
    """Bare relays from each topic to the next, the first and the last being {p}.requests and {p}.responses: latencies in ms."""
    for at, (source, target) in enumerate(pairwise(topics)):
        relay = Relay(kafka=harness.kafka, source=source, target=target, ready=crew.path(f"relay-{at}.ready"))
        await crew.program("deploy.bench.baselines", f"relay-{at}", relay)
    async with exchange(harness.log, crew.names) as opened:
        return await measure(opened, crew, count)


async def dispatched(harness: Harness, crew: Crew, count: int, endpoint: EndpointSpec = PLAIN) -> list[float]:
    """Dispatcher and a worker with a null backend: latencies in ms."""
    names = crew.names
    await publish_control(harness.log, names, lanes=1, endpoint=endpoint)
    settings = NullBackendSettings(kafka=harness.kafka, prefix=names.prefix, name=WORKER, folder=crew.path("models"), ready=crew.path("worker.ready"))
    await crew.program("deploy.bench.null_backend", WORKER, settings)
    await crew.role("dispatcher", "dispatcher")
    async with exchange(harness.log, names) as opened:
        return await measure(opened, crew, count)


async def bare(harness: Harness, count: int) -> list[float]:
    """Two relays."""
    async with harness.crew() as crew:
        names = crew.names
        return await relayed(harness, crew, (names.requests, names.work("cpu"), names.responses), count)


async def ours(harness: Harness, count: int) -> list[float]:
    """Dispatcher and worker."""
    async with harness.crew() as crew:
        return await dispatched(harness, crew, count)


class AddedLatency:
    """The row."""

    name = "added-latency"
    title = f"requests -> work -> responses with a null backend, {RATE_RPS:g} requests/s"
    once = False
    figures = (
        Figure(key="p50", what="p50", unit="ms", limit=1.5, baseline="two bare aiokafka relays over the same topics"),
        Figure(key="p99", what="p99", unit="ms", limit=1.5, baseline="two bare aiokafka relays over the same topics"),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        count = scale.count(COUNT)
        relayed_ms: list[float] = []
        answered_ms: list[float] = []
        # Ours, theirs, theirs, ours: a Kafka that gets faster while its code is compiled favours neither.
        for part, side in enumerate((ours, bare, bare, ours)):
            say(f"{'two relays' if side is bare else 'dispatcher and worker'}, {count} requests, quarter {part + 1}")
            (relayed_ms if side is bare else answered_ms).extend(await side(harness, count))
        found, baseline = np.quantile(answered_ms, (0.5, 0.99)), np.quantile(relayed_ms, (0.5, 0.99))
        samples = {key: Sample(float(found[at]), float(baseline[at])) for at, key in enumerate(("p50", "p99"))}
        return Measured(samples, {"requests": 2 * count})

"""Row: how soon dispatcher and workers act on a new plan."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from broker.log import Message, Writer
from broker.published import Request, publish
from deploy.bench.exchange import Answered
from deploy.bench.harness import Harness
from deploy.bench.prefilled import written
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from deploy.bench.scaling_load import IMAGE
from deploy.bench.scaling_models import FIRST, prepared
from deploy.bench.scaling_stack import WORKERS, Report, Stack, Watch, directed
from schemas.limits import Limits
from schemas.names import SHARDS
from schemas.telemetry import WorkerReport
from schemas.terminal import decode_terminal_head

EPOCHS = 150
EVERY_S = 0.15
PROBE_S = 0.004
"""Between requests that are refused at once: their answers carry the epoch that the dispatcher acts on."""
GRACE_S = 1.0
MUST_MS = 100.0
NEVER_MS = 10_000.0
"""Stands for an epoch that nobody acted on."""
HOSTED = ("lite0-96", "lite0-128-int8")


class ScalingEpochs:
    """The row. The dispatcher's figure includes half the time between probes, and the hop of the answer does not count."""

    name = "scaling-epochs"
    title = "from the writing of a plan until it is acted on"
    once = False
    figures = (
        Figure(key="dispatcher", what="dispatcher, p99", unit="ms", limit=MUST_MS, of_ratio=False),
        Figure(key="workers", what="workers, p99", unit="ms", limit=MUST_MS, of_ratio=False),
        Figure(key="median", what="all, median", unit="ms", of_ratio=False),
    )

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        ladder = await prepared(harness, say)
        count = scale.count(EPOCHS)
        hosted = dict.fromkeys(WORKERS, tuple(f"{FIRST}/{name}" for name in HOSTED))
        async with directed(harness, ladder, hosted) as stack, Watch(harness.log, stack.names) as watch, written(harness.log) as writer:
            stack.opened.answers.clear()
            probing = asyncio.create_task(_probe(stack, writer))
            try:
                say(f"{count} plans")
                began_ms: dict[int, float] = {}
                for _ in range(count):
                    at_ms = await stack.direct(hosted)
                    began_ms[stack.epoch] = at_ms
                    await asyncio.sleep(EVERY_S)
                await asyncio.sleep(GRACE_S)
            finally:
                probing.cancel()
                with suppress(asyncio.CancelledError):
                    await probing
            dispatcher = delays_ms(began_ms, told_by_answers(stack.opened.answers.values()))
            workers = [delay for worker in WORKERS for delay in delays_ms(began_ms, told_by_reports(watch.reports, worker))]
        samples = {
            "dispatcher": Sample(float(np.quantile(dispatcher, 0.99))),
            "workers": Sample(float(np.quantile(workers, 0.99))),
            "median": Sample(float(np.median([*dispatcher, *workers]))),
        }
        return Measured(samples, {"epochs": count, "dispatcher_ms": sorted(dispatcher)[-5:], "workers_ms": sorted(workers)[-5:]})


def told_by_answers(answers: Iterable[Answered]) -> list[tuple[float, int]]:
    """(Unix ms, epoch) of the dispatcher, in order."""
    heads = [decode_terminal_head(answer.value) for answer in answers]
    return sorted((float(head.finished_ms), head.epoch) for head in heads)


def told_by_reports(reports: Iterable[Report], worker: str) -> list[tuple[float, int]]:
    """(Unix ms, epoch) of one worker, in order."""
    return sorted((float(report.at_ms), report.epoch) for report in reports if isinstance(report, WorkerReport) and report.worker == worker)


def delays_ms(began_ms: Mapping[int, float], told: Sequence[tuple[float, int]]) -> list[float]:
    """Of each epoch: until the first that said it, or a later one; NEVER_MS where nobody did."""
    delays: list[float] = []
    for epoch, at_ms in began_ms.items():
        first_ms = min((said_ms for said_ms, said in told if said >= epoch), default=at_ms + NEVER_MS)
        delays.append(max(first_ms - at_ms, 0.0))
    return delays


async def _probe(stack: Stack, writer: Writer) -> None:
    """For ever: requests whose floor no variant meets."""
    image = np.zeros((1, 1, 1), np.uint8)
    body = publish(Request(endpoint=FIRST, inputs={IMAGE: image}, min_accuracy=1.0, timeout_ms=1_000), "msgpack", Limits()).message
    began_s = time.monotonic()
    for number in itertools.count(1):
        message: Message = (uuid.uuid4().hex.encode(), body[1], body[2])
        await writer.write(stack.names.requests, number % SHARDS, [message])
        await asyncio.sleep(max(began_s + number * PROBE_S - time.monotonic(), 0.0))

"""Row: what a request costs the dispatcher in processor time, against a bare process with the same input and output."""

from __future__ import annotations

import asyncio
import time

import psutil

from broker.log import Reader, TopicPartition
from deploy.bench.baselines import DispatcherIo
from deploy.bench.baselines import NullWorker as BareWorker
from deploy.bench.harness import BenchmarkFailed, Crew, Harness
from deploy.bench.prefilled import fill, json_body, outcomes, publish_control, start_null_worker, until_written
from deploy.bench.rows import Figure, Measured, Sample, Say, Scale
from schemas.names import SHARDS
from schemas.terminal import COMPLETED

COUNT = 50_000
TIMEOUT_MS = 600_000
RUN_S_MAX = 60.0
SAMPLE_S = 0.005
BEFORE_FIRST_S = 0.03
"""The first order is written this much after the first request was read, at most."""
AFTER_LAST_S = 0.3


class CpuMeter:
    """Samples a process's user and system time, so that what it had used at any moment can be told afterwards."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._samples: list[tuple[float, float]] = []
        self._sampling = asyncio.create_task(self._sample())

    async def _sample(self) -> None:
        while True:
            times = self._process.cpu_times()
            self._samples.append((time.time(), times.user + times.system))
            await asyncio.sleep(SAMPLE_S)

    def spent_s(self, begin_s: float, end_s: float) -> float:
        """Processor seconds between two moments (Unix time)."""
        before = [used for at, used in self._samples if at <= begin_s] or [self._samples[0][1]]
        until = [used for at, used in self._samples if at <= end_s]
        return until[-1] - before[-1]

    def close(self) -> None:
        self._sampling.cancel()


async def bare(harness: Harness, count: int) -> float:
    """Microseconds of processor time a request, of the bare process."""
    async with harness.crew() as crew:
        names = crew.names
        await fill(harness.log, names.requests, (json_body(TIMEOUT_MS) for _ in range(count)))
        peer = BareWorker(kafka=harness.kafka, work=names.work("cpu"), responses=names.responses, shards=SHARDS, ready=crew.path("bare-worker.ready"))
        await crew.program("deploy.bench.baselines", "bare-worker", peer)
        measured = DispatcherIo(
            kafka=harness.kafka,
            requests=names.requests,
            work=names.work("cpu"),
            responses=names.responses,
            shards=SHARDS,
            count=count,
            ready=crew.path("bare.ready"),
            result=crew.path("bare.json"),
        )
        await crew.program("deploy.bench.baselines", "bare-dispatcher", measured)
        result = await crew.result(measured.result, RUN_S_MAX)
        return result["cpu_s"] / count * 1e6


async def ours(harness: Harness, count: int) -> float:
    """The same of the dispatcher."""
    async with harness.crew() as crew:
        names = crew.names
        await publish_control(harness.log, names, lanes=SHARDS)
        await fill(harness.log, names.requests, (json_body(TIMEOUT_MS) for _ in range(count)))
        await start_null_worker(harness, crew, lanes=SHARDS)
        return await dispatcher_us(harness, crew, count)


async def dispatcher_us(harness: Harness, crew: Crew, count: int) -> float:
    """Start a dispatcher on a topic of so many requests: microseconds of its processor time a request, from the first order to the last answer."""
    names = crew.names
    reader = harness.log.reader("bench")
    await reader.start()
    pid = await crew.role("dispatcher", "dispatcher", ready_when="running")
    meter = CpuMeter(pid)
    try:
        await until_written(reader, names.responses, count, RUN_S_MAX, crew.check)
        end_s = time.time()
        await asyncio.sleep(AFTER_LAST_S)
        begin_s = await _first_s(reader, [TopicPartition(names.work("cpu"), lane) for lane in range(SHARDS)]) - BEFORE_FIRST_S
        spent_s = meter.spent_s(begin_s, end_s + 0.1)
    finally:
        meter.close()
        await reader.close()
    found = await outcomes(harness.log, names.responses, count, RUN_S_MAX)
    if found[COMPLETED] < count:
        raise BenchmarkFailed(f"not every request was computed: {dict(found)}")
    return spent_s / count * 1e6


async def _first_s(reader: Reader, partitions: list[TopicPartition]) -> float:
    """When the first record of these partitions was written (Unix time, the log's clock)."""
    first_s: list[float] = []
    for partition in partitions:
        await reader.assign({partition: "earliest"})
        records = (await reader.read(timeout_ms=5_000, records_max=1)).get(partition, ())
        first_s.extend(record.timestamp / 1000 for record in records)
    return min(first_s)


class DispatcherCpu:
    """The row."""

    name = "dispatcher-cpu"
    title = "dispatcher CPU per request: 1 kB JSON bodies, 8 shards, requests pre-filled"
    once = False
    figures = (Figure(key="cpu", what="CPU per request", unit="us", limit=2.0, baseline="bare aiokafka, same records in and out"),)

    async def measure(self, harness: Harness, scale: Scale, run: int, say: Say) -> Measured:
        count = scale.count(COUNT)
        say(f"bare process, {count} requests")
        baseline_us = await bare(harness, count)
        say(f"dispatcher, {count} requests")
        return Measured({"cpu": Sample(await ours(harness, count), baseline_us)}, {"requests": count})

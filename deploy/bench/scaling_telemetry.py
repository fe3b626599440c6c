"""Telemetry of workers that do not exist: each says once a second what a real one would, and hosts at once what the plan binds it to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from broker.log import Log, Message, TopicPartition
from schemas.names import Names
from schemas.plan import Binding, Plan, decode_plan
from schemas.profile import Latency
from schemas.telemetry import DispatcherReport, EndpointCounts, HostedVariant, WorkerReport, encode_telemetry

REPORT_S = 1.0
SLICES = 50
"""A second's reports are spread over it, as those of real workers are: written all at once, they would be read all at once."""
MEMORY_BYTES_MAX = 8 << 30
BATCH_SIZE_MAX = 8
CREDITS = 32
INCARNATION = 1
CLASSES = ("cpu", "gpu", "vpu")
"""Workers take turns with them."""
DISPATCHER = "dispatcher"


class Simulated:
    """Makes one second's records after the other."""

    def __init__(self, workers: int, latency: Mapping[str, Mapping[int, Latency]], demand_rps: Mapping[str, float], floor: float) -> None:
        """`latency`: by variant key and rows; `demand_rps`: by endpoint."""
        self._names = [f"worker-{number:04d}" for number in range(workers)]
        self._latency, self._demand_rps, self._floor = latency, demand_rps, floor
        self.plan = Plan()
        self._seconds = 0

    def records(self, now_ms: int) -> list[Message]:
        """Of one more second: a report of every worker, and the dispatcher's."""
        self._seconds += 1
        bindings = {binding.worker: binding for binding in self.plan.bindings}
        said = [self._worker(number, bindings.get(name), now_ms) for number, name in enumerate(self._names)]
        messages: list[Message] = [(report.worker.encode(), encode_telemetry(report), ()) for report in said]
        return [*messages, (DISPATCHER.encode(), encode_telemetry(self._dispatcher(now_ms)), ())]

    def _worker(self, number: int, binding: Binding | None, now_ms: int) -> WorkerReport:
        hosted = {key: self._hosted(key) for key in (() if binding is None else binding.variants) if key in self._latency}
        return WorkerReport(
            worker=self._names[number],
            incarnation=INCARNATION,
            accelerator=CLASSES[number % len(CLASSES)],
            device="simulated",
            host="simulated",
            at_ms=now_ms,
            lane=None if binding is None else binding.lane,
            state="ready" if hosted else "starting",
            epoch=self.plan.epoch,
            credits=CREDITS,
            batch_size_max=BATCH_SIZE_MAX,
            variants=hosted,
            memory_bytes_max=MEMORY_BYTES_MAX,
        )

    def _hosted(self, key: str) -> HostedVariant:
        return HostedVariant(state="ready", latency=dict(self._latency[key]), load_ms=200.0, memory_bytes=32 << 20, computed_rows=self._seconds * 20)

    def _dispatcher(self, now_ms: int) -> DispatcherReport:
        counts = {
            endpoint: EndpointCounts(
                arrived={f"{self._floor:g}": (count := round(rate_rps * self._seconds))}, rows=count, ended=count, timeout_ms=300.0
            )
            for endpoint, rate_rps in self._demand_rps.items()
        }
        return DispatcherReport(
            dispatcher=DISPATCHER, incarnation=INCARNATION, at_ms=now_ms, shards=tuple(range(8)), epoch=self.plan.epoch, endpoints=counts
        )


async def generate(log: Log, names: Names, simulated: Simulated) -> None:
    """For ever; follows the plan."""
    writer, reader = log.writer("bench-telemetry"), log.reader("bench-plans")
    await writer.start()
    await reader.start()
    await reader.assign({TopicPartition(names.plan, 0): "earliest"})
    due_s = time.monotonic()
    try:
        while True:
            for records in (await reader.read(timeout_ms=1, records_max=100)).values():
                plans = [decode_plan(record.value) for record in records if record.value]
                simulated.plan = max([simulated.plan, *plans], key=lambda plan: plan.epoch)
            records = simulated.records(int(time.time() * 1000))
            for at in range(SLICES):
                if records[at::SLICES]:
                    await writer.write(names.telemetry, 0, records[at::SLICES])
                due_s += REPORT_S / SLICES
                await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
    finally:
        await reader.close()
        await writer.close()

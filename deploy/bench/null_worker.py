"""A worker that computes nothing: it speaks plan, telemetry and work orders as a real one does, and answers with small records.

`python -m deploy.bench.null_worker SETTINGS`, a process of its own, so that a row measures the dispatcher alone.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import msgspec
import uvloop

from broker.kafka import KafkaLog
from broker.log import Message, TopicPartition, Writer
from deploy.bench.harness import announce
from schemas.names import Names
from schemas.profile import Latency
from schemas.stage import STAGE_VERSION, StageRecord, TensorHead, encode_stage
from schemas.telemetry import HostedVariant, WorkerReport, encode_telemetry
from schemas.terminal import COMPLETED, JSON_TYPE, TERMINAL_VERSION, PathStep, Terminal, encode_terminal
from schemas.work import CONTENT_TYPE_HEADER, WORK_HEADER, WorkOrder, decode_order
from workers.policy.batcher import QueuedOrder
from workers.policy.fusion import next_order

READ_MS = 200
RECORDS_MAX = 1000
REPORT_S = 0.5
HEADERS = ((CONTENT_TYPE_HEADER, JSON_TYPE.encode()),)
OUTPUT = "probs"
COLUMNS = 10
ROW = bytes(4 * COLUMNS)
"""What a row of a stage comes to: ten FP32 zeros."""


class NullWorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`profile_ms` is what it says that a row costs; `spends_ms` is what it really spends on each, computing: None, it never answers."""

    kafka: str
    prefix: str
    variant: str
    lanes: int = 1
    """So many workers, `null-0` and on, in this one process, each with the lane of its number."""
    profile_ms: float = 0.02
    spends_ms: float | None = 0.0
    credits: int = 256
    fuses: bool = True
    """Goes on with the next stages of an order where it may, as a real worker does; else every stage is handed over, as between workers apart."""
    ready: str


def worker_name(lane: int) -> str:
    """Of the null worker on this lane."""
    return f"null-{lane}"


class NullWorker:
    """Serves its lanes."""

    def __init__(self, settings: NullWorkerSettings) -> None:
        self._settings = settings
        self._names = Names(settings.prefix)
        self._incarnation = int(time.time() * 1000)
        self._waiting = 0
        """Orders that have no answer yet, of all lanes."""

    async def run(self) -> None:
        """Until it is ended."""
        log = KafkaLog(self._settings.kafka)
        writer = log.writer("null-worker")
        await writer.start()
        reader = log.reader("null-worker")
        await reader.start()
        topic = self._names.work("cpu")
        await reader.assign({TopicPartition(topic, lane): "latest" for lane in range(self._settings.lanes)})
        reporting = asyncio.create_task(self._report(writer))
        announce(self._settings.ready)
        try:
            while True:
                for records in (await reader.read(timeout_ms=READ_MS, records_max=RECORDS_MAX)).values():
                    orders = [(record.key or b"", decode_order(dict(record.headers)[WORK_HEADER])) for record in records]
                    self._waiting += len(orders)
                    if self._settings.spends_ms is not None:
                        await self._answer(writer, orders)
        finally:
            reporting.cancel()
            await log.close()

    async def _answer(self, writer: Writer, orders: list[tuple[bytes, WorkOrder]]) -> None:
        waiting: dict[tuple[str, int], list[Message]] = {}
        for key, first in orders:
            order: WorkOrder | None = first
            while order is not None:
                await self._spend()
                topic, shard = order.part.topic if order.part is not None and order.part.topic else self._names.responses, order.shard
                message, order = self.answered(key, order)
                if self._settings.spends_ms:
                    await writer.write(topic, shard, [message])
                else:
                    waiting.setdefault((topic, shard), []).append(message)
            self._waiting -= 1
        for (topic, shard), messages in waiting.items():
            asyncio.ensure_future(writer.write(topic, shard, messages))  # noqa: RUF006 - the writer holds it

    async def _spend(self) -> None:
        spends_ms = self._settings.spends_ms
        if spends_ms:
            await asyncio.sleep(0)
            until_s = time.perf_counter() + spends_ms / 1000
            while time.perf_counter() < until_s:
                pass

    def answered(self, key: bytes, order: WorkOrder) -> tuple[Message, WorkOrder | None]:
        """The request's answer, or that of a stage of its graph, and the order that is gone on with."""
        part = order.part
        if part is None or not part.topic:
            return terminal_message(key, order), None
        size = len(ROW) * order.rows
        heads = tuple(TensorHead(name, "FP32", (order.rows, COLUMNS), size) for name in part.outputs or (OUTPUT,))
        following = None
        if part.then and self._settings.fuses:
            queued = QueuedOrder("", key.decode(), order, b"", "", 0, 0)
            following = next_order(queued, heads, b"", step_of(order), int(time.time() * 1000))
        return stage_message(key, order, heads, fused=following is not None), following.order if following is not None else None

    async def _report(self, writer: Writer) -> None:
        settings = self._settings
        latency = {rows: Latency(rows * settings.profile_ms, rows * settings.profile_ms, 100) for rows in (1, 32)}
        hosted = {settings.variant: HostedVariant(state="ready", latency=latency)}
        while True:
            reports = [self._said(lane, hosted) for lane in range(settings.lanes)]
            await writer.write(self._names.telemetry, 0, [(report.worker.encode(), encode_telemetry(report), ()) for report in reports])
            await asyncio.sleep(REPORT_S)

    def _said(self, lane: int, hosted: dict[str, HostedVariant]) -> WorkerReport:
        return WorkerReport(
            worker=worker_name(lane),
            incarnation=self._incarnation,
            accelerator="cpu",
            device="none",
            host="bench",
            at_ms=int(time.time() * 1000),
            lane=lane,
            state="ready",
            epoch=1,
            credits=self._settings.credits,
            variants=hosted,
            waiting_rows=self._waiting,
        )


def stage_message(key: bytes, order: WorkOrder, heads: tuple[TensorHead, ...], *, fused: bool) -> Message:
    """A stage's outputs, as a real worker writes them: zeros under each name that is asked for."""
    part = order.part
    assert part is not None
    record = StageRecord(
        STAGE_VERSION,
        order.endpoint,
        part.revision,
        part.instance,
        order.attempt,
        order.variant,
        order.accuracy,
        "cpu",
        "none",
        queued_ms=0.0,
        computed_ms=0.0,
        batch_size=order.rows,
        finished_ms=int(time.time() * 1000),
        tensors=heads,
        worker=order.worker,
        fused=fused,
    )
    return key, ROW * order.rows * len(heads), ((WORK_HEADER, encode_stage(record)),)


def step_of(order: WorkOrder) -> PathStep:
    """What the path of an answer says of a stage."""
    return PathStep(
        stage=order.stage,
        variant=order.variant,
        accuracy=order.accuracy,
        accelerator="cpu",
        device="none",
        queued_ms=0.0,
        computed_ms=0.0,
        batch_size=order.rows,
    )


def terminal_message(key: bytes, order: WorkOrder) -> Message:
    """A request's answer, without outputs."""
    step, part = step_of(order), order.part
    terminal = Terminal(
        id=key.decode(),
        outcome=COMPLETED,
        endpoint=order.endpoint,
        path=[*part.path, step] if part is not None else [step],
        accuracy=order.accuracy if part is None else part.path_accuracy,
        received_ms=order.received_ms,
        finished_ms=int(time.time() * 1000),
        deadline_ms=order.deadline_ms,
        attempts=order.attempt,
        epoch=order.epoch,
        version=TERMINAL_VERSION,
    )
    return key, encode_terminal(terminal, JSON_TYPE), HEADERS


async def _main(settings: NullWorkerSettings) -> None:
    running = asyncio.ensure_future(NullWorker(settings).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()


if __name__ == "__main__":
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=NullWorkerSettings)))

"""The dispatcher process: Kafka in, the policy's step, Kafka out; timers, commits, telemetry and an orderly end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog
from prometheus_client import CollectorRegistry

from broker.arrivals import open_request, read_entry, read_stage
from broker.control import Control
from broker.dispatcher_metrics import DispatcherMetrics
from broker.log import Ack, Log, Message, Record
from broker.messages import answer_message, tap_message, work_message
from broker.outbox import RETRY_S, Outbox
from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Commands, Entry
from broker.policy.report import dispatcher_report
from broker.policy.settings import DispatcherSettings
from broker.recording import RecordedPolicy, Recording
from broker.shards import Records, Shards
from schemas.catalog import Catalog
from schemas.errors import LogUnavailable, Unattributable
from schemas.limits import Limits
from schemas.names import Names
from schemas.telemetry import encode_telemetry
from schemas.terminal import COMPLETED, EXPIRED, outcome_of

logger = structlog.get_logger()
READ_TIMEOUT_MS = 200
REQUESTS_PER_STEP = 250
"""Small enough that a step takes a few milliseconds: expiry waits for it."""
REPORT_INTERVAL_S = 1.0
TICK_INTERVAL_S = 0.05
DRAIN_S = 5.0
STALLED_S = 60.0
AWAY_S = 5.0
"""The report of each second has not been acknowledged for this long: requests are not answered here now."""


class Dispatcher:
    """A role. Owns the requests of its shards from arrival until their terminal record is in the log."""

    def __init__(
        self,
        log: Log,
        names: Names,
        *,
        name: str,
        registry: CollectorRegistry,
        settings: DispatcherSettings | None = None,
        limits: Limits | None = None,
        now_ms: Callable[[], float] = lambda: time.time() * 1000.0,
        recording: Recording | None = None,
    ) -> None:
        """`recording`: where to write down what is decided."""
        self._log, self._names, self._name, self._now_ms = log, names, name, now_ms
        self._limits = limits or Limits()
        settings = settings or DispatcherSettings()
        self._policy = (
            DispatcherPolicy(name, settings, self._limits, open_request)
            if recording is None
            else RecordedPolicy(name, settings, self._limits, open_request, recording)
        )
        self._metrics = DispatcherMetrics(registry)
        self._writer = log.writer(name)
        self._outbox = Outbox(self._writer, names)
        self._shards = Shards(log, names, name, step=self._step, commit=self._commit)
        self._control = Control(
            log,
            names,
            name,
            on_catalog=self._on_catalog,
            on_plan=lambda plan: self._step(ev.PlanObserved(plan)),
            on_telemetry=lambda record: self._step(ev.TelemetryObserved(record)),
        )
        self._incarnation = int(now_ms())
        self._stopping = asyncio.Event()
        self._draining = False
        self._stages_due = asyncio.Event()
        self._started = False
        self._progress_s = self._told_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_ms = 0.0
        self._pending: set[asyncio.Task[None]] = set()

    # -- the role

    async def run(self) -> None:
        """Serve until stopped; raises what cannot be recovered from."""
        await self._log.create_topics(self._names.topics())
        await asyncio.gather(self._writer.start(), self._control.start(self._now_ms() - 2_500), self._shards.start())
        # Not before the catalog is known: without it every request would be one for an unknown endpoint.
        await self._shards.join()
        self._started = True
        self._told_s = time.monotonic()
        logger.info("dispatcher started", name=self._name)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(loop)
                    for loop in (
                        self._read_requests(),
                        self._read_responses(),
                        self._read_control(),
                        self._follow_stages(),
                        self._report(),
                        self._tick(),
                    )
                ]
                await self._stopping.wait()
                await self._drain()
                for task in running:
                    task.cancel()
        finally:
            await self._close()

    def stop(self) -> None:
        self._stopping.set()

    def unready(self) -> str:
        if not self._started:
            return "starting"
        if self._stopping.is_set():
            return "draining"
        silent_s = time.monotonic() - self._told_s
        if silent_s > AWAY_S:
            return f"the log has acknowledged nothing for {silent_s:.0f} s"
        if not self._policy.fleet.catalog.endpoints:
            return "no endpoint in the catalog: run `headrace apply`"
        if not self._policy.fleet.ready_lanes:
            return "no live worker is ready"
        return ""

    def unhealthy(self) -> str:
        silent_s = time.monotonic() - self._progress_s
        return f"nothing was read for {silent_s:.0f} s" if self._started and silent_s > STALLED_S else ""

    # -- loops

    async def _read_requests(self) -> None:
        while True:
            if self._draining:
                await asyncio.sleep(TICK_INTERVAL_S)
                continue
            read = await self._reading(self._shards.read_requests(READ_TIMEOUT_MS, REQUESTS_PER_STEP))
            if read:
                self._step(ev.RecordsRead([self._arrived(partition.partition, records) for partition, records in read.items()]))
            await asyncio.sleep(0)

    async def _read_responses(self) -> None:
        while True:
            read = await self._reading(self._shards.read_responses(READ_TIMEOUT_MS, self._limits.read_records_max))
            if read:
                responses = self._names.responses
                self._step(
                    ev.RecordsRead(
                        [
                            self._answered(partition.partition, records)
                            if partition.topic == responses
                            else self._stages_done(partition.partition, records)
                            for partition, records in read.items()
                        ]
                    )
                )
            for shard in await self._shards.recovered():
                self._step(ev.ShardRecovered(shard))
            await asyncio.sleep(0)

    def _answered(self, shard: int, records: Sequence[Record]) -> ev.Answered:
        found = [(record.key, said) for record in records if record.key and (said := outcome_of(record.value, record.key)) is not None]
        self._metrics.strays.inc(len(records) - len(found))
        return ev.Answered(shard, [key for key, _ in found], frozenset(key for key, said in found if said != COMPLETED))

    def _stages_done(self, shard: int, records: Sequence[Record]) -> ev.StagesDone:
        done = [(record.key, found, record.value or b"") for record in records if record.key and (found := read_stage(record)) is not None]
        self._metrics.strays.inc(len(records) - len(done))
        return ev.StagesDone(shard, done)

    async def _reading(self, read: Awaitable[Records]) -> Records:
        try:
            records = await read
        except LogUnavailable as error:
            logger.warning("the log does not answer", error=str(error))
            await asyncio.sleep(RETRY_S)
            return {}
        self._progress_s = time.monotonic()
        return records

    async def _read_control(self) -> None:
        while True:
            try:
                await self._control.read(timeout_ms=READ_TIMEOUT_MS)
            except LogUnavailable as error:
                logger.warning("the log does not answer", error=str(error))
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(0)

    async def _tick(self) -> None:
        while True:
            self._step(ev.Ticked())
            await asyncio.sleep(TICK_INTERVAL_S)

    async def _report(self) -> None:
        while True:
            self._metrics.observe(self._policy)
            self._announce(tuple(self._policy.shards))
            await self._commit()
            await asyncio.sleep(REPORT_INTERVAL_S)

    # -- steps

    def _arrived(self, shard: int, records: Sequence[Record]) -> ev.Arrived:
        entries: list[Entry] = []
        burying: list[int] = []
        for record in records:
            try:
                entries.append(read_entry(record, self._limits))
            except Unattributable as error:
                burying.append(record.offset)
                self._spawn(self._bury(record, str(error)))
        self._metrics.arrived.inc(len(records))
        return ev.Arrived(shard, entries, burying)

    def _step(self, event: ev.Event) -> None:
        now_ms = self._now_ms()
        commands = self._policy.step(event, now_ms)
        if commands.sends:
            self._send(commands)
        if commands.answers:
            self._answer(commands, now_ms)
        if commands.taps:
            epoch = self._policy.fleet.plan.epoch
            for tap in commands.taps:
                self._spawn(self._outbox.tap(tap.entry.shard, tap_message(tap, epoch, now_ms, self._names)))
        for letter in commands.dead_letters:
            # The record is taken now: an answer that comes meanwhile lets go of it.
            entry = letter.entry.root or letter.entry
            record: Record = entry.payload  # pyright: ignore[reportAssignmentType]
            self._spawn(self._dead_letter(letter.entry, record, letter.reason))
        self._set_timer(now_ms)

    def _on_catalog(self, catalog: Catalog) -> None:
        self._step(ev.CatalogObserved(catalog))
        self._stages_due.set()

    async def _follow_stages(self) -> None:
        """Read the stage topics of the graphs that there are; those of graphs that still have requests stay until they have none."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self._stages_due.wait()
            self._stages_due.clear()
            fleet = self._policy.fleet
            topics = [self._names.stage_topic(endpoint, stage) for endpoint, stage in fleet.graphs.stage_topics | self._policy.graphs.stage_topics()]
            try:
                await self._log.create_topics(topics)
                await self._shards.follow([topic.name for topic in topics])
            except LogUnavailable as error:
                logger.warning("stage topics cannot be read yet", error=str(error))
                await asyncio.sleep(RETRY_S)
                self._stages_due.set()

    def _set_timer(self, now_ms: float) -> None:
        """Wake when the next deadline falls due; what is due is decided then, from state."""
        wake_ms = self._policy.next_wake_ms()
        if wake_ms is None or (self._timer is not None and self._wake_ms <= wake_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wake_ms = wake_ms
        self._timer = asyncio.get_running_loop().call_later(max(wake_ms - now_ms, 0.5) / 1000.0, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._step(ev.Ticked())

    def _send(self, commands: Commands) -> None:
        epoch = self._policy.fleet.plan.epoch
        variants: Counter[tuple[str, str]] = Counter()
        batches: dict[tuple[str, int], tuple[list[Message], list[Entry]]] = {}
        for send in commands.sends:
            messages, entries = batches.setdefault((send.accelerator, send.lane), ([], []))
            messages.append(work_message(send, epoch, self._names))
            entries.append(send.entry)
            variants[send.accelerator, send.variant] += 1
        for labels, count in variants.items():
            self._metrics.sent.labels(*labels).inc(count)
        for (accelerator, lane), (messages, entries) in batches.items():
            self._spawn(self._sent(self._writer.write(self._names.work(accelerator), lane, messages), entries))

    async def _sent(self, written: Awaitable[Ack], entries: list[Entry]) -> None:
        try:
            await written
        except LogUnavailable as error:
            self._metrics.retried.inc(len(entries))
            self._outbox.unacknowledged(error)
            self._step(ev.SendsFailed(entries))
        else:
            self._outbox.acknowledged()

    def _answer(self, commands: Commands, now_ms: float) -> None:
        epoch = self._policy.fleet.plan.epoch
        by_shard: dict[int, list[Message]] = {}
        for answer in commands.answers:
            by_shard.setdefault(answer.entry.shard, []).append(answer_message(answer, epoch, now_ms))
            self._metrics.answers.labels(answer.outcome, answer.code).inc()
            if answer.outcome == EXPIRED:
                self._metrics.expiry_lateness.observe((now_ms - answer.entry.deadline_ms) / 1000.0)
        for shard, messages in by_shard.items():
            self._spawn(self._outbox.write(self._names.responses, shard, messages))

    async def _dead_letter(self, entry: Entry, record: Record, reason: str) -> None:
        await self._outbox.bury(record, reason)
        self._metrics.dead_letters.labels("attempts").inc()
        self._step(ev.DeadLettered(entry))

    async def _bury(self, record: Record, reason: str) -> None:
        """A record without a usable id: nobody can be answered, so its bytes and the reason are kept."""
        await self._outbox.bury(record, reason)
        self._metrics.dead_letters.labels("unattributable").inc()
        self._step(ev.OffsetsFinished(record.partition, [record.offset]))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    # -- bookkeeping

    def _announce(self, shards: tuple[int, ...]) -> None:
        report = dispatcher_report(self._policy, self._name, self._incarnation, self._now_ms(), shards)
        self._spawn(self._tell(encode_telemetry(report)))

    async def _tell(self, value: bytes) -> None:
        try:
            await self._writer.write(self._names.telemetry, 0, [(self._name.encode(), value, [])])
        except LogUnavailable:
            # The next report is a second away; an old one is worth nothing.
            logger.info("telemetry was not acknowledged")
        else:
            self._told_s = time.monotonic()

    async def _commit(self) -> None:
        try:
            await self._shards.commit(self._policy.commits())
            await self._shards.commit_stages()
        except LogUnavailable as error:
            logger.warning("the commit was not acknowledged", error=str(error))

    async def _drain(self) -> None:
        """Take nothing new, let workers finish what they have; what still waits is the next owner's, uncommitted."""
        self._draining = True
        for _ in range(int(DRAIN_S / TICK_INTERVAL_S)):
            if not self._policy.live:
                break
            await asyncio.sleep(TICK_INTERVAL_S)
        logger.info("dispatcher drained", left=self._policy.live)

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._announce(())
        await self._commit()
        if self._pending:
            await asyncio.wait(self._pending, timeout=2.0)
        for task in list(self._pending):
            task.cancel()
        await self._shards.close()
        await self._control.close()
        await self._writer.close()

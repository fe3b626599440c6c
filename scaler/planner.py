"""The static planner: the leader of the telemetry partition keeps {p}.plan in line with workers and catalog."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Gauge

from broker.log import Committed, Log, TopicPartition
from scaler.policy.stage_topics import orphans
from scaler.policy.static_plan import static_bindings
from schemas.catalog import Catalog
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.plan import PLAN_KEY, Plan, decode_plan, encode_plan
from schemas.telemetry import DispatcherReport, WorkerReport, decode_telemetry

logger = structlog.get_logger()
TELEMETRY_BACK_MS = 2_500
FETCH_WAIT_MS = 100
FORGET_MS = 60_000
"""A worker keeps its place in the plan this long without a report: a restart must not cost a rebind."""
STALLED_S = 60.0
SWEEP_MS = 5_000


class StaticPlanner:
    """A role. Whoever holds the one partition of {p}.telemetry leads; the others wait."""

    def __init__(
        self,
        log: Log,
        names: Names,
        *,
        name: str,
        registry: CollectorRegistry,
        now_ms: Callable[[], float] = lambda: time.time() * 1000.0,
    ) -> None:
        self._log, self._names, self._name, self._now_ms = log, names, name, now_ms
        self._telemetry = TopicPartition(names.telemetry, 0)
        self._reader = log.reader(name, group=names.planners_group, fetch_wait_ms=FETCH_WAIT_MS)
        self._state = log.reader(f"{name}-state", fetch_wait_ms=FETCH_WAIT_MS)
        self._writer = log.writer(name)
        self._catalog = Catalog()
        self._plan = Plan()
        self._reports: dict[str, tuple[WorkerReport, float]] = {}
        self._running: dict[str, tuple[dict[str, int], float]] = {}
        """By dispatcher: requests on graphs, and when it said so."""
        self._swept_ms = 0.0
        self._gone: set[str] = set()
        self._lanes = 0
        self._leading = False
        self._leads_since_ms = 0.0
        self._started = False
        self._progress_s = time.monotonic()
        self._stopping = asyncio.Event()
        self._epoch = Gauge("headrace_planner_epoch", "Epoch of the newest plan", registry=registry)
        self._leader = Gauge("headrace_planner_leads", "1 where this process leads", registry=registry)

    async def run(self) -> None:
        """Serve until stopped."""
        await self._log.create_topics(self._names.topics())
        self._lanes = await self._log.partitions(self._names.work("cpu"))
        await self._writer.start()
        await self._state.start()
        catalog, plan = TopicPartition(self._names.catalog, 0), TopicPartition(self._names.plan, 0)
        await self._state.assign({catalog: "earliest", plan: "earliest"})
        await self._reader.start()
        await self._reader.subscribe([self._names.telemetry], assigned=self._assigned, revoked=self._revoked)
        self._started = True
        stopping = asyncio.create_task(self._stopping.wait())
        serving = asyncio.create_task(self._serve(await self._state.end_offsets([catalog, plan])))
        try:
            await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, serving):
                task.cancel()
            await self._reader.close()
            await self._state.close()
            await self._writer.close()
        if serving.done() and not serving.cancelled():
            serving.result()

    def stop(self) -> None:
        self._stopping.set()

    @property
    def leading(self) -> bool:
        """Whether this process decides."""
        return self._leading

    def unready(self) -> str:
        return "" if self._started else "starting"

    def unhealthy(self) -> str:
        silent_s = time.monotonic() - self._progress_s
        return f"no telemetry could be read for {silent_s:.0f} s" if self._started and silent_s > STALLED_S else ""

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._leading = self._telemetry in partitions
        self._leader.set(self._leading)
        if self._leading:
            now_ms = self._leads_since_ms = self._now_ms()
            await self._reader.seek(self._telemetry, await self._reader.offset_at(self._telemetry, int(now_ms - TELEMETRY_BACK_MS)))
            logger.info("this planner leads", name=self._name)

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._leading = False
        self._leader.set(0)

    async def _serve(self, ends: Mapping[TopicPartition, int]) -> None:
        while any([await self._state.position(partition) < end for partition, end in ends.items()]):
            await self._read_state()
        while True:
            try:
                await self._read_state()
                await self._read_telemetry()
                if self._leading:
                    await self._propose()
                    await self._sweep()
            except LogUnavailable as error:
                logger.warning("the log does not answer", error=str(error))
                await asyncio.sleep(0.5)

    async def _read_state(self) -> None:
        for partition, records in (await self._state.read(timeout_ms=20, records_max=500)).items():
            for record in records:
                try:
                    if partition.topic == self._names.catalog:
                        self._catalog.apply(record.key or b"", record.value)
                    elif record.value is not None:
                        plan = decode_plan(record.value)
                        self._plan = plan if plan.epoch >= self._plan.epoch else self._plan
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    logger.warning("control record skipped", topic=record.topic, offset=record.offset, error=str(error))

    async def _read_telemetry(self) -> None:
        now_ms = self._now_ms()
        read = await self._reader.read(timeout_ms=100, records_max=1000)
        self._progress_s = time.monotonic()
        for records in read.values():
            for record in records:
                try:
                    telemetry = decode_telemetry(record.value or b"")
                except msgspec.DecodeError as error:
                    logger.warning("telemetry skipped", offset=record.offset, error=str(error))
                    continue
                if isinstance(telemetry, WorkerReport):
                    self._reports[telemetry.worker] = (telemetry, now_ms)
                elif isinstance(telemetry, DispatcherReport):
                    self._running[telemetry.dispatcher] = (telemetry.running, now_ms)
        if read and self._leading:
            await self._reader.commit({self._telemetry: Committed(await self._reader.position(self._telemetry), "")})

    async def _sweep(self) -> None:
        """Delete the stage topics of graphs that are gone, when all that ran on them has ended."""
        now_ms = self._now_ms()
        if now_ms - max(self._swept_ms, self._leads_since_ms) < SWEEP_MS:
            return
        self._swept_ms = now_ms
        self._running = {name: (running, seen_ms) for name, (running, seen_ms) in self._running.items() if now_ms - seen_ms < FORGET_MS}
        existing = await self._log.topics(self._names.stages)
        gone = orphans(existing, self._catalog, [running for running, _ in self._running.values()], self._names) if existing else []
        # Twice in a row: an endpoint may be about to be applied, its topics made first.
        doomed = [topic for topic in gone if topic in self._gone]
        self._gone = set(gone)
        if doomed:
            await self._log.delete_topics(doomed)
            logger.info("stage topics deleted", topics=doomed)

    async def _propose(self) -> None:
        now_ms = self._now_ms()
        self._reports = {name: (report, seen_ms) for name, (report, seen_ms) in self._reports.items() if now_ms - seen_ms < FORGET_MS}
        bindings = static_bindings(
            (report for report, _ in self._reports.values()),
            self._catalog,
            self._plan,
            self._lanes,
            # A new leader has not heard of everybody yet.
            keep_unheard=now_ms - self._leads_since_ms < FORGET_MS,
        )
        if set(bindings) == set(self._plan.bindings):
            return
        plan = Plan(
            epoch=self._plan.epoch + 1,
            bindings=bindings,
            planner=self._name,
            reason="workers or catalog changed",
            made_ms=int(now_ms),
        )
        await self._writer.write(self._names.plan, 0, [(PLAN_KEY, encode_plan(plan), [])])
        self._plan = plan
        self._epoch.set(plan.epoch)
        logger.info("plan published", epoch=plan.epoch, workers=[binding.worker for binding in plan.bindings])

"""The live control loop: whoever leads measures, has an optimizer propose, publishes plans and carries their rebindings out, step by step."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog
from prometheus_client import CollectorRegistry

from broker.log import Log
from scaler.actuating import Actuating
from scaler.actuators.registry import create_actuator
from scaler.control_loop_deciding import Deciding
from scaler.control_loop_feed import Feed, Told
from scaler.control_loop_metrics import ControlMetrics
from scaler.control_loop_planning import MakeOptimizers, guarded_optimizers
from scaler.control_loop_settings import LoopSettings
from scaler.control_loop_state import ControlState
from scaler.control_loop_term import Term, read_past
from scaler.cost_keeping import CostKeeping
from scaler.lag import LagReader
from scaler.plan_journal import PlanJournal
from scaler.snapshot_recording import SnapshotRecording
from schemas.errors import HeadraceError, LogUnavailable
from schemas.names import Names
from schemas.telemetry import ScalerReport, encode_telemetry

logger = structlog.get_logger()
RETRY_S = 0.5
FLUSH_S = 1.0


class ScalerStalled(HeadraceError):
    """The control loop got nowhere for too long: its process should be started again."""

    code = "scaler_stalled"


class ControlLoop:
    """A role. Whoever holds the one partition of {p}.telemetry leads; the others wait. It knows no Kafka client and no Faust, only its seams."""

    def __init__(
        self,
        log: Log,
        names: Names,
        feed: Feed,
        *,
        name: str,
        registry: CollectorRegistry,
        settings: LoopSettings = LoopSettings(),  # noqa: B008 - frozen
        make_optimizers: MakeOptimizers = guarded_optimizers,
        now_ms: Callable[[], float] = lambda: time.time() * 1000.0,
    ) -> None:
        self._log, self._names, self._feed, self._name = log, names, feed, name
        self._settings, self._now_ms = settings, now_ms
        self._metrics = ControlMetrics(registry)
        self._writer = log.writer(name)
        self._state = ControlState(log, names, self._writer, name=name)
        self._lag = LagReader(log, names, f"{name}-lag")
        self._costs = CostKeeping(self._state, self._writer, names, name=name, interval_ms=settings.costs_interval_ms)
        self._journal = PlanJournal(self._writer, names)
        self._actuating = Actuating(create_actuator(settings.actuator, log, names, name), settings.actuating, now_ms)
        self._deciding = Deciding(
            self._state, self._journal, self._metrics, settings, make_optimizers, name=name, now_ms=now_ms, actuating=self._actuating
        )
        self._incarnation = int(now_ms())
        self._assigned = False
        self._term: Term | None = None
        self._waiting: deque[Told] = deque(maxlen=settings.waiting_records_max)
        self._told_s = self._lag_s = self._turned_s = time.monotonic()
        self._settle_until_s = 0.0
        self._lanes = 0
        self._lanes_counted: dict[str, tuple[int, float]] = {}
        """By class: how many, and when that was asked."""
        self._started = False
        self._stopping = asyncio.Event()

    # -- what the feed says

    def assigned(self) -> None:
        """See Listener."""
        self._assigned = True

    def revoked(self) -> None:
        """See Listener."""
        self._assigned = False
        self._resign()

    def told(self, records: Sequence[Told]) -> None:
        """See Listener."""
        self._told_s = time.monotonic()
        self._metrics.telemetry.inc(len(records))
        if self._term is None:
            self._waiting.extend(records)
        else:
            self._term.take(records, self._now_ms())

    # -- the role

    async def run(self) -> None:
        """Serve until stopped. Raises ScalerStalled where it leads and gets nowhere."""
        await self._log.create_topics(self._names.topics())
        self._lanes = await self._log.partitions(self._names.work("cpu"))
        await self._writer.start()
        try:
            await self._state.start()
            self._started = True
            await self._together([self._feed.run(self), self._serve(), self._journal.run(), self._follow_lag(), self._say(), self._actuating.run()])
        finally:
            self._resign()
            await self._deciding.close()
            await asyncio.wait({asyncio.ensure_future(self._journal.flush())}, timeout=FLUSH_S)
            await self._lag.close()
            await self._state.close()
            await self._writer.close()

    async def _together(self, parts: Sequence[Awaitable[None]]) -> None:
        """Until asked to stop, or until one of the parts ends: that is a defect."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        running = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._feed.stop()
            for task in (stopping, *running[1:]):
                task.cancel()
            # The feed leaves its group: whoever stands by leads at once.
            await asyncio.wait({running[0]}, timeout=8.0)
            running[0].cancel()
            ended = await asyncio.gather(*running, return_exceptions=True)
        for problem in ended:
            if isinstance(problem, Exception):
                raise problem

    def stop(self) -> None:
        self._stopping.set()

    def record_to(self, recording: SnapshotRecording) -> None:
        """Write down every planning from now on; a recording that ends does not end the scaler."""
        self._deciding.recording = recording

    @property
    def leading(self) -> bool:
        """Whether this process decides."""
        return self._term is not None

    def unready(self) -> str:
        return "" if self._started else "starting"

    def unhealthy(self) -> str:
        return self._stalled()

    # -- leading

    async def _serve(self) -> None:
        while True:
            self._notice_pause()
            try:
                await self._state.read(timeout_ms=self._settings.read_ms)
                if self._assigned and self._term is None and time.monotonic() >= self._settle_until_s:
                    await self._take_over()
                elif self._term is not None:
                    await self._lead(self._term)
            except LogUnavailable as error:
                logger.warning("the log does not answer", error=str(error))
                await asyncio.sleep(RETRY_S)
            reason = self._stalled()
            if reason:
                raise ScalerStalled(reason)

    def _notice_pause(self) -> None:
        """Whoever stood still for a while may have been replaced meanwhile: it waits until its group has told it, and begins anew."""
        now_s = time.monotonic()
        stood_s, self._turned_s = now_s - self._turned_s, now_s
        if stood_s > self._settings.paused_s and self._started:
            self._settle_until_s = now_s + self._settings.settle_s
            self._told_s = self._lag_s = now_s
            if self._term is not None:
                logger.warning("this scaler stood still: it leads again when it still may", stood_s=round(stood_s, 1))
            self._resign()

    async def _take_over(self) -> None:
        now_ms = self._now_ms()
        await self._state.catch_up()
        term = Term(self._settings, self._state, self._log, self._names, name=self._name, now_ms=now_ms, lanes=self._lanes)
        await read_past(term, self._log, self._names, self._settings, now_ms, f"{self._name}-past")
        if not self._assigned:
            return
        term.take(list(self._waiting), self._now_ms())
        self._waiting.clear()
        self._term = term
        self._told_s = self._lag_s = time.monotonic()
        self._metrics.leads.set(1)
        self._deciding.begin(term)
        logger.info("this scaler leads", name=self._name, epoch=self._state.plan.epoch, workers=len(term.workers))

    def _resign(self) -> None:
        if self._term is not None:
            logger.info("this scaler leads no more", name=self._name)
        self._term = None
        self._waiting.clear()
        self._metrics.leads.set(0)
        self._deciding.end()

    async def _lead(self, term: Term) -> None:
        await self._deciding.step(lambda: self._term is term and not self._stood_still())
        if self._term is term and self._deciding.overruled:
            # Somebody else has published meanwhile: what was decided here is void.
            self._resign()
        now_ms = self._now_ms()
        if self._term is term:
            await self._costs.keep(term, now_ms)
        if self._term is term and term.sweeper.due(now_ms):
            await term.sweeper.sweep(self._state.catalog, now_ms)
            await self._count_lanes(term)

    async def _count_lanes(self, term: Term) -> None:
        """Of one class at each look, as that asks for the metadata of all topics; what is not known of every class says nothing."""
        present, counted = sorted(term.accelerators), self._lanes_counted
        if not present:
            return
        due = min(present, key=lambda name: counted.get(name, (0, 0.0))[1])
        topic = self._names.work(due)
        counted[due] = (await self._log.partitions(topic), time.monotonic())
        self._lag.grown(topic, counted[due][0])
        if all(name in counted for name in present):
            self._lanes = min(counted[name][0] for name in present)
            term.lanes(self._lanes)

    def _stood_still(self) -> bool:
        return time.monotonic() - self._turned_s > self._settings.paused_s

    async def _follow_lag(self) -> None:
        while True:
            term = self._term
            if term is not None:
                try:
                    lags = await self._lag.read(term.accelerators)
                    term.observe_lag(lags)
                    self._metrics.lagged(lags)
                    self._lag_s = time.monotonic()
                except LogUnavailable as error:
                    logger.warning("lag cannot be read", error=str(error))
            await asyncio.sleep(self._settings.lag_s)

    async def _say(self) -> None:
        """Each second, while this process leads."""
        while True:
            term = self._term
            if term is not None:
                epoch = term.policy.plan.epoch
                report = ScalerReport(
                    scaler=self._name,
                    incarnation=self._incarnation,
                    at_ms=int(self._now_ms()),
                    leads_since_ms=int(term.since_ms),
                    epoch=epoch,
                    optimizer=self._deciding.optimizer,
                )
                try:
                    await self._writer.write(self._names.telemetry, 0, [(self._name.encode(), encode_telemetry(report), [])])
                except LogUnavailable as error:
                    logger.warning("nobody is told who leads", error=str(error))
            await asyncio.sleep(self._settings.say_s)

    def _stalled(self) -> str:
        """Why this process should be started again; empty where it gets on, and where it only stands by."""
        if self._term is None:
            return ""
        now_s, most_s = time.monotonic(), self._settings.silent_s_max
        if now_s - self._told_s > most_s:
            return f"no telemetry was read for {now_s - self._told_s:.0f} s, not even this scaler's own"
        if now_s - self._lag_s > most_s:
            return f"no lag could be read for {now_s - self._lag_s:.0f} s"
        return ""

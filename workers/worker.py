"""The worker process: reads its lane, keeps its device busy, and says on {p}.telemetry what it can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog
from prometheus_client import CollectorRegistry

from broker.log import Log, Record
from schemas.names import Names
from schemas.telemetry import Returned, WorkerReport
from schemas.terminal import OUTCOMES
from workers.answers import Answers
from workers.backend import Backend, Device, DrivesBoard
from workers.control import Directions
from workers.device_thread import DeviceThread
from workers.host import host_name
from workers.installation import Installation, Profiles, Resolve
from workers.lane import Lanes
from workers.metrics import WorkerMetrics
from workers.orders import read_order
from workers.policy.batcher import QueuedOrder
from workers.policy.device import wanted_by
from workers.policy.hosting import FAILED, READY
from workers.reporting import Reporting
from workers.serving import Serving
from workers.settings import WorkerSettings

logger = structlog.get_logger()
TICK_SECONDS = 0.1
DESCRIBE_SECONDS = 60.0
DRAIN_POLL_SECONDS = 0.005


class Worker:
    """A Role. One device, one lane at a time, any number of variants.

    Batches run on the one thread that may touch the device. Where the backend can (`loads_beside`), a variant is made ready on another one, and the
    others wait for one of its batches at most; else loading and warming have the device, and between two such steps a waiting batch has its turn.
    """

    def __init__(
        self, log: Log, names: Names, backend: Backend, resolve: Resolve, profiles: Profiles, settings: WorkerSettings,
        registry: CollectorRegistry, now_ms: Callable[[], float] = lambda: time.time() * 1e3,
    ) -> None:  # fmt: skip
        self._names, self._backend, self._settings, self._now_ms = names, backend, settings, now_ms
        self._log = log
        self._metrics = WorkerMetrics(registry)
        self._installation = Installation(backend, resolve, profiles, now_ms)
        self._thread = DeviceThread(settings.name)
        self._writer = log.writer(settings.name)
        self._directions = Directions(log, names, settings.name, self._directed)
        self._lanes = Lanes(log, names, settings, on_orders=self._take, on_assigned=self.changed)
        self._reporting = Reporting(self._writer, names, settings.name, broke=self.broke)
        self._answers = Answers(self._writer, names, settings, now_ms, self._go_on, on_delivered=self._delivered, on_lost=self.broke)
        self._serving: Serving | None = None
        self._device: Device | None = None
        self._incarnation = 0
        self._state = "starting"
        self._reported: tuple[object, ...] = ()
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._settled = False
        """The first plan's variants have all been loaded, or failed: from then on a rebind does not make it unready."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host = host_name()
        self._answered = {outcome: self._metrics.answers.labels(outcome) for outcome in OUTCOMES}

    async def run(self) -> None:
        """Raises DeviceUnavailable, Hung, LogUnavailable (at the start, or where answers cannot be delivered), or a defect."""
        self._loop = asyncio.get_running_loop()
        self._incarnation = int(self._now_ms())
        self._thread.start()
        followers: list[asyncio.Task[None]] = []
        try:
            await self._start()
            followers = [asyncio.create_task(follow) for follow in (self._directions.run(), self._lanes.run(), self._lanes.keep_committing())]
            for follower in followers:
                follower.add_done_callback(self._ended)
            await self._serve()
            if self._error is None:
                await self._drain()
        finally:
            await self._close(followers)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stopping = True
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._wake.set)

    def unready(self) -> str:
        if self._settled and self._state == "ready":
            return ""
        if self._stopping or self._serving is None:
            return "the worker stops" if self._stopping else "the worker starts"
        if self._lanes.lane is None:
            return f"no plan binds worker {self._settings.name} to a lane"
        hosting = self._serving.hosting
        if not hosting.visible() and hosting.settled:
            return ""  # the plan gives it nothing to host: it has nothing to wait for
        if not self._settled and not hosting.settled:
            return "variants are being loaded"
        failed = [f"{variant}: {shown.reason}" for variant, shown in self._serving.hosting.visible().items() if shown.state == FAILED]
        return "no variant is ready" + (f" ({'; '.join(failed)})" if failed else "")

    def unhealthy(self) -> str:
        return "" if self._error is None else str(self._error)

    # Told by the parts.

    def changed(self) -> None:
        """Report at once where dispatchers should act on it."""
        serving = self._serving
        if serving is None:
            return
        if self._state in ("starting", "ready"):
            ready = not serving.away and self._lanes.lane is not None and any(hosted.state == READY for hosted in serving.hosting.visible().values())
            self._state = "ready" if ready else "starting"
        states = tuple((variant, hosted.state, hosted.reason) for variant, hosted in serving.hosting.visible().items())
        self._settled |= serving.hosting.settled
        now = (self._state, self._lanes.lane, serving.hosting.epoch, states, serving.away)
        if now != self._reported:
            self._reported = now
            self._report()

    def returned(self, orders: Sequence[QueuedOrder], cause: str, reason: str) -> None:
        """Hand orders back unstarted."""
        serving = self._serving
        assert serving is not None
        for queued in orders:
            serving.batcher.finish(queued)
            self._lanes.finish(queued.lane, queued.offset)
        self._hand_back([queued.id for queued in orders], cause, reason)

    def broke(self, error: BaseException) -> None:
        """End with this error; the first one counts."""
        if self._error is None:
            self._error = error
            self._wake.set()

    def _ended(self, follower: asyncio.Task[None]) -> None:
        if not follower.cancelled() and (error := follower.exception()) is not None:
            self.broke(error)

    def _delivered(self, queued: QueuedOrder, outcome: str) -> None:
        assert self._serving is not None
        self._serving.batcher.finish(queued)
        self._lanes.finish(queued.lane, queued.offset)
        self._answered[outcome].inc()

    # The way in.

    def _take(self, records: Sequence[Record], arriving: bool) -> None:  # noqa: FBT001 - a callback's argument
        serving = self._serving
        assert serving is not None
        not_hosted: list[str] = []
        full: list[str] = []
        for record in records:
            queued = self._queued(record)
            refused = "ignored" if queued is None else "not hosted" if self._state == "draining" else serving.accept(queued)
            if not refused:
                continue
            self._lanes.finish(record.partition, record.offset)
            if queued is not None:
                self._metrics.ignored.labels(refused).inc()
                if refused != "duplicate":
                    (full if refused == "full" else not_hosted).append(queued.id)
        if not_hosted:
            if self._state == "draining":
                self._hand_back(not_hosted, "draining", "the worker drains")
            else:
                self._hand_back(not_hosted, "unhosted", "the variant is not ready here")
        if full:
            self._hand_back(full, "full", "the queue is full")
        serving.pump(arriving=arriving)

    def _go_on(self, queued: QueuedOrder) -> str:
        """Queue the next stage of what was computed here; says why not."""
        refused = "draining" if self._serving is None or self._state == "draining" else self._serving.accept(queued)
        if not refused:
            self._metrics.fused.inc()
        return refused

    def _queued(self, record: Record) -> QueuedOrder | None:
        """The order that a record carries; None where it is not for this incarnation, or not an order (then it goes to the dead letters)."""
        try:
            queued = read_order(record)
        except ValueError as error:
            self._metrics.ignored.labels("dead letter").inc()
            self._reporting.dead_letter(record, f"not a work order: {error}")
            return None
        if queued.order.worker != self._settings.name or queued.order.incarnation != self._incarnation:
            self._metrics.ignored.labels("other incarnation").inc()
            return None
        return queued

    def _hand_back(self, ids: Sequence[str], cause: str, reason: str) -> None:
        self._reporting.tell(
            Returned(
                worker=self._settings.name,
                incarnation=self._incarnation,
                ids=tuple(ids),
                reason=reason,
                cause=cause,
                at_ms=int(self._now_ms()),
            )
        )

    # Start, serve, drain, close.

    async def _start(self) -> None:
        device: Device = await self._thread.run(self._backend.describe, DESCRIBE_SECONDS)
        self._device = device
        await self._writer.start()
        await self._lanes.start()
        serving = Serving(self._backend, device, self._installation, self._thread, self._settings, self._now_ms, self._metrics, self)
        serving.answers = self._answers
        self._serving = serving
        await self._directions.start()
        logger.info("worker started", worker=self._settings.name, device=device.name, runtime=device.runtime, incarnation=self._incarnation)

    def _directed(self) -> None:
        """Act on the catalog and the plan as they are now."""
        plan, serving = self._directions.plan, self._serving
        if plan is None or serving is None or self._stopping:
            return
        binding = plan.binding(self._settings.name)
        if binding is not None and binding.accelerator != self._settings.accelerator:
            logger.warning("the plan binds this worker to another class", accelerator=binding.accelerator, epoch=plan.epoch)
            binding = None
        if isinstance(self._backend, DrivesBoard):
            self._backend.set_clock(binding.clock_mhz if binding else None)
        specs = self._directions.catalog.variants()
        wanted = wanted_by(binding, specs, lambda variant, spec: self._memory_bytes(variant, spec.sha256, binding.threads if binding else 1))
        self._lanes.want(binding.lane if binding else None)
        serving.plan(plan.epoch, wanted, plan.time_shares or {})

    def _memory_bytes(self, variant: str, sha256: str, threads: int) -> int:
        profile = self._installation.known_profile(variant, sha256, self._device.name if self._device else "", threads)
        return profile.memory_bytes if profile else 0

    async def _serve(self) -> None:
        """Tick and report until asked to stop, or broken."""
        assert self._serving is not None
        next_report_ms = 0.0
        while not self._stopping and self._error is None:
            self._serving.tick()
            if self._now_ms() >= next_report_ms:
                self._report()
                next_report_ms = self._now_ms() + self._settings.telemetry_interval_ms
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _drain(self) -> None:
        """Finish what runs and what waits, within the grace; hand back the rest."""
        serving = self._serving
        assert serving is not None
        self._state = "draining"
        self._report()
        await self._until(lambda: serving.idle and not self._answers.undelivered)
        serving.hand_back("draining", "the worker stops")
        serving.close()
        await self._until(lambda: serving.idle and not self._answers.undelivered)

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait, at most for the grace."""
        assert self._serving is not None
        end_ms = self._now_ms() + self._settings.grace_ms
        while not reached() and self._error is None and self._now_ms() < end_ms:
            self._serving.tick()
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def _close(self, followers: Sequence[asyncio.Task[None]]) -> None:
        if self._serving is not None:
            self._serving.close()
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        self._state = "stopped"
        if self._serving is not None:
            self._report()
            await self._lanes.commit()
            self._serving.unload_tasks()
        await self._answers.close()
        await self._writer.close()
        await self._lanes.close()
        await self._directions.close()
        self._thread.close()

    # Telemetry.

    def _report(self) -> None:
        serving, device, settings = self._serving, self._device, self._settings
        assert serving is not None
        assert device is not None
        self._metrics.waiting_rows.set(serving.batcher.waiting_rows)
        self._metrics.undelivered.set(self._answers.undelivered)
        variants = serving.policy.shown()
        binding = self._directions.plan.binding(self._settings.name) if self._directions.plan else None
        self._reporting.tell(
            WorkerReport(
                worker=self._settings.name,
                incarnation=self._incarnation,
                accelerator=self._settings.accelerator,
                device=device.name,
                host=self._host,
                at_ms=int(self._now_ms()),
                lane=self._lanes.lane,
                state=self._state,
                epoch=max(serving.hosting.epoch, 0),
                credits=serving.policy.credits(hold_ms=settings.hold_ms, rows_max=settings.hold_rows_max) if self._state == "ready" else 0,
                batch_size_max=binding.batch_size_max if binding else 0,
                variants=variants,
                waiting_rows=serving.batcher.waiting_rows,
                memory_bytes=sum(shown.memory_bytes for shown in variants.values()),
                memory_bytes_max=device.memory_bytes_max,
                threads=self._settings.threads,
                reason=serving.away,
                board=self._backend.board_state() if isinstance(self._backend, DrivesBoard) else None,
            )
        )

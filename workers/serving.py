"""Keeps the device busy: carries out what the batcher and the hosting policy decide, one call on the device at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog

from schemas.errors import HeadraceError
from workers.answers import Answers
from workers.backend import Backend, Device, Loaded
from workers.calls import compute_calls
from workers.computation import Computed, ComputedBatch, Served, compute
from workers.device_thread import DeviceThread
from workers.installation import Installation
from workers.installed import Installed
from workers.metrics import WorkerMetrics
from workers.policy.batcher import Batch, Batcher, QueuedOrder, Wait
from workers.policy.estimator import LatencyEstimator
from workers.policy.hosting import Command, Hosted, HostedVariants, Load, Unload, Wanted, Warm
from workers.said import Origin
from workers.settings import WorkerSettings

logger = structlog.get_logger()
TIMER_MS_MIN = 2.0


class Hung(HeadraceError):
    """A call on the device does not come back."""

    code = "hung"


class Owner(Protocol):
    """Who is told what comes of orders and variants."""

    def returned(self, orders: Sequence[QueuedOrder], cause: str, reason: str) -> None:
        """These will not be computed here."""
        ...

    def changed(self) -> None:
        """A variant changed its state."""
        ...

    def broke(self, error: BaseException) -> None:
        """This worker cannot go on."""
        ...


class _Running(msgspec.Struct, eq=False):
    """The call that is on the device."""

    what: str
    variant: str
    handle: str
    started_ms: float
    hangs_ms: float
    batch: Batch | None = None


class Serving:
    """One device with its queue. Every method runs on the event loop and returns at once."""

    def __init__(
        self, backend: Backend, device: Device, installation: Installation, thread: DeviceThread, settings: WorkerSettings,
        now_ms: Callable[[], float], metrics: WorkerMetrics, owner: Owner,
    ) -> None:  # fmt: skip
        self._backend, self._device, self._installation, self._thread = backend, device, installation, thread
        self._settings, self._now_ms, self._owner = settings, now_ms, owner
        self.installed = Installed(settings, metrics)
        self.batcher = Batcher(hop_ms=settings.hop_ms)
        self.hosting = HostedVariants(memory_bytes_max=device.memory_bytes_max)
        self.answers: Answers | None = None
        self._batch_size_max: dict[str, int] = {}
        self._running: _Running | None = None
        self._hosting_due = True
        self._commanded_last = False
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self._running is None and not self.batcher.waiting_rows

    def plan(self, epoch: int, wanted: dict[str, Wanted]) -> None:
        """Host these from now on."""
        self.hosting.plan(epoch, wanted, self._now_ms())
        self._batch_size_max = {variant: wish.batch_size_max for variant, wish in wanted.items()}
        for variant in wanted:
            hosted = self.hosting.serving(variant)
            if hosted is not None:
                self._host(hosted)
        self._hosting_due = True
        self._owner.changed()
        self.pump()

    def accept(self, queued: QueuedOrder) -> str:
        """Queue an order; says why not where it is not taken: `duplicate`, `not hosted` or `full`. Call pump() after the last one."""
        order = queued.order
        if self.hosting.serving(order.variant) is None or not self.batcher.hosts(order.variant):
            return "not hosted"
        if self.batcher.waiting_rows + order.rows > self._settings.limits.worker_queue_rows_max:
            return "full"
        return "" if self.batcher.add(queued) else "duplicate"

    def pump(self, *, arriving: bool = False) -> None:
        """Do what is due now; called whenever something changed."""
        try:
            self._pump(arriving=arriving)
        except Exception as error:  # called back by the event loop, which would only log it: a bug must end the process
            self._owner.broke(error)

    def tick(self) -> None:
        """Look for a call that hangs, and for what the hosting policy wants to do by now."""
        running, now_ms = self._running, self._now_ms()
        if running is not None and now_ms - running.started_ms > running.hangs_ms:
            self._owner.broke(Hung(f"{running.what} of {running.variant} has been on the device for {now_ms - running.started_ms:.0f} ms"))
            return
        self._hosting_due = True
        self.pump()

    def hand_back(self, cause: str, reason: str) -> None:
        """Give up what waits."""
        left = self.batcher.take_all()
        if left:
            self._owner.returned(left, cause, reason)

    def close(self) -> None:
        """Start nothing more."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()

    def unload_tasks(self) -> None:
        """End the processes of Python tasks, after whatever runs now; models end with this process."""
        for handle in self.installed.tasks():
            self._thread.submit(partial(self._backend.unload, handle), _ignored)

    def _pump(self, *, arriving: bool) -> None:
        now_ms = self._now_ms()
        assert self.answers is not None
        late = self.batcher.drop_late(now_ms)
        if late:
            self._expire(late, now_ms)
        if self._running is None and not self._closing:
            if not (self._hosting_due and self._command(now_ms)):
                self._start_batch(now_ms, arriving=arriving)
        elif self.batcher.waiting_rows:
            self._wake_at(self.batcher.next_drop_ms(), now_ms)

    def _expire(self, late: Sequence[QueuedOrder], now_ms: float) -> None:
        assert self.answers is not None
        expired = [queued for queued in late if now_ms >= queued.order.deadline_ms]
        if expired:
            self.answers.send([self.answers.expired(queued, "the deadline came while it waited for the device") for queued in expired])
        early = [queued for queued in late if now_ms < queued.order.deadline_ms]
        if early:
            # Another variant, or another worker, may still make it; the dispatcher knows.
            self._owner.returned(early, "late", "it could not finish in time here, even if it started now")

    def _wake_at(self, at_ms: float | None, now_ms: float) -> None:
        if at_ms is not None and self._timer is None:
            delay_ms = max(at_ms - now_ms, TIMER_MS_MIN)
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1e3, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self.pump()

    def _start_batch(self, now_ms: float, *, arriving: bool) -> None:
        assert self.answers is not None
        if self.answers.undelivered > self._settings.undelivered_max:
            return  # tick() tries again: the log does not take what is finished
        decision = self.batcher.next_batch(now_ms, arriving=arriving)
        if isinstance(decision, Wait):
            self._wake_at(decision.until_ms, now_ms)
        elif decision is not None:
            self._commanded_last = False
            hosted = self.hosting.serving(decision.variant)
            assert hosted is not None, f"{decision.variant} was unloaded while orders waited for it"
            served = self.installed.served(hosted)
            hangs_ms = max(self._settings.hang_factor * decision.expected_ms, self._settings.hang_ms_min + served.loaded.call_ms_max)
            self._running = _Running("a batch", decision.variant, served.handle, now_ms, hangs_ms, decision)
            limits = self._settings.limits
            run = partial(compute_calls, served) if served.loaded.call is not None else partial(compute, self._backend, served)
            self._thread.submit(partial(run, decision, limits), partial(self._computed, served))

    def _computed(self, served: Served, result: ComputedBatch | None, error: BaseException | None) -> None:
        running, self._running = self._running, None
        if running is None or result is None:
            self._owner.broke(error or RuntimeError("a batch came back without a result"))
            return
        try:
            self._answer(served, running, result.results)
            self.installed.computed(served, result)
        except Exception as raised:  # called back by the event loop, which would only log it: a bug must end the process
            self._owner.broke(raised)
            return
        self.pump()

    def _answer(self, served: Served, running: _Running, results: Sequence[Computed]) -> None:
        assert self.answers is not None
        origin = Origin(served.loaded.device, self._device.accelerator, running.started_ms)
        answers = self.answers
        answers.send([answers.completed(result, origin) for result in results])

    def _command(self, now_ms: float) -> bool:
        """Carry out the hosting policy's next command; batches have their turn between two of them."""
        if self._commanded_last and self.batcher.waiting_rows:
            self._commanded_last = False
            return False
        command = self.hosting.decide(now_ms, self._busy)
        if command is None:
            self._hosting_due = False
            return False
        self._commanded_last = True
        hosted = command.hosted
        what = type(command).__name__.lower() + "ing"
        self._running = _Running(what, hosted.variant, hosted.handle, now_ms, self._settings.load_ms_max)
        self._thread.submit(self._call(command), partial(self._commanded, command))
        return True

    def _busy(self, hosted: Hosted) -> bool:
        return self.batcher.waiting(hosted.variant) > 0 and self.hosting.serving(hosted.variant) is hosted

    def _call(self, command: Command) -> Callable[[], Any]:
        hosted = command.hosted
        if isinstance(command, Load):
            return partial(self._installation.load, hosted)
        if isinstance(command, Unload):
            return partial(self._installation.unload, hosted)
        profile_ms = self._settings.profile_ms / (3.0 if self.installed.serves else 1.0)
        return partial(self._installation.warm, hosted, self.installed.loaded(hosted), profile_ms)

    def _commanded(self, command: Command, result: Any, error: BaseException | None) -> None:
        self._running = None
        try:
            if error is None:
                self._done(command, result)
            else:
                self._failed(command, error)
            self._owner.changed()
        except Exception as raised:  # called back by the event loop, which would only log it: a bug must end the process
            self._owner.broke(raised)
            return
        self._hosting_due = True
        self.pump()

    def _done(self, command: Command, result: Any) -> None:
        hosted = command.hosted
        if isinstance(command, Load):
            loaded: Loaded = result
            self.installed.take(hosted, loaded)
            fits = self.hosting.loaded(hosted, memory_bytes=loaded.memory_bytes, load_ms=loaded.load_ms, now_ms=self._now_ms())
            if not fits:
                self.installed.forget(hosted)
                self._thread.submit(partial(self._installation.unload, hosted), _ignored)
        elif isinstance(command, Warm):
            self.installed.learn(hosted, LatencyEstimator(result.batches))
            self.hosting.warmed(hosted)
            self._host(hosted)
            logger.info("variant ready", variant=hosted.variant, device=self.installed.loaded(hosted).device, load_ms=round(hosted.load_ms, 1))
        else:
            self._unloaded(hosted)

    def _unloaded(self, hosted: Hosted) -> None:
        self.installed.forget(hosted)
        self.hosting.unloaded(hosted)
        if self.hosting.serving(hosted.variant) is None:
            left = self.batcher.take(hosted.variant)
            if left:
                self._owner.returned(left, "unhosted", "the variant was unloaded")

    def _failed(self, command: Command, error: BaseException) -> None:
        if not isinstance(error, Exception) or isinstance(command, Unload):
            self._owner.broke(error)
            return
        hosted = command.hosted
        reason = str(error) or type(error).__name__
        logger.warning("variant failed", variant=hosted.variant, state=hosted.state, error=reason)
        self.hosting.failed(hosted, reason, self._now_ms())
        self.installed.forget(hosted)
        # What was loaded and does not run must not keep its memory; a backend that knows nothing of it does not mind.
        self._thread.submit(partial(self._installation.unload, hosted), _ignored)

    def _host(self, hosted: Hosted) -> None:
        """Take orders for it."""
        self.batcher.host(hosted.variant, self.installed.rules(hosted, self._batch_size_max.get(hosted.variant)))


def _ignored(_result: Any, _error: BaseException | None) -> None:
    """Nobody waits for it."""

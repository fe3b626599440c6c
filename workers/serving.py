"""Keeps the device busy: carries out what the device's policy decides, one call on the device at a time (or as many batches as its backend takes).

Beside it goes the loading of one variant, where the backend can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog

from schemas.errors import DeviceUnavailable, HeadraceError
from workers.answers import Answers
from workers.backend import Backend, Device, DrivesBoard, batches_at_once, loads_beside
from workers.calls import compute_calls
from workers.computation import Computed, ComputedBatch, Served, compute
from workers.device_thread import DeviceThread
from workers.installation import Installation
from workers.installed import Installed
from workers.metrics import WorkerMetrics
from workers.policy.batcher import Batch, Batcher, QueuedOrder
from workers.policy.device import DevicePolicy
from workers.policy.hosting import Command, Hosted, Load, Unload, Wanted, Warm
from workers.said import Origin
from workers.settings import WorkerSettings
from workers.turns import InTurns

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
    """A call that is on the device."""

    what: str
    variant: str
    thread: DeviceThread
    started_ms: float
    hangs_ms: float


class Serving:
    """One device with its queue. Every method runs on the event loop and returns at once."""

    def __init__(
        self, backend: Backend, device: Device, installation: Installation, thread: DeviceThread, settings: WorkerSettings,
        now_ms: Callable[[], float], metrics: WorkerMetrics, owner: Owner,
    ) -> None:  # fmt: skip
        self._backend, self._device, self._installation, self._thread = backend, device, installation, thread
        self._beside = DeviceThread(f"{settings.name}-beside") if loads_beside(backend) else None
        if self._beside is not None:
            self._beside.start()
        self._threads = [thread, *(DeviceThread(f"{settings.name}-{number}") for number in range(1, batches_at_once(backend)))]
        for further in self._threads[1:]:
            further.start()
        self._settings, self._now_ms, self._owner = settings, now_ms, owner
        self.away = ""
        """Why the device cannot compute now; empty while it can."""
        self.batcher = Batcher(hop_ms=settings.hop_ms)
        self.policy = DevicePolicy(
            self.batcher,
            memory_bytes_max=device.memory_bytes_max,
            queue_rows_max=settings.limits.worker_queue_rows_max,
            loads_beside=self._beside is not None,
            batches_at_once=len(self._threads),
        )
        self.hosting = self.policy.hosting
        self.installed = Installed(self.policy, metrics)
        self.answers: Answers | None = None
        self._running: list[_Running] = []
        """A command, or batches: in the order in which they were started."""
        self._ended_s = 0.0
        """When the last batch was done, by `time.perf_counter`."""
        self._preparing: _Running | None = None
        """The load or warming that goes on beside it."""
        self._looking: _Running | None = None
        self._used_ms = now_ms()
        """When the device was last seen to do something."""
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self.policy.idle

    def plan(self, epoch: int, wanted: dict[str, Wanted], parts: Mapping[str, float]) -> None:
        """Host these from now on, with these parts of the device's time."""
        self.policy.plan(epoch, wanted, self._now_ms(), parts)
        self._owner.changed()
        self.pump()

    def accept(self, queued: QueuedOrder) -> str:
        """Queue an order; says why not where it is not taken: `duplicate`, `not hosted` or `full`. Call pump() after the last one."""
        if self.away:
            return "not hosted"
        return self.policy.accept(queued)

    def pump(self, *, arriving: bool = False) -> None:
        """Do what is due now; called whenever something changed."""
        try:
            self._pump(arriving=arriving)
        except Exception as error:  # called back by the event loop, which would only log it: a bug must end the process
            self._owner.broke(error)

    def tick(self) -> None:
        """Look for a call that hangs, and for what the hosting policy wants to do by now."""
        now_ms = self._now_ms()
        for running in (*self._running, self._preparing, self._looking):
            if running is not None and now_ms - running.started_ms > running.hangs_ms:
                self._owner.broke(Hung(f"{running.what} of {running.variant} has been on the device for {now_ms - running.started_ms:.0f} ms"))
                return
        if self.away:
            self._look_at_device()
            return
        if self._running or self._preparing is not None:
            self._used_ms = now_ms
        if now_ms - self._used_ms > self._settings.look_ms:
            self._look_at_device()
        self.policy.look()
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
        if self._beside is not None:
            self._beside.close()
        for further in self._threads[1:]:
            further.close()

    def unload_tasks(self) -> None:
        """End the processes of Python tasks, after whatever runs now; models end with this process."""
        for handle in self.installed.tasks():
            self._thread.submit(partial(self._backend.unload, handle), _ignored)

    def _pump(self, *, arriving: bool) -> None:
        assert self.answers is not None
        now_ms, answers = self._now_ms(), self.answers
        # tick() tries again where the log does not take what is finished.
        may_compute = answers.undelivered <= self._settings.undelivered_max
        decision = self.policy.decide(now_ms, arriving=arriving, may_start=not self._closing and not self.away, may_compute=may_compute)
        if decision.expired:
            answers.send([answers.expired(queued, "the deadline came while it waited for the device") for queued in decision.expired])
        if decision.returned:
            # Another variant, or another worker, may still make it; the dispatcher knows.
            self._owner.returned(decision.returned, "late", "it could not finish in time here, even if it started now")
        if decision.prepare is not None:
            self._prepare(decision.prepare, now_ms)
        if isinstance(decision.start, Batch):
            self._start_batch(decision.start, now_ms)
            if len(self._running) < len(self._threads):
                self._pump(arriving=arriving)  # the next one may be ready too
        elif decision.start is not None:
            self._start_command(decision.start, now_ms)
        else:
            self._wake_at(decision.wake_ms, now_ms)

    def _wake_at(self, at_ms: float | None, now_ms: float) -> None:
        if at_ms is not None and self._timer is None:
            delay_ms = max(at_ms - now_ms, TIMER_MS_MIN)
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1e3, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self.pump()

    def _start_batch(self, batch: Batch, now_ms: float) -> None:
        hosted = self.hosting.serving(batch.variant)
        assert hosted is not None, f"{batch.variant} was unloaded while orders waited for it"
        served = self.installed.served(hosted)
        self._used_ms = now_ms
        hangs_ms = max(self._settings.hang_factor * batch.expected_ms, self._settings.hang_ms_min + served.loaded.call_ms_max)
        # What is in front may take all of its time.
        hangs_ms += sum(running.hangs_ms for running in self._running)
        taken = {running.thread for running in self._running}
        thread = next(free for free in self._threads if free not in taken)
        running = _Running("a batch", batch.variant, thread, now_ms, hangs_ms)
        self._running.append(running)
        run = partial(compute_calls, served) if served.loaded.call is not None else partial(compute, self._backend, served)
        thread.submit(partial(run, batch, self._settings.limits), partial(self._computed, running, hosted, served, batch))

    def _computed(
        self, running: _Running, hosted: Hosted, served: Served, batch: Batch, result: ComputedBatch | None, error: BaseException | None
    ) -> None:
        self._running.remove(running)
        if isinstance(error, DeviceUnavailable):
            self.policy.computed(None, 0, 0.0, batch)
            self._lost(batch.orders, str(error))
            return
        if result is None:
            self._owner.broke(error or RuntimeError("a batch came back without a result"))
            return
        try:
            started_ms = running.started_ms + result.wait_for(self._ended_s)
            self._ended_s = max(self._ended_s, result.ended_s)
            self._answer(served, started_ms, result.results)
            self.installed.computed(hosted, result, batch)
            if isinstance(self._backend, DrivesBoard):
                self.batcher.change_ms = self._backend.board_state().reconfiguration_ms
        except Exception as raised:  # called back by the event loop, which would only log it: a bug must end the process
            self._owner.broke(raised)
            return
        self.pump()

    def _lost(self, orders: Sequence[QueuedOrder], reason: str) -> None:
        """The device is away: whatever it had and whatever waits goes back, and nothing starts until it answers again."""
        if not self.away:
            logger.warning("device lost", reason=reason)
            self.away = reason
        left = [*orders, *self.batcher.take_all()]
        if left:
            self._owner.returned(left, "lost", reason)
        self._owner.changed()

    def _look_at_device(self) -> None:
        """One look at a time, on the device's own thread; what is to be computed meanwhile comes after it."""
        if self._looking is None and not self._closing:
            self._looking = _Running("a look", "the device", self._thread, self._now_ms(), self._settings.load_ms_max)
            self._thread.submit(self._backend.describe, self._seen)

    def _seen(self, _device: Device | None, error: BaseException | None) -> None:
        self._looking, self._used_ms = None, self._now_ms()
        if error is not None:
            if not self.away:
                self._lost((), str(error))
        elif self.away:
            self.away = ""
            self._owner.changed()
            self.pump()

    def _answer(self, served: Served, started_ms: float, results: Sequence[Computed]) -> None:
        assert self.answers is not None
        origin = Origin(served.loaded.device, self._device.accelerator, started_ms)
        answers = self.answers
        answers.send([answers.completed(result, origin) for result in results])

    def _start_command(self, command: Command, now_ms: float) -> None:
        self._running.append(self._begun(command, now_ms, self._thread))
        self._thread.submit(self._call(command), partial(self._commanded, command))

    def _prepare(self, command: Load | Warm, now_ms: float) -> None:
        assert self._beside is not None
        self._preparing = self._begun(command, now_ms, self._beside)
        self._beside.submit(self._call(command, InTurns(self._backend, self._thread)), partial(self._prepared, command))

    def _begun(self, command: Command, now_ms: float, thread: DeviceThread) -> _Running:
        return _Running(type(command).__name__.lower() + "ing", command.hosted.variant, thread, now_ms, self._settings.load_ms_max)

    def _call(self, command: Command, turns: InTurns | None = None) -> Callable[[], Any]:
        hosted = command.hosted
        if isinstance(command, Load):
            return partial(self._installation.load, hosted)
        if isinstance(command, Unload):
            return partial(self._installation.unload, hosted)
        profile_ms = self._settings.profile_ms / (3.0 if self.policy.forms.serves else 1.0)
        return partial(self._installation.warm, hosted, self.installed.loaded(hosted), profile_ms, turns)

    def _prepared(self, command: Command, result: Any, error: BaseException | None) -> None:
        self._preparing = None
        self.policy.prepared()
        self._came(command, result, error)

    def _commanded(self, command: Command, result: Any, error: BaseException | None) -> None:
        self._running.clear()
        self.policy.ended()
        self._came(command, result, error)

    def _came(self, command: Command, result: Any, error: BaseException | None) -> None:
        try:
            if error is None:
                self._done(command, result)
            else:
                self._failed(command, error)
            self._owner.changed()
        except Exception as raised:  # called back by the event loop, which would only log it: a bug must end the process
            self._owner.broke(raised)
            return
        self.pump()

    def _done(self, command: Command, result: Any) -> None:
        hosted = command.hosted
        if isinstance(command, Load):
            if not self.installed.take(hosted, result, self._now_ms()):
                self._thread.submit(partial(self._installation.unload, hosted), _ignored)
        elif isinstance(command, Warm):
            self.policy.warmed(hosted, result.batches)
            logger.info("variant ready", variant=hosted.variant, device=self.installed.loaded(hosted).device, load_ms=round(hosted.load_ms, 1))
        else:
            self._unloaded(hosted)

    def _unloaded(self, hosted: Hosted) -> None:
        self.installed.forget(hosted)
        left = self.policy.unloaded(hosted)
        if left:
            self._owner.returned(left, "unhosted", "the variant was unloaded")

    def _failed(self, command: Command, error: BaseException) -> None:
        if not isinstance(error, Exception) or isinstance(command, Unload):
            self._owner.broke(error)
            return
        hosted = command.hosted
        reason = str(error) or type(error).__name__
        logger.warning("variant failed", variant=hosted.variant, state=hosted.state, error=reason)
        self.policy.failed(hosted, reason, self._now_ms())
        self.installed.forget(hosted)
        # What was loaded and does not run must not keep its memory; a backend that knows nothing of it does not mind.
        self._thread.submit(partial(self._installation.unload, hosted), _ignored)


def _ignored(_result: Any, _error: BaseException | None) -> None:
    """Nobody waits for it."""

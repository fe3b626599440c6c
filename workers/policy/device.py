"""Decides what one worker's device does next: which orders it takes, hands back or lets expire, which batch or load it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import msgspec

from schemas.catalog import VariantSpec
from schemas.plan import Binding
from schemas.profile import Latency
from schemas.telemetry import HostedVariant
from workers.policy.batcher import Batch, BatchRules, QueuedOrder, Wait
from workers.policy.forms import Forms, Shape
from workers.policy.hosting import Command, Hosted, HostedVariants, Load, Wanted, Warm
from workers.policy.time_shares import TimeShares

LOADING_ALONE = frozenset({"fpga"})
"""Classes whose own backend has the device to itself while it loads: an overlay takes the whole board. The others' say `loads_beside`."""
NOT_HOSTED, FULL, DUPLICATE = "not hosted", "full", "duplicate"
"""Why an order is not taken."""
NO_PARTS: Mapping[str, float] = MappingProxyType({})


class OrderQueue(Protocol):
    """What a batcher is to its device: `workers.policy.batcher.Batcher`, or another rule of forming batches."""

    waiting_rows: int

    def host(self, variant: str, rules: BatchRules) -> None: ...
    def hosts(self, variant: str) -> bool: ...
    def waiting(self, variant: str) -> int: ...
    def add(self, queued: QueuedOrder) -> bool: ...
    def finish(self, queued: QueuedOrder) -> None: ...
    def drop_late(self, now_ms: float) -> list[QueuedOrder]: ...
    def next_drop_ms(self) -> float | None: ...
    def take_all(self) -> list[QueuedOrder]: ...
    def take(self, variant: str) -> list[QueuedOrder]: ...
    def next_batch(self, now_ms: float, *, arriving: bool = False) -> Batch | Wait | None: ...


@runtime_checkable
class LooksAhead(Protocol):
    """A queue that says what comes next while the device is busy."""

    def full_batch(self, start_ms: float) -> Batch | None: ...


@runtime_checkable
class SharesTime(Protocol):
    """A queue that keeps to the parts of the device's time that the plan gives."""

    shares: TimeShares


class Decision(msgspec.Struct):
    """What is due now. `start` goes on the device, whose end is told by `computed` or `commanded`."""

    expired: list[QueuedOrder] = []
    """Their deadline came while they waited."""
    returned: list[QueuedOrder] = []
    """They could not finish in time here, even if they started now: another variant, or another worker, may still make it."""
    start: Batch | Command | None = None
    prepare: Load | Warm | None = None
    """Goes on beside whatever is on the device; its end is told by `prepared`."""
    wake_ms: float | None = None
    """Decide again then, at the latest."""


class _OnDevice(msgspec.Struct, eq=False):
    """A batch that was handed to the device."""

    batch: Batch
    began_ms: float | None
    """None as long as another one is in front of it."""


class DevicePolicy:
    """One device with its queue and its variants; one call is on it at a time, and one variant is made ready, at most.

    `loads_beside`: variants are made ready beside what is on the device, so that none of the others waits for that. Unloading always has the device.
    `batches_at_once`: so many may be handed to the device, which computes them in turn. One is handed over early only where it is full, and while
    nothing is to be loaded or unloaded: so a more urgent order waits for one batch more than it would, at most.
    """

    def __init__(
        self, queue: OrderQueue, *, memory_bytes_max: int, queue_rows_max: int, loads_beside: bool = False, batches_at_once: int = 1
    ) -> None:
        self.queue = queue
        self._shares = queue.shares if isinstance(queue, SharesTime) else None
        self._ahead = queue if isinstance(queue, LooksAhead) and batches_at_once > 1 else None
        self._batches_at_once = batches_at_once
        self._on_device: list[_OnDevice] = []
        self._commanding = False
        self.hosting = HostedVariants(memory_bytes_max=memory_bytes_max)
        self.forms = Forms()
        self.preparing = False
        self._loads_beside = loads_beside
        self._queue_rows_max = queue_rows_max
        self._batch_size_max: dict[str, int] = {}
        self._hosting_due = True
        self._commanded_last = False

    @property
    def running(self) -> bool:
        """Something is on the device."""
        return self._commanding or bool(self._on_device)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self.running and not self.queue.waiting_rows

    # -- what is asked of it

    def plan(self, epoch: int, wanted: dict[str, Wanted], now_ms: float, parts: Mapping[str, float] = NO_PARTS) -> None:
        """Host these from now on; `parts` of the device's time by task or variant, where the plan says so."""
        if epoch >= self.hosting.epoch and self._shares is not None:
            self._shares.share_out(parts)
        self.hosting.plan(epoch, wanted, now_ms)
        self._batch_size_max = {variant: wish.batch_size_max for variant, wish in wanted.items()}
        for variant in wanted:
            hosted = self.hosting.serving(variant)
            if hosted is not None:
                self._host(hosted)
        self._hosting_due = True

    def accept(self, queued: QueuedOrder) -> str:
        """Queue an order; says why not where it is not taken: `duplicate`, `not hosted` or `full`. Call decide() after the last one."""
        for _, refused in self.accept_all((queued,)):
            return refused
        return ""

    def accept_all(self, orders: Iterable[QueuedOrder]) -> list[tuple[QueuedOrder, str]]:
        """Queue what came together; returns those that are not taken, each with why not, as `accept` says it."""
        refused: list[tuple[QueuedOrder, str]] = []
        hosted: dict[str, bool] = {}
        queue, add, rows_max = self.queue, self.queue.add, self._queue_rows_max
        for queued in orders:
            order = queued.order
            variant = order.variant
            takes = hosted.get(variant)
            if takes is None:
                takes = hosted[variant] = queue.hosts(variant) and self.hosting.serving(variant) is not None
            if not takes:
                refused.append((queued, NOT_HOSTED))
            elif queue.waiting_rows + order.rows > rows_max:
                refused.append((queued, FULL))
            elif not add(queued):
                refused.append((queued, DUPLICATE))
        return refused

    def look(self) -> None:
        """Time has passed: the hosting policy may want something by now."""
        self._hosting_due = True

    def decide(self, now_ms: float, *, arriving: bool = False, may_start: bool = True, may_compute: bool = True) -> Decision:
        """What is due; `arriving`: more orders are there to be read at once. Not `may_start`: nothing is begun any more.

        Not `may_compute`: no batch is begun now, as answers cannot leave.
        """
        decision = Decision()
        for queued in self.queue.drop_late(now_ms):
            (decision.expired if now_ms >= queued.order.deadline_ms else decision.returned).append(queued)
        command = self._command(now_ms) if may_start and self._may_command else None
        if self._loads_beside and isinstance(command, Load | Warm):
            decision.prepare, self.preparing, command = command, True, None
        if self.running or not may_start:
            if may_start and may_compute:
                decision.start = self._next_ahead(now_ms)
            if self.queue.waiting_rows:
                decision.wake_ms = self.queue.next_drop_ms()
            return decision
        if command is not None:
            decision.start, self._commanding = command, True
        elif may_compute:
            batch = self.queue.next_batch(now_ms, arriving=arriving)
            if isinstance(batch, Wait):
                decision.wake_ms = batch.until_ms
            elif batch is not None:
                decision.start, self._commanded_last = batch, False
                self._on_device.append(_OnDevice(batch, now_ms))
        return decision

    def _next_ahead(self, now_ms: float) -> Batch | None:
        """The batch to hand over while another one computes."""
        batches = self._on_device
        if self._ahead is None or not batches or len(batches) >= self._batches_at_once or self._hosting_due:
            return None
        if batches[0].began_ms is None:
            batches[0].began_ms = now_ms
        free_ms = max(now_ms, batches[0].began_ms + sum(one.batch.expected_ms for one in batches))
        batch = self._ahead.full_batch(free_ms)
        if batch is not None:
            batches.append(_OnDevice(batch, None))
        return batch

    @property
    def _may_command(self) -> bool:
        return self._hosting_due and not self.preparing and (self._loads_beside or not self.running)

    def _command(self, now_ms: float) -> Command | None:
        """The hosting policy's next command; batches have their turn between two that want the device."""
        if not self._loads_beside and self._commanded_last and self.queue.waiting_rows:
            self._commanded_last = False
            return None
        command = self.hosting.decide(now_ms, self._busy)
        if command is None:
            self._hosting_due = False
        else:
            self._commanded_last = True
        return command

    def _busy(self, hosted: Hosted) -> bool:
        return self.queue.waiting(hosted.variant) > 0 and self.hosting.serving(hosted.variant) is hosted

    # -- what it is told

    def computed(self, hosted: Hosted | None, rows: int, spent_ms: float, batch: Batch | None = None) -> None:
        """The batch (None: the one in front) is off the device; `hosted`: whose cost it tells of, None where it says nothing about it.

        `spent_ms`: that it had the device; not what it waited for the batch in front.
        """
        done = next((one for one in self._on_device if one.batch is batch), self._on_device[0])
        self._on_device.remove(done)
        if self._shares is not None:
            self._shares.charge(done.batch.variant, spent_ms)
        if hosted is not None and rows:
            self.forms.computed(hosted, rows, spent_ms)

    def prepared(self) -> None:
        """What went on beside the device has ended; say with one of the next five what came of it."""
        self.preparing = False
        self._hosting_due = True

    def ended(self) -> None:
        """A command is off the device; say with one of the next four what came of it."""
        self._commanding = False
        self._hosting_due = True

    def loaded(self, hosted: Hosted, shape: Shape, *, memory_bytes: int, load_ms: float, now_ms: float) -> bool:
        """It is in memory; False where it turned out too large: free it."""
        self.forms.take(hosted, shape)
        fits = self.hosting.loaded(hosted, memory_bytes=memory_bytes, load_ms=load_ms, now_ms=now_ms)
        if not fits:
            self.forms.forget(hosted)
        return fits

    def warmed(self, hosted: Hosted, batches: dict[int, Latency]) -> None:
        """It is as fast as it gets."""
        self.forms.learn(hosted, batches)
        self.hosting.warmed(hosted)
        self._host(hosted)

    def unloaded(self, hosted: Hosted) -> list[QueuedOrder]:
        """It is gone; returns what waited for it, where nothing else here can compute that."""
        self.forms.forget(hosted)
        self.hosting.unloaded(hosted)
        return self.queue.take(hosted.variant) if self.hosting.serving(hosted.variant) is None else []

    def failed(self, hosted: Hosted, reason: str, now_ms: float) -> None:
        """It did not load, or does not run: free it."""
        self.hosting.failed(hosted, reason, now_ms)
        self.forms.forget(hosted)

    def _host(self, hosted: Hosted) -> None:
        """Take orders for it."""
        self.queue.host(hosted.variant, self.forms.bound(hosted, self._batch_size_max.get(hosted.variant)))

    # -- what telemetry says of it

    def credits(self, *, hold_ms: float, rows_max: int) -> int:
        """Rows to hold, waiting and running."""
        return self.forms.credits(self.hosting, hold_ms=hold_ms, rows_max=rows_max)

    def shown(self) -> dict[str, HostedVariant]:
        """Its variants."""
        return self.forms.shown(self.hosting)


def wanted_by(binding: Binding | None, specs: Mapping[str, VariantSpec], memory_bytes: Callable[[str, VariantSpec], int]) -> dict[str, Wanted]:
    """What a binding asks of its worker; `memory_bytes`: what a variant needs as far as it is known, else 0."""
    wanted: dict[str, Wanted] = {}
    for variant in binding.variants if binding is not None else ():
        assert binding is not None
        spec = specs.get(variant)
        rows = min(binding.batch_size_max, spec.batch_size_max) if spec else binding.batch_size_max
        wanted[variant] = Wanted(spec, rows, binding.threads, memory_bytes(variant, spec) if spec else 0)
    return wanted

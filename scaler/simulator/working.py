"""A simulated worker: drives the real policies of a worker over a device that only takes time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scaler.simulator.costs import Costs, latencies
from scaler.simulator.records import Orders, TerminalRecord
from scaler.simulator.scenario import WorkerGroup
from scaler.simulator.stages import Stages
from scaler.simulator.watching import Ended
from scaler.simulator.world import World
from schemas.catalog import VariantSpec
from schemas.plan import Binding, Plan
from schemas.telemetry import Departed, Returned, WorkerReport
from schemas.terminal import COMPLETED, EXPIRED, PathStep
from schemas.work import StagePart
from workers.policy.batcher import Batch, QueuedOrder
from workers.policy.device import FULL, LOADING_ALONE, NOT_HOSTED, DevicePolicy, OrderQueue, wanted_by
from workers.policy.forms import Shape
from workers.policy.hosting import FAILED, READY, Command, Hosted, Load, Unload, Warm

REPORT_MS = 1_000.0
LOOK_MS = 100.0
"""How often a worker whose variants are not settled looks at them."""
LEAVE_MS = 2_000.0
"""A lane that was given up is read for so long on."""
TIMER_MS_MIN = 2.0
HOP_MS, HOLD_MS, HOLD_ROWS_MAX, QUEUE_ROWS_MAX = 8.0, 100.0, 256, 16_384
"""As workers/settings.py and schemas/limits.py have them."""
SUPERVISOR_MS = 50.0
"""A supervisor tells so soon that a process has died."""
Path = tuple[tuple[str, float], ...]
"""(variant, accuracy) of what was computed."""


class SimulatedWorker:
    """One process with one device, which may die and start again."""

    def __init__(
        self, world: World, name: str, group: WorkerGroup, costs: Costs, stages: Stages,
        queue: Callable[[float], OrderQueue], *, hold_rows_max: int | None = None,
    ) -> None:  # fmt: skip
        """`hold_rows_max`: where orders are bound early, all the rows that it can be given."""
        self.name, self.group = name, group
        self.alive = False
        self.incarnation = 0
        self.slower = 1.0
        """Its device takes so many times longer, while a fault lasts."""
        self.skew_ms = 0.0
        """Its clock is ahead by this."""
        self.unloadable: frozenset[str] = frozenset()
        """Variants that fail to load, while a fault lasts."""
        self.busy_ms = 0.0
        """Computing time since the start of the run, of batches that have ended."""
        self.computed_rows: dict[str, int] = {}
        self._world, self._agenda, self._costs, self._stages, self._new_queue = world, world.agenda, costs, stages, queue
        self._hold_rows_max = hold_rows_max
        self._life = 0
        self._policy = self._new_policy()
        self._epoch = 0
        self._binding: Binding | None = None
        self._lane: int | None = None
        self._left: dict[int, float] = {}
        """Lanes that were given up, and until when they are read."""
        self._state = "starting"
        self._reported: tuple[object, ...] = ()
        self._looking = False
        self._timer_ms: float | None = None

    def _new_policy(self) -> DevicePolicy:
        return DevicePolicy(
            self._new_queue(HOP_MS),
            memory_bytes_max=self.group.memory_bytes,
            queue_rows_max=self._hold_rows_max or QUEUE_ROWS_MAX,
            loads_beside=self.group.accelerator not in LOADING_ALONE,
        )

    # -- life

    def start(self, first_report_ms: float = 0.0) -> None:
        """Begin a life with nothing loaded."""
        now_ms = self._agenda.now_ms
        self.alive = True
        self._life += 1
        self.incarnation = max(int(now_ms), self.incarnation + 1)
        self._policy = self._new_policy()
        self._lane, self._left, self._state, self._reported = None, {}, "starting", ()
        self._looking, self._timer_ms, self._epoch, self._binding = False, None, 0, None
        self._world.workers[self.name] = self
        for watcher in self._world.watchers:
            watcher.worker(now_ms, self.name, self.incarnation, self.alive)
        self._agenda.schedule(now_ms + first_report_ms, self._report_on, self._life)
        if self._world.plan.epoch:
            self.follow(self._world.plan, self._world.bindings.get(self.name))

    def die(self, *, noticed: bool = True) -> None:
        """What it held is lost; a supervisor says so, or its silence does."""
        self.alive = False
        self._life += 1
        self._world.workers.pop(self.name, None)
        now_ms = self._agenda.now_ms
        for watcher in self._world.watchers:
            watcher.worker(now_ms, self.name, self.incarnation, self.alive)
        if noticed:
            gone = Departed(role="worker", name=self.name, incarnation=self.incarnation, at_ms=int(now_ms + SUPERVISOR_MS))
            self._agenda.schedule(now_ms + SUPERVISOR_MS, self._world.tell, gone)

    def follow(self, plan: Plan, binding: Binding | None) -> None:
        """A plan was read, with this worker's binding."""
        if plan.epoch < self._epoch:
            return
        self._epoch = plan.epoch
        if binding is not None and binding.accelerator != self.group.accelerator:
            binding = None
        self._binding = binding
        lane = binding.lane if binding is not None else None
        if lane != self._lane:
            if self._lane is not None:
                self._left[self._lane] = self._agenda.now_ms + LEAVE_MS
            self._lane = lane
        self._policy.plan(plan.epoch, wanted_by(binding, self._world.specs, self._memory_bytes), self._clock_ms, plan.time_shares or {})
        self._changed()
        self._pump()

    def _memory_bytes(self, variant: str, _: VariantSpec) -> int:
        cost = self._costs.of(variant)
        return cost.memory_bytes if cost is not None else 0

    @property
    def _clock_ms(self) -> float:
        return self._agenda.now_ms + self.skew_ms

    # -- orders

    def receive(self, orders: Orders) -> None:
        """Records were read from a lane."""
        if orders.lane != self._lane and self._left.get(orders.lane, 0.0) < self._agenda.now_ms:
            return
        incarnation = self.incarnation
        refused = self._policy.accept_all([queued for queued in orders.orders if queued.order.incarnation == incarnation])
        if refused:
            not_hosted = [queued.id for queued, reason in refused if reason == NOT_HOSTED]
            full = [queued.id for queued, reason in refused if reason == FULL]
            if not_hosted:
                self._hand_back(not_hosted, "unhosted", "the variant is not ready here")
            if full:
                self._hand_back(full, "full", "the queue is full")
        self._pump()

    def _hand_back(self, ids: Sequence[str], cause: str, reason: str) -> None:
        for watcher in self._world.watchers:
            watcher.returned(self._agenda.now_ms, self.name, self.incarnation, ids)
        self._world.tell(
            Returned(worker=self.name, incarnation=self.incarnation, ids=tuple(ids), reason=reason, cause=cause, at_ms=int(self._clock_ms))
        )

    def _pump(self) -> None:
        clock_ms = self._clock_ms
        decision = self._policy.decide(clock_ms)
        if decision.expired:
            self._answer_expired(decision.expired)
        if decision.returned and self._world.blind_ms:
            self._answer_expired(decision.returned)
        elif decision.returned:
            self._returned(decision.returned, "late", "it could not finish in time here, even if it started now")
        if decision.prepare is not None:
            self._obey(decision.prepare, self._policy.prepared)
        start = decision.start
        if start is not None:
            if isinstance(start, Batch):
                self._compute(start)
            else:
                self._obey(start, self._policy.ended)
        elif decision.wake_ms is not None:
            self._wake(decision.wake_ms - self.skew_ms)

    def _wake(self, at_ms: float) -> None:
        if self._timer_ms is None:
            self._timer_ms = max(at_ms, self._agenda.now_ms + TIMER_MS_MIN)
            self._agenda.schedule(self._timer_ms, self._woken, self._life)

    def _woken(self, life: int) -> None:
        if life == self._life:
            self._timer_ms = None
            self._pump()

    def _returned(self, orders: Sequence[QueuedOrder], cause: str, reason: str) -> None:
        for queued in orders:
            self._policy.queue.finish(queued)
        self._hand_back([queued.id for queued in orders], cause, reason)

    # -- computing

    def _compute(self, batch: Batch) -> None:
        hosted = self._policy.hosting.serving(batch.variant)
        assert hosted is not None
        rows = self._policy.forms.rules(hosted).padded(batch.rows)
        spent_ms = self._costs.computing_ms(batch.variant, hosted.wanted.threads, rows) * self.slower
        now_ms = self._agenda.now_ms
        for watcher in self._world.watchers:
            watcher.computing(now_ms, self.name, self.incarnation, batch.variant, [queued.id for queued in batch.orders], batch.rows)
        self._agenda.schedule(now_ms + spent_ms, self._computed, (self._life, hosted, batch, rows, spent_ms))

    def _computed(self, ended: tuple[int, Hosted, Batch, int, float]) -> None:
        life, hosted, batch, rows, spent_ms = ended
        if life != self._life:
            return
        self.busy_ms += spent_ms
        self.computed_rows[batch.variant] = self.computed_rows.get(batch.variant, 0) + batch.rows
        self._answer(batch, spent_ms)
        self._policy.computed(hosted, rows, spent_ms)
        self._pump()

    def _answer(self, batch: Batch, spent_ms: float) -> None:
        world, queue, finished_ms = self._world, self._policy.queue, int(self._clock_ms)
        delay_ms = world.hops.next_ms()
        computed = ((batch.variant, batch.orders[0].order.accuracy),)
        records: list[TerminalRecord] = []
        ended: list[Ended] = []
        watchers, now_ms, finish = world.watchers, self._agenda.now_ms, queue.finish
        for queued in batch.orders:
            order = queued.order
            finish(queued)
            part = order.part
            if part is not None and part.topic:
                self._stages.answer(queued, self.name, finished_ms, self._step(queued, batch, spent_ms), delay_ms, self._policy.accept)
                continue
            outcome, accuracy, path = EXPIRED, None, ()
            if finished_ms <= order.deadline_ms:
                outcome, accuracy, path = COMPLETED, order.accuracy, computed
                if part is not None:
                    accuracy, path = accuracy if part.path_accuracy is None else part.path_accuracy, _path(part, computed)
            key = queued.request_id.encode()
            records.append((order.shard, key, outcome, order.endpoint, accuracy))
            if watchers:
                ended.append(Ended(now_ms, key, outcome, accuracy, finished_ms, self.name, path))
        for watcher in watchers:
            watcher.terminal(ended)
        world.answer(records, delay_ms)

    def _step(self, queued: QueuedOrder, batch: Batch, spent_ms: float) -> PathStep:
        """What an answer's path says of a stage computed here."""
        order = queued.order
        ready_ms = order.received_ms if order.part is None else order.part.ready_ms or order.received_ms
        return PathStep(
            stage=order.stage,
            variant=order.variant,
            accuracy=order.accuracy,
            accelerator=self.group.accelerator,
            device=self.group.type,
            queued_ms=max(self._clock_ms - spent_ms - ready_ms, 0.0),
            computed_ms=spent_ms,
            batch_size=batch.rows,
        )

    def _answer_expired(self, expired: Sequence[QueuedOrder]) -> None:
        world, delay_ms, finished_ms = self._world, self._world.hops.next_ms(), int(self._clock_ms)
        records: list[TerminalRecord] = []
        ended: list[Ended] = []
        for queued in expired:
            self._policy.queue.finish(queued)
            order = queued.order
            if order.part is not None and order.part.topic:
                self._stages.answer(queued, self.name, finished_ms, None, delay_ms, self._policy.accept)
                continue
            key = queued.request_id.encode()
            ended.append(Ended(self._agenda.now_ms, key, EXPIRED, None, finished_ms, self.name))
            records.append((order.shard, key, EXPIRED, order.endpoint, None))
        for watcher in world.watchers:
            watcher.terminal(ended)
        world.answer(records, delay_ms)

    # -- variants

    def _obey(self, command: Command, tell: Callable[[], None]) -> None:
        """Carry it out, on the device or beside it; `tell` the policy that it has ended."""
        cost = self._costs.of(command.hosted.variant)
        takes_ms = 0.0
        if cost is not None and isinstance(command, Load):
            takes_ms = cost.load_ms * self.slower
        elif cost is not None and isinstance(command, Warm):
            wanted = command.hosted.wanted
            takes_ms = self._costs.computing_ms(command.hosted.variant, wanted.threads, wanted.batch_size_max) * self.slower
        self._agenda.schedule(self._agenda.now_ms + takes_ms, self._obeyed, (self._life, command, tell))

    def _obeyed(self, ended: tuple[int, Command, Callable[[], None]]) -> None:
        life, command, tell = ended
        if life != self._life:
            return
        tell()
        hosted, policy = command.hosted, self._policy
        cost = self._costs.of(hosted.variant)
        if isinstance(command, Unload):
            left = policy.unloaded(hosted)
            if left:
                self._returned(left, "unhosted", "the variant was unloaded")
        elif cost is None:
            policy.failed(hosted, f"a worker of type {self.group.type} cannot run {hosted.variant}", self._clock_ms)
        elif not isinstance(command, Load):
            policy.warmed(hosted, latencies(cost, hosted.wanted.threads))
        elif hosted.variant in self.unloadable:
            policy.failed(hosted, "its file cannot be loaded", self._clock_ms)
        else:
            spec = hosted.wanted.spec
            assert spec is not None
            policy.loaded(hosted, Shape(rows_max=spec.batch_size_max), memory_bytes=cost.memory_bytes, load_ms=cost.load_ms, now_ms=self._clock_ms)
        self._changed()
        self._pump()

    def _changed(self) -> None:
        """Report at once where dispatchers should act on it; look again soon while something is under way."""
        visible = self._policy.hosting.visible()
        ready = self._lane is not None and any(hosted.state == READY for hosted in visible.values())
        self._state = "ready" if ready else "starting"
        states = tuple((variant, hosted.state, hosted.reason) for variant, hosted in visible.items())
        now = (self._state, self._lane, self._policy.hosting.epoch, states)
        if now != self._reported:
            self._reported = now
            self._report()
            if self._world.watchers:
                self._watch()
        if not self._looking and any(hosted.state != READY for hosted in visible.values()):
            self._looking = True
            self._agenda.schedule(self._agenda.now_ms + LOOK_MS, self._look, self._life)

    def _look(self, life: int) -> None:
        if life != self._life:
            return
        self._policy.look()
        self._pump()
        states = [hosted.state for hosted in self._policy.hosting.visible().values()]
        self._looking = any(state not in (READY, FAILED) for state in states)
        if self._looking:
            self._agenda.schedule(self._agenda.now_ms + LOOK_MS, self._look, life)

    def _watch(self) -> None:
        hosting = self._policy.hosting
        shown = hosting.visible()
        ready = {variant: hosted.memory_bytes for variant in shown if (hosted := hosting.serving(variant)) is not None}
        for watcher in self._world.watchers:
            watcher.hosted(self._agenda.now_ms, self.name, self.incarnation, ready, hosting.memory_bytes)

    # -- telemetry

    def _report_on(self, life: int) -> None:
        if life == self._life:
            self._policy.look()
            self._pump()
            self._report()
            self._agenda.schedule(self._agenda.now_ms + REPORT_MS, self._report_on, life)

    def _report(self) -> None:
        policy, binding = self._policy, self._binding
        shown = policy.shown()
        self._world.tell(
            WorkerReport(
                worker=self.name,
                incarnation=self.incarnation,
                accelerator=self.group.accelerator,
                device=self.group.type,
                host=self.name,
                at_ms=int(self._clock_ms),
                lane=self._lane,
                state=self._state,
                epoch=max(policy.hosting.epoch, 0),
                credits=self._credits() if self._state == "ready" else 0,
                batch_size_max=binding.batch_size_max if binding else 0,
                variants=shown,
                waiting_rows=policy.queue.waiting_rows,
                memory_bytes=sum(variant.memory_bytes for variant in shown.values()),
                memory_bytes_max=self.group.memory_bytes,
                threads=self.group.threads,
            )
        )

    def _credits(self) -> int:
        return self._hold_rows_max or self._policy.credits(hold_ms=HOLD_MS, rows_max=HOLD_ROWS_MAX)


def _path(part: StagePart, computed: Path) -> Path:
    """With what was computed before this stage."""
    return (*((step.variant, step.accuracy) for step in part.path), *computed)

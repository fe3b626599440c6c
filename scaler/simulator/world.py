"""What all parts of a simulated cluster share: time, the log's topics, and who is told what is written to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from broker.policy.entry import Send
from scaler.simulator.agenda import Agenda
from scaler.simulator.answer_log import AnswerLog
from scaler.simulator.chance import Hops, generator, uniforms
from scaler.simulator.ordering import orders_of
from scaler.simulator.partition import Partition
from scaler.simulator.records import Orders, Request, TerminalRecord
from scaler.simulator.scenario import Scenario
from scaler.simulator.tally import Tally
from scaler.simulator.watching import Watcher
from schemas.plan import Binding, Plan
from schemas.stage import StageRecord
from schemas.telemetry import Telemetry
from schemas.terminal import COMPLETED

TELEMETRY_KEPT_MS = 2_500.0
"""A dispatcher that starts reads telemetry again from this long ago."""
BLIND_MS = 3_600_000
DUPLICATES = 1
"""Number of the stream of faults that doubles records."""
StageDone = tuple[bytes, StageRecord, bytes]


class DispatcherSide(Protocol):
    """What the topics need to know of a dispatcher."""

    @property
    def woken_ms(self) -> float:
        """When it looks at its topics next; infinity where nobody has woken it."""
        ...

    def wake(self, at_ms: float) -> None:
        """Something can be read from then on."""
        ...

    def tell(self, record: Telemetry) -> None: ...
    def follow(self, plan: Plan) -> None: ...


class WorkerSide(Protocol):
    """What the topics need to know of a worker."""

    def receive(self, orders: Orders) -> None: ...
    def follow(self, plan: Plan, binding: Binding | None) -> None: ...


class PlannerSide(Protocol):
    """What the topics need to know of the planner."""

    def tell(self, record: Telemetry) -> None: ...


class ArrivingSide(Protocol):
    """Who brings requests in."""

    def tell(self, now_ms: float) -> None:
        """Let watchers know of what has come by now."""
        ...


class World:
    """Writes reach their readers after a hop; within a partition in their order."""

    def __init__(self, scenario: Scenario, seed: int, watchers: Sequence[Watcher], tally: Tally, start_ms: float) -> None:
        self.scenario, self.watchers, self.tally = scenario, tuple(watchers), tally
        self.agenda = Agenda(start_ms)
        self.hops = Hops(scenario.hop, seed)
        self.requests = [Partition[Request]() for _ in range(scenario.shards)]
        self.responses = [AnswerLog() for _ in range(scenario.shards)]
        self.stages = [Partition[StageDone]() for _ in range(scenario.shards)]
        self.commits: dict[int, tuple[int, str]] = {}
        self.owners: list[DispatcherSide | None] = [None] * scenario.shards
        """By shard."""
        self.dispatchers: dict[str, DispatcherSide] = {}
        """Those that are alive."""
        self.workers: dict[str, WorkerSide] = {}
        """Those that are alive."""
        self.planner: PlannerSide | None = None
        self.arriving: ArrivingSide | None = None
        self.plan = Plan()
        """The newest that can be read."""
        self.bindings: dict[str, Binding] = {}
        """Of that plan, by worker."""
        self.specs = scenario.catalog.variants()
        self.telemetry: deque[tuple[float, Telemetry]] = deque()
        self.blind_ms = 0 if scenario.control.admission else BLIND_MS
        """Dispatchers see deadlines later by this: without admission nothing is refused, dropped or hurried for them. Workers see the true ones."""
        self.duplicated_part = 0.0
        """Orders and answers that are delivered twice, while a fault lasts."""
        self._again = uniforms(generator(seed, 3, DUPLICATES))
        self._told_ms = start_ms
        self._planned_ms = start_ms
        self._lanes_ms: dict[str, float] = {}

    # -- telemetry and plans

    def tell(self, record: Telemetry) -> None:
        """A record of {p}.telemetry."""
        self._told_ms = max(self.agenda.now_ms + self.hops.next_ms(), self._told_ms)
        self.agenda.schedule(self._told_ms, self._told, record)

    def _told(self, record: Telemetry) -> None:
        now_ms, kept = self.agenda.now_ms, self.telemetry
        kept.append((now_ms, record))
        while kept[0][0] < now_ms - TELEMETRY_KEPT_MS:
            kept.popleft()
        for dispatcher in list(self.dispatchers.values()):
            dispatcher.tell(record)
        if self.planner is not None:
            self.planner.tell(record)

    def publish(self, plan: Plan) -> None:
        """A record of {p}.plan."""
        for watcher in self.watchers:
            watcher.planned(self.agenda.now_ms, plan)
        self._planned_ms = max(self.agenda.now_ms + self.hops.next_ms(), self._planned_ms)
        self.agenda.schedule(self._planned_ms, self._published, plan)

    def _published(self, plan: Plan) -> None:
        self.plan = plan
        for dispatcher in list(self.dispatchers.values()):
            dispatcher.follow(plan)
        self.bindings = {binding.worker: binding for binding in plan.bindings}
        for name, worker in list(self.workers.items()):
            worker.follow(plan, self.bindings.get(name))

    # -- orders

    def send(self, dispatcher: str, sends: Sequence[Send], epoch: int) -> None:
        """Records of {p}.work: those of one lane travel together."""
        now_ms = self.agenda.now_ms
        by_lane: dict[str, list[Send]] = {}
        for send in sends:
            own = by_lane.get(send.worker)
            if own is None:
                by_lane[send.worker] = [send]
            else:
                own.append(send)
        for watcher in self.watchers:
            watcher.sent(now_ms, dispatcher, sends)
        for worker, own in by_lane.items():
            if self.duplicated_part:
                own += [send for send in own if self._again.next() < self.duplicated_part]
            at_ms = max(now_ms + self.hops.next_ms(), self._lanes_ms.get(worker, 0.0))
            self._lanes_ms[worker] = at_ms
            self.agenda.schedule(at_ms, self._deliver, (worker, Orders(orders_of(own, epoch, self.blind_ms), own[0].lane)))

    def _deliver(self, delivery: tuple[str, Orders]) -> None:
        worker = self.workers.get(delivery[0])
        if worker is not None:
            worker.receive(delivery[1])

    # -- answers

    def answer(self, answers: Sequence[TerminalRecord], delay_ms: float) -> None:
        """Records of {p}.responses, written together and readable `delay_ms` from now."""
        now_ms = self.agenda.now_ms
        self.tally.ended(answers, now_ms)
        responses, owners, visible_ms, duplicated = self.responses, self.owners, now_ms + delay_ms, self.duplicated_part
        for answer in answers:
            shard = answer[0]
            partition = responses[shard]
            readable_ms = partition.append(answer[1], visible_ms)
            missed = answer[2] != COMPLETED
            if missed:
                partition.miss()
            if duplicated and self._again.next() < duplicated:
                partition.append(answer[1], readable_ms)
                if missed:
                    partition.miss()
            owner = owners[shard]
            if owner is not None and owner.woken_ms > readable_ms:
                owner.wake(readable_ms)

    def stage_done(self, shard: int, done: StageDone, delay_ms: float) -> None:
        """A record of a stage topic."""
        partition = self.stages[shard]
        visible_ms = partition.append(done, self.agenda.now_ms + delay_ms)
        if self.duplicated_part and self._again.next() < self.duplicated_part:
            partition.append(done, visible_ms)
        owner = self.owners[shard]
        if owner is not None:
            owner.wake(visible_ms)

    # -- commits

    def commit(self, dispatcher: str, commits: dict[int, tuple[int, str]]) -> None:
        """Offsets of {p}.requests with their metadata."""
        now_ms = self.agenda.now_ms
        for shard, commit in commits.items():
            if self.commits.get(shard) == commit:
                continue
            self.commits[shard] = commit
            offset, metadata = commit
            for watcher in self.watchers:
                watcher.committed(now_ms, dispatcher, shard, offset, metadata)
            since_ms = float(metadata.split(":")[1])
            self.requests[shard].trim(offset)
            for partition in (self.responses[shard], self.stages[shard]):
                partition.trim(min(partition.offset_at(since_ms), partition.offset_at(now_ms)))

"""A dispatcher's policy and its workers in virtual time: a lane computes one order after the other, each for as long as its profile says."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Answer, Commands, Entry, Send
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, VariantSpec
from schemas.limits import Limits
from schemas.plan import Binding, Plan
from schemas.profile import Latency
from schemas.telemetry import DispatcherReport, HostedVariant, WorkerReport

START_MS = 1_700_000_000_000.0
LADDER = {"linear": (0.8427, 0.01), "cnn": (0.9001, 0.08), "resnet": (0.9313, 0.21), "wide": (0.9338, 2.1)}
"""(accuracy, milliseconds a row) by variant."""


def catalog(ladder: dict[str, tuple[float, float]] | None = None, name: str = "fashion") -> Catalog:
    """One task and its endpoint, both called `name`."""
    variants = tuple(VariantSpec(name=key, file=key, sha256="", accuracy=accuracy) for key, (accuracy, _) in (ladder or LADDER).items())
    return Catalog({name: TaskSpec(name=name, variants=variants)}, {name: EndpointSpec(name=name, task=name)})


def plan(*workers: str, variants: Iterable[str] = LADDER, epoch: int = 1, shares: dict[str, dict[str, float]] | None = None) -> Plan:
    """Binds each worker to a lane of its own, with all of these variants."""
    keys = tuple(f"fashion/{name}" for name in variants)
    bindings = tuple(Binding(worker=worker, accelerator="cpu", lane=at, variants=keys) for at, worker in enumerate(workers or ("w0",)))
    return Plan(epoch=epoch, bindings=bindings, shares=shares or {})


def report(worker: str = "w0", ladder: dict[str, tuple[float, float]] | None = None, **fields: object) -> WorkerReport:
    """A ready worker that hosts the whole ladder."""
    variants = {
        f"fashion/{name}": HostedVariant(state="ready", latency={1: Latency(row_ms, row_ms * 1.2, 9), 32: Latency(row_ms * 32, row_ms * 34, 9)})
        for name, (_, row_ms) in (ladder or LADDER).items()
    }
    said: dict[str, object] = {
        "worker": worker,
        "incarnation": 1,
        "accelerator": "cpu",
        "device": "cpu0",
        "host": "here",
        "at_ms": int(START_MS),
        "lane": int(worker.removeprefix("w")),
        "state": "ready",
        "credits": 512,
        "epoch": 1,
        "variants": variants,
    }
    return WorkerReport(**(said | fields))  # type: ignore[arg-type]


_offsets = count()


def request(key: str, received_ms: float = START_MS, **fields: object) -> Entry:
    """A request as the shell hands it over."""
    said: dict[str, object] = {
        "key": key.encode(),
        "shard": 0,
        "offset": next(_offsets),
        "received_ms": int(received_ms),
        "endpoint": "fashion",
        "floor": None,
        "deadline_at_ms": None,
        "timeout_ms": 1_000,
        "priority": 0,
        "tenant": "",
        "rows": 1,
        "bytes": 100,
        "payload": object(),
    }
    return Entry(**(said | fields))  # type: ignore[arg-type]


def dispatcher(*workers: str, settings: DispatcherSettings | None = None, limits: Limits | None = None, now_ms: float = START_MS) -> DispatcherPolicy:
    """A policy that knows the catalog, a plan and its ready workers, and owns shard 0."""
    policy = DispatcherPolicy("d0", settings or DispatcherSettings(), limits or Limits())
    policy.step(ev.CatalogObserved(catalog()), now_ms)
    policy.step(ev.PlanObserved(plan(*workers)), now_ms)
    for worker in workers:
        policy.step(ev.TelemetryObserved(report(worker)), now_ms)
    policy.step(ev.ShardAssigned(0, Watermark()), now_ms)
    policy.step(ev.ShardRecovered(0), now_ms)
    return policy


@dataclass
class Tally:
    """What became of one group of requests."""

    offered: int = 0
    completed: int = 0
    late: int = 0
    """Completed after the deadline: computed in vain."""
    refused: int = 0
    expired: int = 0
    accuracy_sum: float = 0.0
    floor_sum: float = 0.0

    @property
    def served(self) -> float:
        return self.completed / self.offered if self.offered else 0.0

    @property
    def accuracy(self) -> float:
        return self.accuracy_sum / self.completed if self.completed else 0.0


@dataclass
class Stage:
    """Runs arrivals through a dispatcher and its workers; `group_of` names the tally that a request counts in."""

    workers: tuple[str, ...] = ("w0",)
    hop_ms: float = 2.0
    speed: float = 1.0
    """Profiled milliseconds that a worker really does in a millisecond."""
    settings: DispatcherSettings = field(default_factory=DispatcherSettings)
    group_of: Callable[[Entry], object] = lambda entry: entry.floor
    poll_ms: float = 4.0
    others: int = 0
    """Other dispatchers that report, and send nothing."""

    def __post_init__(self) -> None:
        self.policy = dispatcher(*self.workers, settings=self.settings)
        self.now_ms = START_MS
        self.tallies: dict[object, Tally] = defaultdict(Tally)
        self.busy_ms = 0.0
        self._free_ms = dict.fromkeys(self.workers, START_MS)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = count()
        self._arrived = count()
        self._costs = {f"fashion/{name}": row_ms for name, (_, row_ms) in LADDER.items()}

    def run(self, arrivals: Iterable[Entry]) -> dict[object, Tally]:
        """All arrivals (by time), until the last has its answer."""
        batches: dict[float, list[Entry]] = defaultdict(list)
        for entry in arrivals:
            batches[entry.received_ms - entry.received_ms % self.poll_ms + self.poll_ms].append(entry)
        for at_ms, batch in batches.items():
            self._at(at_ms, lambda batch=batch: self._arrive(batch))
        end_ms = max(batches, default=self.now_ms) + 100.0
        for second in range(int((end_ms - START_MS) / 1_000.0) + 1):
            self._at(START_MS + second * 1_000.0 + 0.5, self._reports)
        while self._events:
            self.now_ms, _, action = heapq.heappop(self._events)
            action()
            wake_ms = self.policy.next_wake_ms()
            if wake_ms is not None and (not self._events or self._events[0][0] > wake_ms):
                self._at(max(wake_ms, self.now_ms), lambda: self._step(ev.Ticked()))
        return dict(self.tallies)

    def _at(self, at_ms: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_ms, next(self._sequence), action))

    def _reports(self) -> None:
        for worker in self.workers:
            self._step(ev.TelemetryObserved(report(worker, waiting_rows=1)))
        for other in range(self.others):
            self._step(ev.TelemetryObserved(DispatcherReport(dispatcher=f"other{other}", incarnation=1, at_ms=0, shards=(7,))))

    def _arrive(self, batch: list[Entry]) -> None:
        for entry in batch:
            entry.offset = next(self._arrived)
            self.tallies[self.group_of(entry)].offered += 1
        self._step(ev.Arrived(0, batch))

    def _step(self, event: ev.Event) -> None:
        self._carry_out(self.policy.step(event, self.now_ms))

    def _carry_out(self, commands: Commands) -> None:
        for send in commands.sends:
            self._at(self.now_ms + self.hop_ms, lambda send=send: self._work(send))
        for answer in commands.answers:
            self._refuse(answer)

    def _refuse(self, answer: Answer) -> None:
        tally = self.tallies[self.group_of(answer.entry)]
        if answer.outcome == "expired":
            tally.expired += 1
        else:
            tally.refused += 1
        self._at(self.now_ms + self.hop_ms, lambda: self._step(ev.Answered(0, [answer.entry.key])))

    def _work(self, send: Send) -> None:
        start_ms = max(self._free_ms[send.worker], self.now_ms)
        cost_ms = (self._costs[send.variant] * send.entry.rows + self.settings.overhead_ms) / self.speed
        if start_ms + cost_ms > send.entry.deadline_ms:
            # The worker's own rule: what would be late is dropped before it costs anything.
            self._at(start_ms, lambda: self._finish(send, START_MS * 2))
            return
        self._free_ms[send.worker] = start_ms + cost_ms
        self.busy_ms += cost_ms
        self._at(start_ms + cost_ms, lambda: self._finish(send, self.now_ms))

    def _finish(self, send: Send, finished_ms: float) -> None:
        entry = send.entry
        if not entry.payload:
            return
        tally = self.tallies[self.group_of(entry)]
        if finished_ms <= entry.deadline_ms:
            tally.completed += 1
            tally.accuracy_sum += send.accuracy
            tally.floor_sum += entry.floor or 0.0
        else:
            tally.late += 1
        self._at(self.now_ms + self.hop_ms, lambda: self._step(ev.Answered(0, [entry.key])))

"""The dispatcher's decisions: `step(event, now_ms) -> commands` over everything that can happen to it.

Each request that was read is owned here until its terminal record has been *read back* from {p}.responses: the first record there is the answer,
whoever wrote it, and only then does the commit watermark pass the request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.policy import events as ev
from broker.policy.admission import judge
from broker.policy.endpoint_counts import EndpointCounters
from broker.policy.entry import ANSWERED, DONE, HELD, LEASED, NEW, RUNNING, SHADOW_PRIORITY, WAITING, Answer, Commands, DeadLetter, Entry, State
from broker.policy.expiry import ExpiryWheel
from broker.policy.fleet import Fleet
from broker.policy.graph_requests import GraphRequests, OpenRequest, opaque
from broker.policy.lanes import Order
from broker.policy.quotas import Quotas
from broker.policy.recent import RecentIds
from broker.policy.routes import fill_in
from broker.policy.sending import send_waiting
from broker.policy.settings import DispatcherSettings
from broker.policy.shard import Shard
from schemas.limits import Limits
from schemas.telemetry import Departed, DispatcherReport, WorkerReport
from schemas.terminal import EXPIRED, FAILED, REJECTED

EXPIRING = {
    WAITING: "it waited for a worker",
    LEASED: "a worker had it",
    HELD: "it waited for a worker",
    RUNNING: "stages of its graph were under way",
}
CHECK_INTERVAL_MS = 100.0
"""How often leases and the workers' liveness are looked at."""


class DispatcherPolicy:
    """Pure: all time comes in through `step`, nothing is read or written."""

    def __init__(self, name: str, settings: DispatcherSettings, limits: Limits, open_request: OpenRequest | None = None) -> None:
        """`open_request` decodes what a graph wants to see of a request."""
        self.settings = settings
        self.limits = limits
        self.fleet = Fleet(name, settings, limits)
        self.shards: dict[int, Shard] = {}
        self.duplicates = 0
        self.arrived = 0
        self._live: dict[bytes, Entry] = {}
        """Of all shards: clients that hash differently may send the same id to two of them."""
        self._expiry = ExpiryWheel()
        self._quotas = Quotas(limits.tenants_max)
        self._recent = RecentIds(limits.recent_ids_max)
        self._held_bytes = 0
        self.counts = EndpointCounters(settings)
        self.graphs = GraphRequests(self.fleet, settings, open_request or opaque, self._conclude, self.counts)
        self._checked_ms = 0.0
        self._handlers: dict[type[Any], Callable[[Any, float, Commands], None]] = {
            ev.Arrived: self._on_arrived,
            ev.Answered: self._on_answered,
            ev.StagesDone: self._on_stages_done,
            ev.RecordsRead: self._on_records_read,
            ev.Ticked: self._on_ticked,
            ev.ShardAssigned: self._on_shard_assigned,
            ev.ShardRecovered: self._on_shard_recovered,
            ev.ShardRevoked: self._on_shard_revoked,
            ev.OffsetsFinished: self._on_offsets_finished,
            ev.TelemetryObserved: self._on_telemetry,
            ev.PlanObserved: self._on_plan,
            ev.CatalogObserved: self._on_catalog,
            ev.SendsFailed: self._on_sends_failed,
            ev.DeadLettered: self._on_dead_lettered,
        }

    # -- what a shell asks

    def step(self, event: ev.Event, now_ms: float) -> Commands:
        """What follows from this event."""
        commands = Commands()
        for pool in self.fleet.pools:
            pool.new_step()
        self._handlers[type(event)](event, now_ms, commands)
        self._resettle()
        for pool in self.fleet.pools:
            if pool.waiting.count:
                pool.tune(now_ms)
                for entry in send_waiting(pool, self.fleet.orders, self.settings, self.limits, now_ms, commands):
                    # No lane can answer it in time. Refused where no worker ever had it; else its deadline will say so.
                    if entry.root is not None:
                        self.graphs.unsendable(entry, now_ms)
                    elif not entry.handed_out:
                        self._answer(entry, REJECTED, "overloaded", "by now no worker can answer it in time: more urgent work came first", commands)
        for send in commands.sends:
            if send.entry.root is not None:
                self.graphs.sent(send)
        return commands

    def next_wake_ms(self) -> float | None:
        """When a deadline falls due next, or a graph wants to be looked at."""
        return min((at_ms for at_ms in (self._expiry.next_ms(), self.graphs.next_wake_ms()) if at_ms is not None), default=None)

    def commits(self) -> dict[int, tuple[int, str]]:
        """(offset, metadata) by shard."""
        return {number: shard.commit(self.limits.commit_metadata_bytes_max) for number, shard in self.shards.items()}

    @property
    def live(self) -> int:
        """Requests without a terminal record yet."""
        return sum(len(shard.live) + len(shard.held_back) for shard in self.shards.values())

    @property
    def waiting(self) -> int:
        """Requests that no worker has."""
        return sum(pool.waiting.count for pool in self.fleet.pools)

    def _on_records_read(self, event: ev.RecordsRead, now_ms: float, commands: Commands) -> None:
        for part in event.events:
            self._handlers[type(part)](part, now_ms, commands)

    # -- arrivals

    def _on_arrived(self, event: ev.Arrived, now_ms: float, commands: Commands) -> None:
        shard = self.shards.get(event.shard)
        if shard is None:
            return
        if event.burying:
            shard.bury(event.burying)
        begun = [entry for entry in event.entries if shard.begin(entry)]
        if shard.recovering:
            shard.hold_back(begun)
        else:
            self._take_on(begun, shard, now_ms, commands)
        if event.burying:
            shard.begin_to(event.burying[-1])

    def _take_on(self, entries: list[Entry], shard: Shard, now_ms: float, commands: Commands) -> None:
        self.arrived += len(entries)
        live, own, known, expiry, fleet = self._live, shard.live, self._recent.known, self._expiry, self.fleet
        count, endpoints, pools = self.counts.arrived, fleet.catalog.endpoints, fleet.pool_by_task
        for entry in entries:
            key = entry.key
            if key in live or key in known:
                self.duplicates += 1
                shard.watermark.finish(entry.offset)
                continue
            own[key] = live[key] = entry
            refusal = entry.refused or self._resolve(entry) or self._admit(entry, shard, now_ms, commands)
            count(entry, refusal, endpoints)
            if refusal is not None:
                self._refuse(entry, refusal, now_ms, commands)
                continue
            entry.admitted = True
            self._held_bytes += entry.bytes
            expiry.add(entry, entry.deadline_ms)
            if entry.state is NEW:
                pool = pools[entry.task]
                pool.arrived(entry)
                pool.waiting.push(entry)

    def _refuse(self, entry: Entry, refusal: tuple[str, str], now_ms: float, commands: Commands) -> None:
        if entry.held_back and entry.received_ms < entry.deadline_ms <= now_ms:
            # An earlier owner may have handed it out: this is an expiry that fell into a dispatcher's death, not a refusal.
            self._answer(entry, EXPIRED, "deadline_exceeded", "the deadline came while the request's shard changed hands", commands)
        else:
            self._answer(entry, REJECTED, refusal[0], refusal[1], commands)

    def _resolve(self, entry: Entry) -> tuple[str, str] | None:
        """Fill in what the endpoint's defaults say: task, rung, deadline, priority."""
        route = self.fleet.routes.get(entry.endpoint) or self.fleet.route(entry.endpoint)
        if route is None:
            known = ", ".join(sorted(self.fleet.catalog.endpoints)[:10]) or "none yet"
            return "unknown_endpoint", f"no endpoint {entry.endpoint!r}: known are {known}"
        if fill_in(entry, route.defaults) > self.limits.timeout_ms_max:
            return "bad_request", f"the deadline is more than {self.limits.timeout_ms_max // 1000} s away"
        if route.graph:
            problem = self.fleet.graphs.of(entry.endpoint).problem
            return ("unknown_endpoint", f"the graph of endpoint {entry.endpoint!r} cannot run: {problem}") if problem else None
        ladder = route.ladder
        if ladder is None:
            return "unknown_endpoint", f"endpoint {entry.endpoint!r} names task {route.task!r}, which is not in the catalog"
        assert entry.floor is not None
        entry.task = ladder.task
        rung = entry.rung = ladder.rung(entry.floor)
        if rung == len(ladder.keys):
            return "infeasible_accuracy", f"min_accuracy {entry.floor} is above every variant: the best has {ladder.best}"
        return None

    def _admit(self, entry: Entry, shard: Shard, now_ms: float, commands: Commands) -> tuple[str, str] | None:
        route = self.fleet.routes[entry.endpoint]
        if route.quotas and not self._quotas.take(entry.endpoint, entry.tenant, route.quotas, now_ms, self.fleet.share):
            return "quota", f"tenant {entry.tenant!r} is over its quota for endpoint {entry.endpoint!r}"
        if entry.deadline_ms <= now_ms:
            return "infeasible_deadline", f"the deadline passed {now_ms - entry.deadline_ms:.0f} ms before the request was read"
        if route.graph:
            replayed = shard.replayed.pop(entry.key, ())
            compiled = self.fleet.graphs.of(entry.endpoint)
            return self._full(len(self.graphs), "run on graphs") or self.graphs.start(entry, compiled, replayed, now_ms, commands)
        pool = self.fleet.pool_by_task[entry.task]
        return self._full(pool.waiting.count, "wait") or judge(entry, pool, self.settings, now_ms)

    def _full(self, held: int, what: str) -> tuple[str, str] | None:
        """Whether a request more would be one too many, beside so many that do `what`."""
        limits = self.limits
        if held < limits.waiting_max and self._held_bytes + self.graphs.held_bytes <= limits.waiting_bytes_max:
            return None
        return "overloaded", f"{held} requests {what}, the limit is {self.limits.waiting_max}"

    # -- answers

    def _on_answered(self, event: ev.Answered, now_ms: float, commands: Commands) -> None:
        shard = self.shards.get(event.shard)
        if shard is None:
            return
        own, orders, live, ended, finish = shard.own_answers, self.fleet.orders, shard.live, self.counts.ended, self._finish
        number, compared, missed = event.shard, self.fleet.graphs.second_opinions, event.missed
        finished: list[int] = []
        for key in event.keys:
            order = None
            if own and key in own:
                own.discard(key)
            else:
                order = orders.get(key) or self.graphs.final_order(key)
                if order is not None and order.entry.shard == number:
                    del orders[order.entry.key]
                    order.lane.answered(order, now_ms)
            entry = live.pop(key, None)
            if entry is not None:
                ended(entry, now_ms, missed=key in missed)
                if not entry.task:
                    self.graphs.ended(entry, now_ms, commands)
                elif compared and order is not None and key not in missed:
                    self.graphs.compare(entry, order.variant, now_ms, commands)
                finish(entry)
                finished.append(entry.offset)
        shard.watermark.finish_all(finished)
        self._recent.add(event.keys)

    def _on_stages_done(self, event: ev.StagesDone, now_ms: float, commands: Commands) -> None:
        shard = self.shards.get(event.shard)
        if shard is None:
            return
        for key, record, value in event.records:
            if shard.recovering:
                shard.replayed.setdefault(key, []).append((record, value))
            else:
                self.graphs.observe(key, record, value, now_ms, commands)

    def _finish(self, entry: Entry) -> None:
        """The request's terminal record is in the log, or it is another dispatcher's from now on: forget it. The watermark is the caller's."""
        if entry.state is WAITING or not entry.admitted:
            self._let_go(entry, DONE)
        else:
            entry.admitted, entry.state = False, DONE  # the very same, for nearly all there are
            self._held_bytes -= entry.bytes
            self._expiry.remove(entry, entry.deadline_ms)
        del self._live[entry.key]
        entry.payload = None

    def _let_go(self, entry: Entry, state: State) -> None:
        """Off the books: it neither waits nor expires any more."""
        if entry.state is WAITING:
            self.fleet.pool(entry.task).waiting.forget(entry, state)
        if entry.admitted:
            entry.admitted = False
            self._held_bytes -= entry.bytes
            self._expiry.remove(entry, entry.deadline_ms)
        entry.state = state

    def _answer(self, entry: Entry, outcome: str, code: str, message: str, commands: Commands) -> None:
        """Write a terminal record of our own; whatever arrives first in the log is the answer all the same."""
        self._conclude(Answer(entry, outcome, code, message), commands)

    def _conclude(self, answer: Answer, commands: Commands) -> None:
        entry = answer.entry
        self.counts.concluded(entry, answer.outcome)
        self._let_go(entry, ANSWERED)
        self.shards[entry.shard].own_answers.add(entry.key)
        commands.answers.append(answer)

    # -- time

    def _on_ticked(self, event: ev.Ticked, now_ms: float, commands: Commands) -> None:
        for entry in self._expiry.due(now_ms):
            if entry.state in (LEASED, RUNNING) and now_ms < entry.deadline_ms + self.settings.expiry_grace_ms:
                self._expiry.add(entry, entry.deadline_ms + self.settings.expiry_grace_ms)
            elif entry.state in EXPIRING:
                where = EXPIRING[entry.state]
                self._answer(entry, EXPIRED, "deadline_exceeded", f"the deadline came while {where}", commands)
        self.graphs.due(now_ms, commands)
        if now_ms - self._checked_ms >= CHECK_INTERVAL_MS:
            self._checked_ms = now_ms
            self._lost(self.fleet.overdue(now_ms), "its lease ran out, or its worker was not heard of", now_ms, commands)

    def _retry(self, key: bytes, order: Order, reason: str, now_ms: float, commands: Commands) -> None:
        """The order is lost: another attempt, or the dead letters."""
        entry = order.entry
        self.graphs.order_lost(entry)
        if entry.state != LEASED or entry.key != key:
            return
        if entry.attempts >= self.limits.attempts_max:
            entry.state = HELD
            if entry.priority == SHADOW_PRIORITY:
                self.graphs.lost(entry, now_ms, commands)  # its request has an answer, or will have one
            else:
                commands.dead_letters.append(DeadLetter(entry, f"attempts_exhausted: {entry.attempts} attempts, the last one because {reason}"))
            return
        if entry.root is not None:
            self.graphs.retry(entry, now_ms)
            return
        refusal = self._resolve(entry)
        if refusal is not None:
            # The catalog changed while a worker had it.
            self._answer(entry, FAILED, refusal[0], refusal[1], commands)
        else:
            self.fleet.pool(entry.task).waiting.push(entry)

    def _on_dead_lettered(self, event: ev.DeadLettered, now_ms: float, commands: Commands) -> None:
        entry = event.entry
        if entry.state is HELD and entry.root is not None:
            self.graphs.lost(entry, now_ms, commands)
        elif entry.state is HELD:
            self._answer(entry, FAILED, "attempts_exhausted", f"{entry.attempts} attempts were lost with their workers", commands)

    def _on_sends_failed(self, event: ev.SendsFailed, now_ms: float, commands: Commands) -> None:
        for entry in event.entries:
            order = self.fleet.orders.get(entry.key)
            if order is not None and order.entry is entry:
                self.fleet.take_back(entry.key)
                self._retry(entry.key, order, "the log did not take the order", now_ms, commands)

    # -- shards

    def _on_shard_assigned(self, event: ev.ShardAssigned, now_ms: float, commands: Commands) -> None:
        self.shards[event.shard] = Shard(event.shard, event.watermark)

    def _on_shard_recovered(self, event: ev.ShardRecovered, now_ms: float, commands: Commands) -> None:
        shard = self.shards.get(event.shard)
        if shard is None or not shard.recovering:
            return
        shard.recovering = False
        self._take_on(shard.held_back, shard, now_ms, commands)
        shard.held_back = []
        shard.replayed.clear()

    def _on_shard_revoked(self, event: ev.ShardRevoked, now_ms: float, commands: Commands) -> None:
        shard = self.shards.pop(event.shard, None)
        if shard is None:
            return
        for key, entry in shard.live.items():
            self.fleet.take_back(key)
            self.graphs.revoked(entry)
            self._finish(entry)

    def _on_offsets_finished(self, event: ev.OffsetsFinished, now_ms: float, commands: Commands) -> None:
        shard = self.shards.get(event.shard)
        if shard is not None:
            for offset in event.offsets:
                shard.buried(offset)

    # -- control

    def _on_telemetry(self, event: ev.TelemetryObserved, now_ms: float, commands: Commands) -> None:
        record = event.record
        if isinstance(record, WorkerReport):
            self._lost(self.fleet.observe_worker(record, now_ms), "its worker started anew or stopped", now_ms, commands)
        elif isinstance(record, DispatcherReport):
            self.fleet.observe_dispatcher(record, now_ms)
        elif isinstance(record, Departed):
            self._lost(self.fleet.departed(record), "its worker died", now_ms, commands)
        else:
            self.graphs.handed_back(record)
            self._lost(self.fleet.returned(record), f"its worker handed it back: {record.reason}", now_ms, commands, counted=False)

    def _lost(self, orders: dict[bytes, Order], reason: str, now_ms: float, commands: Commands, *, counted: bool = True) -> None:
        for key, order in orders.items():
            if not counted and order.entry.state is LEASED:
                order.entry.attempts -= 1  # handed back unstarted: that attempt never was
            self._retry(key, order, reason, now_ms, commands)

    def _on_plan(self, event: ev.PlanObserved, now_ms: float, commands: Commands) -> None:
        self.fleet.observe_plan(event.plan)

    def _on_catalog(self, event: ev.CatalogObserved, now_ms: float, commands: Commands) -> None:
        """What waits is judged again: its variants may have changed, or its endpoint may be gone."""
        waiting = self.fleet.observe_catalog(event.catalog)
        for entry in waiting:
            if entry.root is not None:
                self.graphs.retry(entry, now_ms)
                continue
            refusal = self._resolve(entry)
            if refusal is not None:
                self._answer(entry, FAILED if entry.handed_out else REJECTED, refusal[0], refusal[1], commands)
            else:
                self.fleet.pool(entry.task).waiting.push(entry)

    def _resettle(self) -> None:
        for entry in self.fleet.resettle():
            self.fleet.pool(entry.task).waiting.push(entry)

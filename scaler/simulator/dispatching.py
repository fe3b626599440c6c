"""A simulated dispatcher: drives the real policy as the live shell does, over the simulated topics."""

from __future__ import annotations

from collections.abc import Container, Iterable
from math import inf

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Answer, DeadLetter, Entry
from broker.policy.graph_requests import OpenRequest
from broker.policy.report import dispatcher_report
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark, restore
from scaler.simulator.records import Request, TerminalRecord
from scaler.simulator.watching import Ended
from scaler.simulator.world import World
from schemas.limits import Limits
from schemas.plan import Plan
from schemas.telemetry import Departed, Telemetry
from schemas.terminal import COMPLETED, EXPIRED

REQUESTS_PER_STEP = 250
TURN_MS = 4.0
"""Under load a dispatcher's turn of reading, deciding and writing takes about so long; when idle it reads at once."""
TICK_MS = 50.0
WAKE_MS_MIN = 0.5
REPORT_MS = 1_000.0
PAYLOAD_BYTES = 1_024
SUPERVISOR_MS = 50.0
"""A supervisor tells so soon that a process has died."""
Records = ev.Arrived | ev.Answered | ev.StagesDone | ev.TelemetryObserved


class SimulatedDispatcher:
    """One process, which may die and start again. `live` is the policy of its present life."""

    def __init__(self, world: World, name: str, settings: DispatcherSettings, limits: Limits, open_request: OpenRequest | None) -> None:
        self.name = name
        self.live: DispatcherPolicy | None = None
        self._world, self._agenda = world, world.agenda
        self._settings, self._limits, self._open_request = settings, limits, open_request
        self._life = 0
        self._incarnation = 0
        self._requests_to: dict[int, int] = {}
        self._responses_to: dict[int, int] = {}
        self._stages_to: dict[int, int] = {}
        self._recovering: dict[int, tuple[int, int]] = {}
        """Ends of responses and stage records when the shard became ours."""
        self.woken_ms = inf
        """When it looks at its topics next; infinity where nobody has woken it."""
        self._polled_ms = 0.0
        self._timer_ms = inf
        self._unread: list[Records] = []
        """Telemetry."""
        self._telemetry_ms, self._told_ms = inf, 0.0
        """When it is read next, and was read last."""

    @property
    def alive(self) -> bool:
        """It runs."""
        return self.live is not None

    # -- life

    def start(self) -> None:
        """Begin a life: catalog, plan and telemetry first, shards afterwards."""
        now_ms = self._agenda.now_ms
        self.live = DispatcherPolicy(self.name, self._settings, self._limits, self._open_request)
        self._life += 1
        self._incarnation = max(int(now_ms), self._incarnation + 1)
        self.woken_ms, self._timer_ms = inf, inf
        self._world.dispatchers[self.name] = self
        for watcher in self._world.watchers:
            watcher.dispatcher(now_ms, self.name, self.alive)
        self._step(ev.CatalogObserved(self._world.scenario.catalog))
        self._step(ev.PlanObserved(self._world.plan))
        self._unread, self._telemetry_ms = [], inf
        self._step(ev.RecordsRead([ev.TelemetryObserved(record) for _, record in self._world.telemetry]))
        self._tick(self._life)
        self._report(self._life)

    def die(self) -> None:
        """Everything that it knew is gone; its shards wait for it, or for others."""
        self.live = None
        for of_shards in (self._requests_to, self._responses_to, self._stages_to, self._recovering):
            of_shards.clear()
        self._world.dispatchers.pop(self.name, None)
        for shard, owner in enumerate(self._world.owners):
            if owner is self:
                self._world.owners[shard] = None
        for watcher in self._world.watchers:
            watcher.dispatcher(self._agenda.now_ms, self.name, self.alive)
        at_ms = self._agenda.now_ms + SUPERVISOR_MS
        self._agenda.schedule(at_ms, self._world.tell, Departed(role="dispatcher", name=self.name, incarnation=self._incarnation, at_ms=int(at_ms)))

    def give_up(self, shards: Container[int]) -> None:
        """What is not among these is somebody else's from now on; its state is committed."""
        if self.live is None:
            return
        lost = [shard for shard in self._requests_to if shard not in shards]
        if lost:
            self._world.commit(self.name, self.live.commits())
        for shard in lost:
            for of_shards in (self._requests_to, self._responses_to, self._stages_to, self._recovering):
                of_shards.pop(shard, None)
            self._world.owners[shard] = None
            self._step(ev.ShardRevoked(shard))

    def assign(self, shards: Iterable[int]) -> None:
        """These are ours now; what stays goes on from memory."""
        for shard in shards:
            if shard not in self._requests_to:
                self._take(shard)
        self.wake(self._agenda.now_ms)

    def _take(self, shard: int) -> None:
        world = self._world
        commit = world.commits.get(shard)
        watermark, since_ms = restore(*commit) if commit is not None else (Watermark(world.requests[shard].start), 0)
        responses, stages = world.responses[shard], world.stages[shard]
        world.owners[shard] = self
        self._requests_to[shard] = watermark.low
        self._responses_to[shard] = responses.offset_at(since_ms)
        self._stages_to[shard] = stages.offset_at(since_ms)
        self._recovering[shard] = (responses.end, stages.end)
        self._step(ev.ShardAssigned(shard, watermark))

    # -- told by the topics

    def wake(self, at_ms: float) -> None:
        """Something can be read from then on."""
        at_ms = max(at_ms, self._polled_ms + TURN_MS)
        if at_ms < self.woken_ms:
            self.woken_ms = at_ms
            self._agenda.schedule(at_ms, self._poll, at_ms)

    def tell(self, record: Telemetry) -> None:
        """A telemetry record was read."""
        self._unread.append(ev.TelemetryObserved(record))
        if self._telemetry_ms == inf:
            self._telemetry_ms = max(self._agenda.now_ms, self._told_ms + TURN_MS)
            self._agenda.schedule(self._telemetry_ms, self._read_telemetry, self._telemetry_ms)

    def _read_telemetry(self, scheduled_ms: float) -> None:
        if self.live is not None and scheduled_ms == self._telemetry_ms:
            self._telemetry_ms, self._told_ms = inf, self._agenda.now_ms
            unread, self._unread = self._unread, []
            self._step(ev.RecordsRead(unread))

    def follow(self, plan: Plan) -> None:
        """A plan was read."""
        self._step(ev.PlanObserved(plan))

    # -- loops

    def _poll(self, scheduled_ms: float) -> None:
        if self.live is None or scheduled_ms != self.woken_ms:
            return
        world, now_ms = self._world, self._agenda.now_ms
        self.woken_ms, self._polled_ms = inf, now_ms
        if world.arriving is not None:
            world.arriving.tell(now_ms)
        answers: list[Records] = []
        for shard in self._requests_to:
            self._read_answers(shard, now_ms, answers)
        if answers:
            self._step(ev.RecordsRead(answers))
        for shard in [shard for shard, ends in self._recovering.items() if self._has_read(shard, ends)]:
            del self._recovering[shard]
            self._step(ev.ShardRecovered(shard))
        requests: list[Records] = []
        for shard in self._requests_to:
            self._read_requests(shard, now_ms, requests)
        if requests:
            self._step(ev.RecordsRead(requests))
        next_ms = min((self._next_ms(shard) for shard in self._requests_to), default=inf)
        if next_ms < inf:
            self.wake(next_ms)

    def _read_answers(self, shard: int, now_ms: float, found: list[Records]) -> None:
        world, count_max = self._world, self._limits.read_records_max
        offset, responses = self._responses_to[shard], world.responses[shard]
        keys = responses.read(offset, now_ms, count_max)
        if keys:
            self._responses_to[shard] = offset + len(keys)
            found.append(ev.Answered(shard, keys, responses.missed(offset, keys)))
        done = world.stages[shard].read(self._stages_to[shard], now_ms, count_max)
        if done:
            self._stages_to[shard] += len(done)
            found.append(ev.StagesDone(shard, done))

    def _has_read(self, shard: int, ends: tuple[int, int]) -> bool:
        return self._responses_to[shard] >= ends[0] and self._stages_to[shard] >= ends[1]

    def _read_requests(self, shard: int, now_ms: float, found: list[Records]) -> None:
        offset, blind_ms = self._requests_to[shard], self._world.blind_ms
        requests = self._world.requests[shard].read(offset, now_ms, REQUESTS_PER_STEP)
        if requests:
            self._requests_to[shard] = offset + len(requests)
            found.append(ev.Arrived(shard, _entries(requests, shard, offset, blind_ms)))

    def _next_ms(self, shard: int) -> float:
        world = self._world
        return min(
            world.responses[shard].next_ms(self._responses_to[shard]),
            world.stages[shard].next_ms(self._stages_to[shard]),
            world.requests[shard].next_ms(self._requests_to[shard]),
        )

    def _tick(self, life: int) -> None:
        if self.live is not None and life == self._life:
            self._step(ev.Ticked())
            self._agenda.schedule(self._agenda.now_ms + TICK_MS, self._tick, life)

    def _woken(self, scheduled_ms: float) -> None:
        if self.live is not None and scheduled_ms == self._timer_ms:
            self._timer_ms = inf
            self._step(ev.Ticked())

    def _report(self, life: int) -> None:
        if self.live is None or life != self._life:
            return
        self._world.tell(dispatcher_report(self.live, self.name, self._incarnation, self._agenda.now_ms, tuple(self.live.shards)))
        self._world.commit(self.name, self.live.commits())
        self._agenda.schedule(self._agenda.now_ms + REPORT_MS, self._report, life)

    # -- steps

    def _step(self, event: ev.Event) -> None:
        policy, now_ms = self.live, self._agenda.now_ms
        if policy is None:
            return
        commands = policy.step(event, now_ms)
        if commands.sends:
            self._world.send(self.name, commands.sends, policy.fleet.plan.epoch)
        if commands.answers:
            self._answer(commands.answers, now_ms)
        for letter in commands.dead_letters:
            self._agenda.schedule(now_ms + self._world.hops.next_ms(), self._buried, (self._life, letter))
        wake_ms = policy.next_wake_ms()
        if wake_ms is not None and wake_ms < self._timer_ms and (at_ms := max(wake_ms, now_ms + WAKE_MS_MIN)) < self._timer_ms:
            self._timer_ms = at_ms
            self._agenda.schedule(at_ms, self._woken, at_ms)

    def _answer(self, answers: list[Answer], now_ms: float) -> None:
        world = self._world
        delay_ms = world.hops.next_ms()
        records: list[TerminalRecord] = []
        ended: list[Ended] = []
        for answer in answers:
            entry = answer.entry
            if answer.outcome == COMPLETED and now_ms > entry.deadline_ms - world.blind_ms:
                answer = Answer(entry, EXPIRED, "deadline_exceeded", "it was computed too late")  # noqa: PLW2901 - the same answer, judged
            if world.watchers:
                path = [(step.variant, step.accuracy) for step in answer.path]
                ended.append(Ended(now_ms, entry.key, answer.outcome, answer.accuracy, now_ms, self.name, path))
            records.append((entry.shard, entry.key, answer.outcome, entry.endpoint, answer.accuracy))
        for watcher in world.watchers:
            watcher.terminal(ended)
        world.answer(records, delay_ms)

    def _buried(self, buried: tuple[int, DeadLetter]) -> None:
        life, letter = buried
        if life == self._life:
            self._step(ev.DeadLettered(letter.entry))


def _entries(requests: Iterable[Request], shard: int, offset: int, blind_ms: int) -> list[Entry]:
    """Of one partition, from this offset on."""
    return [
        Entry(
            request.key,
            shard,
            at,
            request.received_ms,
            request.endpoint,
            request.floor,
            None,
            request.timeout_ms + blind_ms,
            0,
            request.tenant,
            request.rows,
            PAYLOAD_BYTES,
            request,
        )
        for at, request in enumerate(requests, offset)
    ]

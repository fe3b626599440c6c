"""A model of the world around dispatchers: logs, workers, a group's rebalances and crashes; each step is checked against the promises."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from random import Random

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Answer, Commands, DeadLetter, Entry, Send, State
from broker.policy.expiry import BUCKET_MS
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark, restore
from schemas.catalog import Catalog, Defaults, EndpointSpec, Quota, TaskSpec, VariantSpec, split_variant_key
from schemas.limits import Limits
from schemas.plan import Binding, Plan
from schemas.profile import Latency
from schemas.telemetry import Departed, DispatcherReport, HostedVariant, Returned, Telemetry, WorkerReport

START_MS = 1_700_000_000_000
SHARDS = 3
DISPATCHERS = ("d0", "d1")
WORKERS = ("w0", "w1", "w2")
SETTINGS = DispatcherSettings()
LIMITS = Limits(recent_ids_max=50_000, waiting_max=40, waiting_bytes_max=4_000, tenants_max=3, commit_metadata_bytes_max=120)
FASHION = TaskSpec(
    name="fashion",
    variants=tuple(VariantSpec(name=name, file="f", sha256="", accuracy=accuracy) for name, accuracy in (("small", 0.8), ("middle", 0.9), ("large", 0.95))),
)
FLOWERS = TaskSpec(
    name="flowers", variants=tuple(VariantSpec(name=name, file="f", sha256="", accuracy=accuracy) for name, accuracy in (("one", 0.6), ("two", 0.7)))
)
ENDPOINTS = (
    EndpointSpec(name="shop", task="fashion", defaults=Defaults(min_accuracy=0.5, timeout_ms=400)),
    EndpointSpec(name="garden", task="flowers", quotas={"*": Quota(rate_rps=50.0, burst=8)}),
    EndpointSpec(name="broken", task="nowhere"),
)
ROW_MS = {"fashion/small": 1.0, "fashion/middle": 4.0, "fashion/large": 20.0, "flowers/one": 2.0, "flowers/two": 3.0}
ACCURACY = {"fashion/small": 0.8, "fashion/middle": 0.9, "fashion/large": 0.95, "flowers/one": 0.6, "flowers/two": 0.7}


@dataclass(frozen=True)
class Request:
    """A record of {p}.requests; without a key it cannot be attributed."""

    shard: int
    offset: int
    received_ms: int
    key: bytes | None
    endpoint: str = "shop"
    floor: float | None = None
    deadline_ms: int | None = None
    timeout_ms: int | None = None
    priority: int = 0
    tenant: str = ""
    rows: int = 1
    unreadable: bool = False

    def entry(self) -> Entry:
        refused = ("bad_request", "unreadable") if self.unreadable else None
        return Entry(
            self.key or b"",
            self.shard,
            self.offset,
            self.received_ms,
            self.endpoint,
            self.floor,
            self.deadline_ms,
            self.timeout_ms,
            self.priority,
            self.tenant,
            self.rows,
            100,
            self,
            refused,
        )


@dataclass(frozen=True)
class Response:
    """A record of {p}.responses."""

    key: bytes
    at_ms: float
    outcome: str
    variant: str = ""
    by: str = ""


@dataclass
class Worker:
    """A worker's process: what it says, and what it holds."""

    name: str
    incarnation: int = 0
    alive: bool = False
    lane: int | None = None
    state: str = "starting"
    credits: int = 64
    variants: dict[str, str] = field(default_factory=dict)
    orders: list[Send] = field(default_factory=list)
    done: list[Send] = field(default_factory=list)

    def report(self, now_ms: float, state: str) -> WorkerReport:
        latency = {key: {1: Latency(ROW_MS[key], ROW_MS[key] * 1.2, 9), 8: Latency(ROW_MS[key] * 4, ROW_MS[key] * 5, 9)} for key in self.variants}
        hosted = {key: HostedVariant(state=state, latency=latency[key]) for key, state in self.variants.items()}
        waiting = sum(order.entry.rows for order in self.orders)
        return WorkerReport(
            worker=self.name,
            incarnation=self.incarnation,
            accelerator="cpu",
            device="cpu0",
            host="here",
            at_ms=int(now_ms),
            lane=self.lane,
            state=state,
            credits=self.credits,
            batch_size_max=8,
            variants=hosted,
            waiting_rows=waiting,
        )


class Life:
    """One life of a dispatcher: a policy, and what it has been told, for judging its commands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.policy = DispatcherPolicy(name, SETTINGS, LIMITS)
        self.reports: dict[str, WorkerReport] = {}
        self.plan = Plan()
        self.read_to: dict[int, int] = {}
        """Next request to read, as an index into the shard's log."""
        self.responses_to: dict[int, int] = {}
        self.recover_at: dict[int, int] = {}
        """Index into the responses at which a shard has recovered."""
        self.skip: dict[int, Watermark] = {}
        """The watermark that a shard started from."""
        self.known_answers: dict[int, set[bytes]] = {}
        """Keys that had a terminal record when the shard became ours."""
        self.sent: dict[tuple[bytes, int, int], int] = defaultdict(int)
        """Attempts of a request (key, shard, offset) that a worker may have begun."""
        self.answered: set[tuple[bytes, int, int]] = set()
        self.pending_answers: list[Answer] = []
        self.pending_letters: list[DeadLetter] = []
        self.pending_burials: list[Request] = []
        self.unacknowledged: list[Entry] = []

    def forget(self, shard: int) -> None:
        """The shard is given up: what the policy knew of it is gone."""
        for identity in [identity for identity in self.sent if identity[1] == shard]:
            del self.sent[identity]
        self.answered = {identity for identity in self.answered if identity[1] != shard}


class World:
    """Runs operations by name, each with its own random numbers, and checks after each step what must always hold."""

    def __init__(self) -> None:
        self.now_ms = float(START_MS)
        self.requests: list[list[Request]] = [[] for _ in range(SHARDS)]
        self.next_offset = [0] * SHARDS
        self.responses: list[list[Response]] = [[] for _ in range(SHARDS)]
        self.buried: set[tuple[int, int]] = set()
        self.commits: dict[int, tuple[int, str]] = {}
        self.owner: dict[int, str] = {}
        self.catalog = Catalog()
        self.plan = Plan()
        self.workers = {name: Worker(name) for name in WORKERS}
        self.lives: dict[str, Life] = {}
        self.ids = 0
        for name in DISPATCHERS:
            self._start(name)
        self.catalog = Catalog({"fashion": FASHION, "flowers": FLOWERS}, {endpoint.name: endpoint for endpoint in ENDPOINTS})
        self._everyone(ev.CatalogObserved(self.catalog))
        self._assign({shard: DISPATCHERS[shard % 2] for shard in range(SHARDS)})

    def run(self, operation: str, random: Random) -> None:
        """One operation, by the name of its method."""
        getattr(self, operation)(random)

    # -- requests and responses

    def arrive(self, random: Random) -> None:
        """Requests are written: mostly ordinary ones, sometimes each kind of bad one."""
        for _ in range(random.choice((1, 1, 2, 5, 20))):
            self._write_request(random)

    def _write_request(self, random: Random) -> None:
        shard = random.randrange(SHARDS)
        if random.random() < 0.03:
            self.next_offset[shard] += random.choice((1, 3, 20_000))
        received_ms = int(self.now_ms) - random.choice((0, 0, 1))
        key: bytes | None = b"id-%d" % self.ids
        self.ids += 1
        if self.ids > 1 and random.random() < 0.12:
            key = b"id-%d" % random.randrange(self.ids)
        elif random.random() < 0.04:
            key = None
        deadline_ms = timeout_ms = None
        kind = random.randrange(8)
        if kind == 0:
            deadline_ms = received_ms - random.choice((0, 1, 5_000))
        elif kind == 1:
            timeout_ms = random.choice((0, 5, 18, 25))
        elif kind == 2:
            timeout_ms, deadline_ms = 300, received_ms + random.choice((60, 900))
        elif kind == 3:
            timeout_ms = random.choice((20_000, LIMITS.timeout_ms_max))
        elif kind == 4:
            deadline_ms = received_ms + LIMITS.timeout_ms_max + random.choice((-1, 0, 1))
        elif kind < 7:
            timeout_ms = random.randrange(30, 3_000)
        request = Request(
            shard,
            self.next_offset[shard],
            received_ms,
            key,
            random.choice(("shop", "shop", "shop", "garden", "garden", "broken", "nobody")),
            random.choice((None, 0.0, 0.8, 0.81, 0.65, 0.9, 0.95, 0.96)),
            deadline_ms,
            timeout_ms,
            random.choice((0, 0, 1, 5, 9)),
            random.choice(("", "a", "b", "c", "d", "e")),
            random.choice((1, 1, 1, 1, 7, 100)),
            random.random() < 0.03,
        )
        self.requests[shard].append(request)
        self.next_offset[shard] += 1

    def read(self, random: Random) -> None:
        """A dispatcher reads some of what has arrived."""
        life = self._life(random)
        for shard, at in list(life.read_to.items()):
            batch = self.requests[shard][at : at + random.choice((1, 3, 50))]
            life.read_to[shard] = at + len(batch)
            if not batch:
                continue
            burying = [request for request in batch if request.key is None]
            life.pending_burials.extend(burying)
            entries = [request.entry() for request in batch if request.key is not None]
            self._step(life, ev.Arrived(shard, entries, [request.offset for request in burying]))

    def hear(self, random: Random) -> None:
        """A dispatcher reads some responses; a shard that has read all the old ones has recovered."""
        life = self._life(random)
        for shard in list(life.responses_to):
            self._hear(life, shard, random.choice((1, 3, 1_000)))

    def _hear(self, life: Life, shard: int, count: int) -> None:
        at = life.responses_to[shard]
        keys = [response.key for response in self.responses[shard][at : at + count]]
        life.responses_to[shard] = at + len(keys)
        if keys:
            self._step(life, ev.Answered(shard, keys))
        if life.recover_at.get(shard, 1 << 60) <= life.responses_to[shard]:
            del life.recover_at[shard]
            self._step(life, ev.ShardRecovered(shard))

    def flush(self, random: Random) -> None:
        """The log takes what a dispatcher has been writing, and says so."""
        life = self._life(random)
        self._flush(life, twice=random.random() < 0.1)

    def _flush(self, life: Life, *, twice: bool = False) -> None:
        answers, life.pending_answers = life.pending_answers, []
        for answer in answers * (2 if twice else 1):
            self._respond(answer.entry.shard, Response(answer.entry.key, self.now_ms, answer.outcome, by=life.name))
        letters, life.pending_letters = life.pending_letters, []
        for letter in letters:
            self._step(life, ev.DeadLettered(letter.entry))
        burials, life.pending_burials = life.pending_burials, []
        for request in burials:
            self.buried.add((request.shard, request.offset))
            self._step(life, ev.OffsetsFinished(request.shard, [request.offset]))
        life.unacknowledged.clear()

    def _respond(self, shard: int, response: Response) -> None:
        self.responses[shard].append(response)

    def fail_sends(self, random: Random) -> None:
        """The log does not acknowledge some orders; the workers may have got them all the same."""
        life = self._life(random)
        if life.unacknowledged:
            failed = random.sample(life.unacknowledged, random.randint(1, len(life.unacknowledged)))
            if random.random() < 0.5:
                keys = {entry.key for entry in failed}
                for worker in self.workers.values():
                    worker.orders = [order for order in worker.orders if order.entry.key not in keys]
            life.unacknowledged.clear()
            self._step(life, ev.SendsFailed(failed))

    # -- workers

    def work(self, random: Random) -> None:
        """A worker answers some of its orders, in any order; some of them twice."""
        worker = self.workers[random.choice(WORKERS)]
        for _ in range(random.choice((1, 2, 10))):
            if worker.done and random.random() < 0.1:
                order = random.choice(worker.done)
            elif worker.orders:
                order = worker.orders.pop(random.randrange(len(worker.orders)))
                worker.done = [*worker.done[-5:], order]
            else:
                return
            if not worker.alive:
                return
            outcome = "completed" if self.now_ms <= order.entry.deadline_ms else "expired"
            if random.random() < 0.05:
                outcome = "failed"
            self._respond(order.entry.shard, Response(order.entry.key, self.now_ms, outcome, order.variant, worker.name))

    def lose_orders(self, random: Random) -> None:
        """Orders vanish: a lane's records were lost, or the worker hangs."""
        self.workers[random.choice(WORKERS)].orders.clear()

    def start_worker(self, random: Random) -> None:
        """A worker starts (anew): what an earlier life held is gone."""
        worker = self.workers[random.choice(WORKERS)]
        worker.incarnation = max(int(self.now_ms), worker.incarnation + 1)
        worker.alive, worker.state, worker.lane = True, "starting", None
        worker.orders, worker.done, worker.variants = [], [], {}
        worker.credits = random.choice((1, 8, 64, 512))
        self._report(worker)

    def change_worker(self, random: Random) -> None:
        """A worker follows the plan: variants load, get ready, fail or drain; it reports."""
        worker = self.workers[random.choice(WORKERS)]
        binding = self.plan.binding(worker.name)
        if not worker.alive:
            return
        worker.lane = binding.lane if binding is not None and random.random() < 0.9 else worker.lane
        for key in ROW_MS:
            if random.random() < 0.6 and binding is not None and key in binding.variants:
                worker.variants[key] = random.choice(("loading", "ready", "ready", "ready", "draining", "failed"))
            elif random.random() < 0.2:
                worker.variants.pop(key, None)
        worker.state = random.choice(("ready", "ready", "ready", "ready", "draining", "starting"))
        self._report(worker)

    def report(self, random: Random) -> None:
        """Every live worker reports, every dispatcher too."""
        for worker in self.workers.values():
            if worker.alive:
                self._report(worker)
        for name, life in self.lives.items():
            shards = tuple(life.policy.shards) if random.random() < 0.9 else ()
            self._tell(DispatcherReport(dispatcher=name, incarnation=1, at_ms=int(self.now_ms), shards=shards))

    def stop_worker(self, random: Random) -> None:
        """A worker ends: orderly, killed with a notice, or in silence; sometimes a stale notice comes along."""
        worker = self.workers[random.choice(WORKERS)]
        how = random.randrange(4)
        if how == 3:
            self._tell(Departed(role="worker", name=worker.name, incarnation=max(worker.incarnation - 1, 1), at_ms=int(self.now_ms)))
            return
        if not worker.alive:
            return
        worker.alive = False
        worker.orders = []
        if how == 0:
            self._report(worker, "stopped")
        elif how == 1:
            self._tell(Departed(role="worker", name=worker.name, incarnation=random.choice((0, worker.incarnation)), at_ms=int(self.now_ms)))

    def return_orders(self, random: Random) -> None:
        """A worker hands orders back unstarted."""
        worker = self.workers[random.choice(WORKERS)]
        if worker.alive and worker.orders:
            back = worker.orders[: random.randint(1, 5)]
            worker.orders = worker.orders[len(back) :]
            for order in back:
                for life in self.lives.values():
                    identity = (order.entry.key, order.entry.shard, order.entry.offset)
                    if life.sent.get(identity):
                        life.sent[identity] -= 1
            ids = tuple(order.entry.key.decode() for order in back)
            self._tell(Returned(worker=worker.name, incarnation=worker.incarnation, ids=ids, reason="drains", at_ms=int(self.now_ms)))

    def _report(self, worker: Worker, state: str = "") -> None:
        self._tell(worker.report(self.now_ms, state or worker.state))

    def _tell(self, record: Telemetry) -> None:
        for life in self.lives.values():
            if isinstance(record, WorkerReport):
                life.reports[record.worker] = record
            self._step(life, ev.TelemetryObserved(record))

    # -- control

    def change_plan(self, random: Random) -> None:
        """A plan is published: usually a newer one, with bindings that may name what does not exist."""
        keys = [*ROW_MS, "fashion/unknown", "nothing/at-all"]
        bindings = tuple(
            Binding(worker=name, accelerator="cpu", lane=lane, variants=tuple(key for key in keys if random.random() < 0.7))
            for lane, name in enumerate((*WORKERS, "stranger"))
            if random.random() < 0.9
        )
        shares = {"fashion": {"fashion/small": 0.5, "fashion/large": 0.5, "fashion/unknown": 1.0}} if random.random() < 0.2 else {}
        epoch = self.plan.epoch + random.choice((1, 1, 1, 0, -1))
        plan = Plan(epoch=epoch, bindings=bindings, shares=shares)
        if epoch >= self.plan.epoch:
            self.plan = plan
        for life in self.lives.values():
            if plan.epoch >= life.plan.epoch:
                life.plan = plan
        self._everyone(ev.PlanObserved(plan))

    def change_catalog(self, random: Random) -> None:
        """Tasks and endpoints go and come back, and a task loses or gains a variant."""
        fewer = TaskSpec(name="fashion", variants=FASHION.variants[: random.choice((0, 1, 2))])
        tasks = {"fashion": random.choice((FASHION, FASHION, fewer)), "flowers": FLOWERS}
        endpoints = {endpoint.name: endpoint for endpoint in ENDPOINTS if random.random() < 0.85}
        for name in list(tasks):
            if random.random() < 0.15:
                del tasks[name]
        self.catalog = Catalog(tasks, endpoints)
        self._everyone(ev.CatalogObserved(self.catalog))

    def restore_catalog(self, random: Random) -> None:
        """The whole catalog is back."""
        self.catalog = Catalog({"fashion": FASHION, "flowers": FLOWERS}, {endpoint.name: endpoint for endpoint in ENDPOINTS})
        self._everyone(ev.CatalogObserved(self.catalog))

    # -- time, commits, ownership

    def wait(self, random: Random) -> None:
        """A little time passes, with the timer going off when the policy asked for it."""
        self._pass(random.choice((0.4, 1.0, 4.0, 11.0, 60.0)))

    def wait_long(self, random: Random) -> None:
        """Leases run out, silent workers are given up."""
        self._pass(random.choice((300.0, 2_100.0, 4_000.0)))

    def _pass(self, span_ms: float) -> None:
        end_ms = self.now_ms + span_ms
        while True:
            wakes = [wake for life in self.lives.values() if (wake := life.policy.next_wake_ms()) is not None]
            next_ms = min([end_ms, self.now_ms + max(50.0, span_ms / 20), *(max(wake, self.now_ms + 0.5) for wake in wakes)])
            self.now_ms = next_ms
            self._everyone(ev.Ticked())
            if next_ms >= end_ms:
                return

    def commit(self, random: Random) -> None:
        """A dispatcher commits."""
        self._commit(self._life(random))

    def _commit(self, life: Life) -> None:
        for shard, (offset, metadata) in life.policy.commits().items():
            assert len(metadata) <= LIMITS.commit_metadata_bytes_max
            self.commits[shard] = (offset, metadata)
        self._check_commits()

    def rebalance(self, random: Random) -> None:
        """The group assigns the shards anew; what stays is handed out again from the commit."""
        if random.random() < 0.8:
            for life in self.lives.values():
                self._commit(life)
        self._assign({shard: random.choice(DISPATCHERS) for shard in range(SHARDS)})
        for life in self.lives.values():
            for shard in life.read_to:
                life.read_to[shard] = self._index(shard, self.commits.get(shard, (0, ""))[0])

    def crash(self, random: Random) -> None:
        """A dispatcher dies with what it held; what it was writing may or may not have got through. Its successor starts from the log."""
        life = self._life(random)
        for answer in life.pending_answers:
            if random.random() < 0.5:
                self._respond(answer.entry.shard, Response(answer.entry.key, self.now_ms, answer.outcome, by=life.name))
        mine = {shard: owner for shard, owner in self.owner.items() if owner == life.name}
        for shard in mine:
            del self.owner[shard]
        self._start(life.name)
        if random.random() < 0.5:
            mine = {shard: random.choice(DISPATCHERS) for shard in mine}
        self._assign(self.owner | mine)

    def _start(self, name: str) -> None:
        life = self.lives[name] = Life(name)
        self._step(life, ev.CatalogObserved(self.catalog))
        self._step(life, ev.PlanObserved(self.plan))
        life.plan = self.plan

    def _assign(self, owner: dict[int, str]) -> None:
        for life in self.lives.values():
            for shard in list(life.read_to):
                if owner.get(shard) != life.name:
                    del life.read_to[shard], life.responses_to[shard]
                    life.recover_at.pop(shard, None)
                    life.forget(shard)
                    self._step(life, ev.ShardRevoked(shard))
        for shard, name in owner.items():
            life = self.lives[name]
            if shard in life.read_to:
                continue
            offset, metadata = self.commits.get(shard, (0, ""))
            watermark, since_ms = restore(offset, metadata)
            life.skip[shard] = restore(offset, metadata)[0]
            life.read_to[shard] = self._index(shard, offset)
            log = self.responses[shard]
            life.responses_to[shard] = next((at for at, response in enumerate(log) if response.at_ms >= since_ms), len(log))
            life.recover_at[shard] = len(log)
            life.known_answers[shard] = {response.key for response in log}
            self._step(life, ev.ShardAssigned(shard, watermark))
        self.owner = dict(owner)

    def _index(self, shard: int, offset: int) -> int:
        return next((at for at, request in enumerate(self.requests[shard]) if request.offset >= offset), len(self.requests[shard]))

    def _life(self, random: Random) -> Life:
        return self.lives[random.choice(DISPATCHERS)]

    # -- steps and their checks

    def _everyone(self, event: ev.Event) -> None:
        for life in self.lives.values():
            self._step(life, event)

    def _step(self, life: Life, event: ev.Event) -> None:
        outstanding = {lane.worker: lane.outstanding_rows for lane in life.policy.fleet.lanes}
        commands = life.policy.step(event, self.now_ms)
        self._carry_out(life, commands)
        check_books(life.policy)
        self._check_credits(life, commands, outstanding)
        if isinstance(event, ev.Ticked):
            check_expiry(life.policy, self.now_ms)

    def _carry_out(self, life: Life, commands: Commands) -> None:
        for send in commands.sends:
            self._check_send(life, send)
            worker = self.workers[send.worker]
            if worker.alive and worker.incarnation == send.incarnation:
                worker.orders.append(send)
            life.unacknowledged.append(send.entry)
        for answer in commands.answers:
            self._check_answer(life, answer)
            life.pending_answers.append(answer)
        life.pending_letters.extend(commands.dead_letters)
        for letter in commands.dead_letters:
            assert letter.entry.attempts == LIMITS.attempts_max

    def _check_send(self, life: Life, send: Send) -> None:
        entry = send.entry
        report, binding = life.reports[send.worker], life.plan.binding(send.worker)
        task, name = split_variant_key(send.variant)
        known = self.catalog.tasks[task].variant(name)
        assert report.state == "ready"
        assert report.incarnation == send.incarnation, "only to the life of a worker that is known"
        assert report.variants[send.variant].state == "ready"
        assert binding is not None
        assert send.variant in binding.variants
        assert binding.lane == send.lane == report.lane
        assert known is not None
        assert known.accuracy == send.accuracy >= (entry.floor or 0.0), "never worse than asked for"
        assert self.catalog.endpoints[entry.endpoint].task == task
        assert 1 <= send.attempt <= LIMITS.attempts_max
        assert self.now_ms < entry.deadline_ms, "nobody waits for it"
        assert not life.skip[entry.shard].is_finished(entry.offset), "it was finished before the restart"
        assert entry.shard in life.read_to, "not ours"
        first = next(request for request in self.requests[entry.shard] if request.key == entry.key)
        if first.offset == entry.offset:
            assert entry.key not in life.known_answers[entry.shard], "its answer was in the log when the shard became ours"
        life.sent[(entry.key, entry.shard, entry.offset)] += 1

    def _check_answer(self, life: Life, answer: Answer) -> None:
        entry = answer.entry
        identity = (entry.key, entry.shard, entry.offset)
        assert identity not in life.answered, "answered twice"
        life.answered.add(identity)
        assert answer.outcome in ("rejected", "expired", "failed")
        assert answer.message
        if answer.outcome == "rejected":
            assert not life.sent.get(identity), "a worker had it"
        if answer.outcome == "expired":
            assert self.now_ms >= entry.deadline_ms
            assert answer.code == "deadline_exceeded"
        if answer.code == "infeasible_deadline":
            assert "ms" in answer.message

    def _check_credits(self, life: Life, commands: Commands, outstanding: dict[str, int]) -> None:
        policy = life.policy
        share = policy.fleet.pools[0].share if policy.fleet.pools else 1.0
        for lane in policy.fleet.lanes:
            sends = [send for send in commands.sends if send.worker == lane.worker]
            rows = lane.outstanding_rows - sum(send.entry.rows for send in sends)
            for send in sends:
                assert rows == 0 or rows < lane.credit_rows * share, "more than the worker's credits"
                rows += send.entry.rows

    def _check_commits(self) -> None:
        """A committed watermark covers only what is finished, or is somebody's who has not finished."""
        uncovered: set[bytes] = set()
        covered: list[Request] = []
        for shard in range(SHARDS):
            watermark = restore(*self.commits[shard])[0] if shard in self.commits else Watermark()
            for request in self.requests[shard]:
                if watermark.is_finished(request.offset):
                    covered.append(request)
                elif request.key is not None:
                    uncovered.add(request.key)
        answered = {response.key for log in self.responses for response in log}
        for request in covered:
            if request.key is None:
                assert (request.shard, request.offset) in self.buried, "committed past a record that is not in the dead letters"
            else:
                assert request.key in answered or request.key in uncovered, f"{request.key!r} is lost: committed, and not answered"

    # -- the end

    def settle(self) -> None:
        """Let everything come to rest: all is read, written and heard, and all deadlines and leases pass."""
        for worker in self.workers.values():
            worker.orders.clear()
        for _ in range(3):
            for life in self.lives.values():
                self._drain(life)
            self._pass(6_000.0)
        self.now_ms += LIMITS.timeout_ms_max + 1_000.0
        for _ in range(4):
            self._pass(300.0)
            for life in self.lives.values():
                self._drain(life)

    def _drain(self, life: Life) -> None:
        for shard in list(life.read_to):
            self._hear(life, shard, 1 << 30)
            while life.read_to[shard] < len(self.requests[shard]):
                batch = self.requests[shard][life.read_to[shard] :]
                life.read_to[shard] = len(self.requests[shard])
                burying = [request for request in batch if request.key is None]
                life.pending_burials.extend(burying)
                entries = [request.entry() for request in batch if request.key is not None]
                self._step(life, ev.Arrived(shard, entries, [request.offset for request in burying]))
        self._flush(life)
        for shard in list(life.read_to):
            self._hear(life, shard, 1 << 30)
        self._commit(life)

    def check_outcomes(self) -> None:
        """Every id that arrived has its answer; the first record of a key keeps every promise."""
        requests = {request.key: request for log in reversed(self.requests) for request in reversed(log) if request.key is not None}
        first: dict[bytes, Response] = {}
        for log in self.responses:
            for response in log:
                first.setdefault(response.key, response)
        assert set(requests) == set(first), "an id without an outcome"
        for key, response in first.items():
            same = [request for log in self.requests for request in log if request.key == key]
            if response.outcome == "completed":
                assert response.by in WORKERS
                assert ACCURACY[response.variant] >= min(request.floor or 0.0 for request in same)
        for shard in range(SHARDS):
            for request in self.requests[shard]:
                if request.key is None:
                    assert (shard, request.offset) in self.buried

    def check_nothing_left(self) -> None:
        """No state outlives the requests."""
        for life in self.lives.values():
            policy = life.policy
            assert policy.live == 0
            assert policy.waiting == 0
            assert policy.fleet.orders == {}
            assert policy._held_bytes == 0
            assert policy.next_wake_ms() is None
            assert not any(shard.own_answers or shard.held_back or shard.live for shard in policy.shards.values())
            for lane in policy.fleet.lanes:
                assert (lane.outstanding_rows, lane.outstanding_ms, lane.orders) == (0, 0.0, {})
            for pool in policy.fleet.pools:
                waiting = pool.waiting
                assert (waiting.count, waiting.work_ms, waiting.deadline_sum_ms, waiting.due, waiting.rows) == (0, 0.0, 0.0, {}, {})
            for number, shard in policy.shards.items():
                assert shard.watermark.low >= shard.next_offset, "all is finished, and the watermark says so"
                assert shard.watermark.finished_above == 0
                assert self.commits[number][0] == shard.watermark.low


def check_books(policy: DispatcherPolicy) -> None:
    """What the policy counts is what there is."""
    on_lanes: dict[bytes, object] = {}
    for lane in policy.fleet.lanes:
        assert lane.outstanding_rows == sum(order.rows for order in lane.orders.values()) >= 0
        assert abs(lane.outstanding_ms - sum(order.work_ms for order in lane.orders.values())) < 1e-6
        assert lane.outstanding_ms > -1e-6
        for key, order in lane.orders.items():
            assert key not in on_lanes, "two lanes think that they have it"
            on_lanes[key] = order
            assert order.lane is lane
    assert on_lanes == policy.fleet.orders
    live = [entry for shard in policy.shards.values() for entry in shard.live.values()]
    assert policy._held_bytes == sum(entry.bytes for entry in live if entry.admitted)
    for entry in live:
        assert (entry.state == State.LEASED) <= (entry.key in policy.fleet.orders), "leased, and nobody has it"
    waiting = [entry for entry in live if entry.state == State.WAITING]
    assert sum(pool.waiting.count for pool in policy.fleet.pools) == len(waiting)
    for pool in policy.fleet.pools:
        mine = [entry for entry in waiting if entry.task in pool.tasks]
        assert {id(entry) for entry in mine} == {id(entry) for entry in pool.waiting.entries()}
        assert abs(pool.waiting.work_ms - sum(entry.work_ms for entry in mine)) < 1e-3
        assert sum(pool.waiting.rows.values()) == sum(entry.rows for entry in mine)
        assert abs(sum(sum(due.values()) for due in pool.waiting.due.values()) - sum(entry.work_ms for entry in mine)) < 1e-3


def check_expiry(policy: DispatcherPolicy, now_ms: float) -> None:
    """No deadline is forgotten: after a tick nothing that is due goes without an answer."""
    for shard in policy.shards.values():
        for entry in shard.live.values():
            grace_ms = SETTINGS.expiry_grace_ms if entry.attempts else 0.0
            if entry.state in (State.WAITING, State.LEASED, State.HELD):
                assert now_ms < entry.deadline_ms + grace_ms + BUCKET_MS, f"{entry.key!r} is overdue by {now_ms - entry.deadline_ms} ms"

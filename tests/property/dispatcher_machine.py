"""A model of the world around dispatchers: logs, workers, a group's rebalances and crashes; each step is checked against the promises."""

from __future__ import annotations

from collections import Counter
from random import Random

from dispatcher_checks import check_answer, check_books, check_commits, check_credits, check_expiry, check_send
from dispatcher_outside import Outside
from dispatcher_world import DISPATCHERS, LIMITS, SHARDS, START_MS, Life, Request, Response, whole_catalog

from broker.policy import events as ev
from broker.policy.entry import Commands
from broker.policy.watermark import restore


class World(Outside):
    """Runs operations by name, each with its own random numbers, and checks after each step what must always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = float(START_MS)
        self.requests: list[list[Request]] = [[] for _ in range(SHARDS)]
        self.next_offset = [0] * SHARDS
        self.responses: list[list[Response]] = [[] for _ in range(SHARDS)]
        self.buried: set[tuple[int, int]] = set()
        self.commits: dict[int, tuple[int, str]] = {}
        self.owner: dict[int, str] = {}
        self.reached: Counter[str] = Counter()
        """How often which things happened, to see that they do."""
        self.ids = 0
        for name in DISPATCHERS:
            self._start(name)
        self.catalog = whole_catalog()
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
        kind = random.randrange(16)
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
        elif kind < 15:
            timeout_ms = random.choice((60, 300, 1_500, 6_000, 15_000))
        request = Request(
            shard,
            self.next_offset[shard],
            received_ms,
            key,
            random.choice((*["shop"] * 8, *["garden"] * 4, "broken", "nobody")),
            random.choice((None, None, 0.0, 0.6, 0.8, 0.81, 0.65, 0.9, 0.95, 0.96)),
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
            batch = self.requests[shard][at : at + random.choice((1, 10, 50))]
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
            self._hear(life, shard, random.choice((1, 20, 1_000)))

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

    # -- time, commits, ownership

    def wait(self, random: Random) -> None:
        """A little time passes, with the timer going off when the policy asked for it."""
        self._pass(random.choice((0.4, 1.0, 4.0, 11.0, 30.0)))

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
        check_commits(self)

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

    def _step(self, life: Life, event: ev.Event) -> None:
        commands = life.policy.step(event, self.now_ms)
        self._carry_out(life, commands)
        check_books(life.policy)
        check_credits(life.policy, commands)
        if isinstance(event, ev.Ticked):
            check_expiry(life.policy, self.now_ms)

    def _carry_out(self, life: Life, commands: Commands) -> None:
        for send in commands.sends:
            self.reached["sends"] += 1
            self.reached["retries"] += send.attempt > 1
            check_send(self.catalog, self.requests[send.entry.shard], life, send, self.now_ms)
            worker = self.workers[send.worker]
            if worker.alive and worker.incarnation == send.incarnation:
                worker.orders.append(send)
            life.unacknowledged.append(send.entry)
        for answer in commands.answers:
            self.reached[f"refused-{answer.code}"] += 1
            check_answer(life, answer, self.now_ms)
            life.pending_answers.append(answer)
        life.pending_letters.extend(commands.dead_letters)
        for letter in commands.dead_letters:
            self.reached["dead-letters"] += 1
            assert letter.entry.attempts == LIMITS.attempts_max

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

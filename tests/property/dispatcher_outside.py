"""What happens around a dispatcher in the model: workers come, work, go and lose things; plans and catalogs change."""

from __future__ import annotations

from random import Random

from dispatcher_world import ENDPOINTS, FASHION, FLOWERS, ROW_MS, WORKERS, Life, Response, Worker, whole_catalog

from broker.policy import events as ev
from broker.policy.entry import Send
from schemas.catalog import Catalog, TaskSpec
from schemas.plan import Binding, Plan
from schemas.telemetry import Departed, DispatcherReport, Returned, Telemetry, WorkerReport


class Outside:
    """The operations of workers, of the planner and of the catalog, on what the whole world shares."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.catalog = Catalog()
        self.plan = Plan()
        self.workers = {name: Worker(name) for name in WORKERS}
        self.lives: dict[str, Life] = {}

    def _respond(self, shard: int, response: Response) -> None:
        raise NotImplementedError

    def _step(self, life: Life, event: ev.Event) -> None:
        raise NotImplementedError

    def _pass(self, span_ms: float) -> None:
        raise NotImplementedError

    def _everyone(self, event: ev.Event) -> None:
        for life in self.lives.values():
            self._step(life, event)

    # -- workers

    def work(self, random: Random) -> None:
        """Workers answer some of their orders, in any order; some of them twice."""
        for worker in self.workers.values():
            for _ in range(random.choice((1, 3, 30)) if worker.alive else 0):
                if worker.done and random.random() < 0.05:
                    self._finish(worker, random.choice(worker.done), random)
                elif worker.orders:
                    order = worker.orders.pop(random.randrange(len(worker.orders)))
                    worker.done = [*worker.done[-5:], order]
                    self._finish(worker, order, random)

    def _finish(self, worker: Worker, order: Send, random: Random) -> None:
        outcome = "completed" if self.now_ms <= order.entry.deadline_ms else "expired"
        if random.random() < 0.05:
            outcome = "failed"
        self._respond(order.entry.shard, Response(order.entry.key, self.now_ms, outcome, order.variant, worker.name))

    def lose_orders(self, random: Random) -> None:
        """Orders vanish: a lane's records were lost, or the worker hangs."""
        self.workers[random.choice(WORKERS)].orders.clear()

    def start_worker(self, random: Random) -> None:
        """A worker starts (anew): what an earlier life held is gone."""
        self._start_worker(self.workers[random.choice(WORKERS)], random)

    def _start_worker(self, worker: Worker, random: Random) -> None:
        worker.incarnation = max(int(self.now_ms), worker.incarnation + 1)
        worker.alive, worker.state, worker.lane = True, "starting", None
        worker.orders, worker.done, worker.variants = [], [], {}
        worker.credits = random.choice((1, 8, 64, 512))
        self._report(worker)

    def heal(self, random: Random) -> None:
        """All is well: every worker runs what the plan says, and the catalog is whole."""
        self.restore_catalog(random)
        for worker in self.workers.values():
            if not worker.alive:
                self._start_worker(worker, random)
            binding = self.plan.binding(worker.name)
            if binding is not None:
                worker.lane, worker.state = binding.lane, "ready"
                worker.variants = {key: "ready" for key in ROW_MS if key in binding.variants}
            self._report(worker)

    def change_worker(self, random: Random) -> None:
        """A worker follows the plan, more or less: variants load, get ready, fail or drain; it reports."""
        worker = self.workers[random.choice(WORKERS)]
        binding = self.plan.binding(worker.name)
        if not worker.alive:
            return
        worker.lane = binding.lane if binding is not None and random.random() < 0.9 else worker.lane
        for key in ROW_MS:
            if random.random() < 0.6 and binding is not None and key in binding.variants:
                worker.variants[key] = random.choice(("loading", *["ready"] * 6, "draining", "failed"))
            elif random.random() < 0.1:
                worker.variants.pop(key, None)
        worker.state = random.choice((*["ready"] * 8, "draining", "starting"))
        self._report(worker)

    def hang(self, random: Random) -> None:
        """All workers lose their orders and go on reporting, until leases are over."""
        for worker in self.workers.values():
            worker.orders.clear()
        for _ in range(5):
            self.report(random)
            self._pass(random.choice((300.0, 500.0)))

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
        self.catalog = whole_catalog()
        self._everyone(ev.CatalogObserved(self.catalog))

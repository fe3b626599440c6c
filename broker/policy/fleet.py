"""What the dispatcher knows of the rest of the system: catalog, plan, workers' lanes, other dispatchers; and the pools that follow from it."""

from __future__ import annotations

from broker.policy.entry import Entry, State
from broker.policy.graphs import Graphs
from broker.policy.ladder import Ladder
from broker.policy.lanes import Lane, Order
from broker.policy.pool import Pool
from broker.policy.routes import Route
from broker.policy.settings import DispatcherSettings
from schemas.catalog import Catalog, EndpointSpec, TaskSpec
from schemas.effective import ladder_name, learned_tasks
from schemas.limits import Limits
from schemas.plan import Binding, Plan
from schemas.telemetry import Departed, DispatcherReport, Returned, WorkerReport

STOPPED = "stopped"
UNHOSTED, LATE = "unhosted", "late"


class Fleet:
    """A fold over control records; `resettle` brings the pools in line and hands back what waited in pools that are no more."""

    def __init__(self, name: str, settings: DispatcherSettings, limits: Limits) -> None:
        self.name = name
        self.catalog = Catalog()
        self.ladders: dict[str, Ladder] = {}
        self.graphs = Graphs()
        self._seen: tuple[dict[str, TaskSpec], dict[str, EndpointSpec]] = ({}, {})
        self._learned_tasks: dict[str, TaskSpec] = {}
        """Tasks under learned accuracies, by their ladders' names."""
        self._learned_ladders: dict[str, TaskSpec] = {}
        """The same, of endpoints that are no more, too."""
        self.routes: dict[str, Route] = {}
        """By endpoint, as far as anybody has asked; ask `route` for others."""
        self.layouts = 0
        """Counts the layouts of pools: with each they are new."""
        self.version = 0
        """Counts what changes what lanes host or cost."""
        self.plan = Plan()
        self.orders: dict[bytes, Order] = {}
        self.pools: list[Pool] = []
        self.share = 1.0
        """This dispatcher's part of every lane."""
        self._settings = settings
        self._limits = limits
        self._lanes: dict[str, Lane] = {}
        self._reports: dict[str, WorkerReport] = {}
        self._dispatchers_ms: dict[str, float] = {}
        self.pool_by_task: dict[str, Pool] = {}
        """The same as `pool`; only read from outside."""
        self._layout: object = None
        self._layout_due = True
        """Some lane has come, gone, or hosts something else."""
        self._costs_due = False
        """Some lane's costs have changed: whoever works with them is told a few times a second, not for each of a thousand reports."""
        self._bindings: dict[str, Binding] = {}

    def route(self, endpoint: str) -> Route | None:
        """How requests of this endpoint are taken on; None where the catalog does not have it."""
        spec = self.catalog.endpoints.get(endpoint)
        if spec is None:
            return None
        graph = spec.graph is not None
        ladder = None if graph else self.ladder(spec)
        route = self.routes[endpoint] = Route(defaults=spec.defaults, quotas=spec.quotas, graph=graph, task=spec.task, ladder=ladder)
        return route

    def pool(self, task: str) -> Pool:
        """The pool of a task of the catalog."""
        return self.pool_by_task[task]

    @property
    def ready_lanes(self) -> int:
        """How many lanes can be sent to."""
        return sum(lane.ready for lane in self._lanes.values())

    @property
    def lanes(self) -> list[Lane]:
        """All lanes whose worker was heard of."""
        return list(self._lanes.values())

    # -- what is observed

    def observe_catalog(self, catalog: Catalog) -> list[Entry]:
        """Take over the catalog; returns all that waits, to be judged anew."""
        learned, seen = learned_tasks(catalog), (dict(catalog.tasks), dict(catalog.endpoints))
        only_learned = seen == self._seen and catalog.learned != self.catalog.learned
        self.catalog, self._seen = catalog, seen
        self.routes.clear()
        if only_learned and learned == self._learned_tasks:
            return []
        self._learned_tasks = learned
        self.graphs.observe(catalog)
        self._learned_ladders |= learned
        self.ladders = {name: Ladder(task) for name, task in catalog.tasks.items()} | self.graphs.ladders(catalog)
        self.ladders |= {name: Ladder(task, name=name) for name, task in self._kept_ladders(catalog).items()}
        self._refresh()
        self._layout, self._layout_due = None, True
        return self.resettle()

    def _kept_ladders(self, catalog: Catalog) -> dict[str, TaskSpec]:
        """Those of learned accuracies that ever were, while their task is: requests under way may still be on them."""
        return {name: task for name, task in self._learned_ladders.items() if task.name in catalog.tasks}

    def ladder(self, endpoint: EndpointSpec) -> Ladder | None:
        """Of an endpoint of one stage, under its accuracy policy."""
        return self.ladders.get(ladder_name(endpoint.task, endpoint.accuracy_policy))

    def observe_plan(self, plan: Plan) -> None:
        """Follow a plan; an older epoch than the one held is ignored."""
        if plan.epoch < self.plan.epoch:
            return
        self.plan = plan
        self._bindings = {binding.worker: binding for binding in plan.bindings}
        self._refresh()

    def observe_worker(self, report: WorkerReport, now_ms: float) -> dict[bytes, Order]:
        """Follow a worker; returns the orders of an earlier life of it, which are lost."""
        lane = self._lanes.get(report.worker)
        lost: dict[bytes, Order] = {}
        if lane is not None and report.incarnation < lane.incarnation:
            return lost
        if report.state == STOPPED:
            return self._forget(report.worker)
        if lane is None or report.incarnation > lane.incarnation or report.accelerator != lane.accelerator:
            lost = self._forget(report.worker)
            lane = self._lanes[report.worker] = Lane(report)
            self._lend_part(lane)
        hosted = lane.hosted
        lane.observe(report, self._bindings.get(report.worker), self.ladders, self._limits.lane_rows_max)
        if lane.hosted != hosted:
            self._layout_due = True
            self.version += 1
        else:
            self._costs_due = True
        lane.seen_ms = now_ms
        if report.waiting_rows == 0:
            lane.stalled = False
        self._reports[report.worker] = report
        return lost

    def observe_dispatcher(self, report: DispatcherReport, now_ms: float) -> None:
        """Know who shares the lanes' credits."""
        if report.shards:
            self._dispatchers_ms[report.dispatcher] = now_ms
        else:
            self._dispatchers_ms.pop(report.dispatcher, None)
        self._share(now_ms)

    def departed(self, record: Departed) -> dict[bytes, Order]:
        """A supervisor saw a process end; returns the orders that are lost with it."""
        if record.role == "dispatcher":
            if self._dispatchers_ms.pop(record.name, None) is not None:
                self._share(record.at_ms)
            return {}
        lane = self._lanes.get(record.name)
        if lane is None or (record.incarnation and record.incarnation != lane.incarnation) or lane.incarnation > record.at_ms:
            return {}
        return self._forget(record.name)

    def returned(self, record: Returned) -> dict[bytes, Order]:
        """A worker hands orders back."""
        lane = self._lanes.get(record.worker)
        back: dict[bytes, Order] = {}
        for request_id in record.ids if lane is not None and record.incarnation == lane.incarnation else ():
            order = self.take_back(request_id.encode())
            if order is not None:
                back[order.entry.key] = order
                if record.cause == UNHOSTED:
                    order.lane.drop_variant(order.variant)
                    self._layout_due = True
                elif record.cause == LATE:
                    # The time only gets shorter: what could not be met there will not be later on.
                    order.entry.late += ((order.lane.worker, order.variant),)
        return back

    def take_back(self, key: bytes) -> Order | None:
        """The order no longer occupies its lane."""
        order = self.orders.pop(key, None)
        if order is not None:
            order.lane.release(key)
            order.lane.interrupted()
        return order

    def overdue(self, now_ms: float) -> dict[bytes, Order]:
        """Orders whose lease is over, and all orders of workers that have not been heard of; they are taken back."""
        lost: dict[bytes, Order] = {}
        for worker, lane in list(self._lanes.items()):
            if now_ms - lane.seen_ms > self._settings.worker_lost_ms:
                lost |= self._forget(worker)
                continue
            if not lane.orders:
                continue
            late = [key for key, order in lane.orders.items() if order.lease_until_ms <= now_ms]
            for key in late:
                order = self.take_back(key)
                if order is not None:
                    lost[key] = order
            if late:
                lane.stall()
        self._share(now_ms)
        if self._costs_due:
            self._costs_due = False
            self.version += 1
            for pool in self.pools:
                pool.costs_changed()
        return lost

    def _forget(self, worker: str) -> dict[bytes, Order]:
        lane = self._lanes.pop(worker, None)
        self._reports.pop(worker, None)
        if lane is None:
            return {}
        orders = lane.lose()
        self.version += 1
        self._layout_due = True
        for key in orders:
            self.orders.pop(key, None)
        return orders

    def _refresh(self) -> None:
        self.version += 1
        self._layout_due = True
        for worker, report in self._reports.items():
            self._lanes[worker].observe(report, self._bindings.get(worker), self.ladders, self._limits.lane_rows_max)

    def _share(self, now_ms: float) -> None:
        lost_ms = self._settings.worker_lost_ms
        for name, seen_ms in list(self._dispatchers_ms.items()):
            if now_ms - seen_ms > lost_ms:
                del self._dispatchers_ms[name]
        others = len(self._dispatchers_ms.keys() - {self.name})
        share = 1.0 / (1 + others)
        if share != self.share:
            self.share = share
            for pool in self.pools:
                pool.share = share
            for lane in self._lanes.values():
                self._lend_part(lane)

    def _lend_part(self, lane: Lane) -> None:
        lane.share_out(self.share, self._settings.window_ms * self.share)

    # -- pools

    def resettle(self) -> list[Entry]:
        """Bring the pools in line with lanes and catalog. Returns what waited in pools that changed their shape, to be pushed again."""
        if not self._layout_due:
            return []
        self._layout_due = False
        components = self._components()
        layout = {tasks: tuple(id(lane) for lane in lanes) for tasks, lanes in components.items()}
        if layout == self._layout:
            for pool in self.pools:
                pool.lanes_changed()
                pool.shares = self._shares()
            return []
        self._layout = layout
        self.layouts += 1
        moved = [entry for pool in self.pools for entry in pool.waiting.entries()]
        for entry in moved:
            entry.state = State.NEW
        self.pools = [Pool(tasks, self.ladders, lanes, self._settings, self._limits.tenants_max) for tasks, lanes in components.items()]
        self.pool_by_task = {task: pool for pool in self.pools for task in pool.tasks}
        for pool in self.pools:
            pool.share = self.share
            pool.shares = self._shares()
        return moved

    def _shares(self) -> dict[str, dict[str, float]]:
        """The plan's, for the ladders of learned accuracies, too."""
        shares = self.plan.shares
        return shares | {name: shares[task.name] for name, task in self._learned_tasks.items() if task.name in shares}

    def _components(self) -> dict[frozenset[str], list[Lane]]:
        """Tasks that are connected by lanes hosting more than one of them."""
        group_of = {task: {task} for task in self.ladders}
        ready = [lane for lane in self._lanes.values() if lane.ready and lane.options]
        for lane in ready:
            tasks = list(lane.options)
            merged = set[str]().union(*(group_of[task] for task in tasks))
            for task in merged:
                group_of[task] = merged
        components: dict[frozenset[str], list[Lane]] = {frozenset(group): [] for group in group_of.values()}
        for lane in ready:
            components[frozenset(group_of[next(iter(lane.options))])].append(lane)
        return components

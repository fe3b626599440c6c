"""The exact program of small instances, written apart from the optimizer: a binary for each worker and variant, a flow for each route and worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from scaler.optimizers.headrace.routes import Routes, Run
from scaler.optimizers.headrace.settings import HeadraceSettings
from scaler.optimizers.snapshot import Snapshot, Worker
from schemas.plan import Binding

LOAD_EPSILON = 1e-6


class Exact:
    """max fair x least + sum over classes of rate share x part x (served + accuracy) - loads."""

    def __init__(self, snapshot: Snapshot, routes: Routes, settings: HeadraceSettings) -> None:
        self.settings = settings
        self.workers: list[tuple[Worker, int]] = [(worker, at) for at, crew in enumerate(routes.crews) for worker in crew.workers]
        self.routes = routes
        self.costs: list[float] = []
        self.upper: list[float] = []
        self.whole: list[int] = []
        self.rows: list[tuple[dict[int, float], float]] = []
        self.hosts: dict[tuple[str, str], int] = {}
        self.variants = {variant.key: variant for variant in snapshot.variants}
        horizon_ms = settings.horizon_intervals * snapshot.interval_ms
        for worker, at in self.workers:
            for key, variant in self.variants.items():
                cost = variant.costs.get(routes.crews[at].type)
                if cost is not None and key not in worker.refused:
                    lost = settings.switching * min(cost.load_ms / horizon_ms, 1.0) + LOAD_EPSILON
                    self.hosts[worker.name, key] = self.column(0.0 if key in worker.hosted else -lost / len(self.workers), 1.0, whole=1)
        self.flows()
        self.memory()

    def column(self, gain: float, upper: float = np.inf, whole: int = 0) -> int:
        self.costs.append(-gain)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.costs) - 1

    def flows(self) -> None:
        settings = self.settings
        busy: dict[tuple[str, str], dict[int, float]] = {}
        least = self.column(settings.fair, 1.0)
        total = sum(each.rate_rps for each in self.routes.classes)
        for each in self.routes.classes:
            gains = {number: settings.served + settings.accuracy * self.routes.routes[number].accuracy for number in each.routes}
            ready = settings.idle / sum(one.idle for one in self.routes.classes) if each.idle else 0.0
            parts = {number: self.column(each.rate_rps / total * gain + ready) for number, gain in gains.items()}
            if parts:
                self.rows.append((dict.fromkeys(parts.values(), 1.0), 1.0))
                if not each.idle:
                    self.rows.append(({least: 1.0} | dict.fromkeys(parts.values(), -1.0), 0.0))
            for number, part in parts.items():
                route = self.routes.routes[number]
                for rows, runs in zip(route.rows, route.runs, strict=True):
                    self.rows.append(({part: each.rate_rps * rows} | self.stage(runs, busy), 0.0))
        self.time(busy)

    def stage(self, runs: Sequence[Run], busy: dict[tuple[str, str], dict[int, float]]) -> dict[int, float]:
        flows: dict[int, float] = {}
        for run in runs:
            for worker, at in self.workers:
                if at == run.crew and (worker.name, run.variant) in self.hosts:
                    flow = self.column(0.0)
                    flows[flow] = -1.0
                    busy.setdefault((worker.name, run.variant), {})[flow] = run.row_s
        return flows

    def time(self, busy: dict[tuple[str, str], dict[int, float]]) -> None:
        for worker, _ in self.workers:
            everything: dict[int, float] = {}
            for (name, key), row in busy.items():
                if name == worker.name:
                    self.rows.append((row | {self.hosts[name, key]: -1.0}, 0.0))
                    everything |= row
            self.rows.append((everything, 1.0))

    def memory(self) -> None:
        for worker, _ in self.workers:
            if worker.memory_bytes_max:
                row = {
                    column: float(self.variants[key].costs[worker.type].memory_bytes)
                    for (name, key), column in self.hosts.items()
                    if name == worker.name
                }
                self.rows.append((row, float(worker.memory_bytes_max)))

    def solve(self, fixed: Mapping[str, Binding] | None = None) -> float:
        """No hosting has a higher objective than this (proven to 2 in 1,000); with `fixed`, the objective of these bindings."""
        lower, upper, whole = np.zeros(len(self.costs)), np.array(self.upper), np.array(self.whole)
        if fixed is not None:
            for (name, key), column in self.hosts.items():
                lower[column] = upper[column] = float(name in fixed and key in fixed[name].variants)
            whole = np.zeros(len(self.costs))
        entries = [(value, at, column) for at, (row, _) in enumerate(self.rows) for column, value in row.items()]
        values, rows, columns = zip(*entries, strict=True)
        matrix = coo_array((values, (rows, columns)), shape=(len(self.rows), len(self.costs))).tocsr()
        limits = LinearConstraint(matrix, -np.inf, np.array([limit for _, limit in self.rows]))
        bounds = Bounds(lower, upper)
        found = milp(np.array(self.costs), integrality=whole, bounds=bounds, constraints=limits, options={"mip_rel_gap": 2e-3, "time_limit": 20.0})
        assert found.success, found.message
        return -float(found.fun) if fixed is not None else -float(found.mip_dual_bound)

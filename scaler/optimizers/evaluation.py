"""What a set of bindings can serve: the flows that answer most requests, then most accurately, found by a linear program.

The same yardstick for every optimizer: floors are kept, rates are those of the largest batches within half of each stage's budget, and a
worker that hosts several variants divides its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite

import msgspec

from scaler.optimizers.capacity import Capacity, Crew, Operation, crew_alone
from scaler.optimizers.paths import ModelPath, compute_ms, demand_by_floor, paths_of, stage_budgets
from scaler.optimizers.snapshot import EndpointDemand, Snapshot
from scaler.optimizers.solver import Program
from schemas.plan import Binding

SERVED_WEIGHT = 100.0
"""A request served counts so many times what a whole point of accuracy does."""
PATHS_MAX = 512


class Flows(msgspec.Struct, frozen=True, kw_only=True):
    """What the bindings answer at best."""

    served: dict[str, float]
    """By endpoint: part of its forecast; 1 where nothing is asked."""
    accuracy: dict[str, float]
    """By endpoint: mean accuracy of what is served; an endpoint that serves nothing is missing."""
    shares: dict[str, dict[str, float]]
    """By task: the part of its rows that each variant answers."""
    load: dict[str, float]
    """By worker type: used time / all workers' time."""
    served_rps: float = 0.0
    solved: bool = True
    """False: time ran out, the rest says nothing."""


class _Group(msgspec.Struct, frozen=True):
    """Workers with equal bindings."""

    crew: Crew
    variants: tuple[str, ...]
    batch_size_max: int
    threads: int
    count: int


def flows_of(
    bindings: Iterable[Binding],
    snapshot: Snapshot,
    capacity: Capacity,
    *,
    budgets: Mapping[str, Mapping[str, float]] | None = None,
    time_s: float = 1.0,
) -> Flows:
    """The best flows over these bindings. `budgets`: by endpoint and stage, twice what a batch may take; else as `stage_budgets` divides."""
    groups = _groups(bindings, snapshot)
    model = _Model(groups, capacity, snapshot.hop_ms)
    for endpoint in snapshot.endpoints:
        model.add(endpoint, (budgets or {}).get(endpoint.endpoint))
    return model.solve(snapshot, time_s)


class _Model:
    def __init__(self, groups: list[_Group], capacity: Capacity, hop_ms: float) -> None:
        self._groups, self._capacity, self._hop_ms = groups, capacity, hop_ms
        self._program = Program()
        self._paths: list[tuple[str, float, int]] = []
        """(endpoint, accuracy, column in requests/s)."""
        self._parts: list[tuple[str, int, float, int]] = []
        """(variant, group, rate, column in rows/s)."""
        self._used: list[dict[int, float]] = [{} for _ in groups]
        self._hosting: dict[str, list[int]] = {}
        for at, group in enumerate(groups):
            for key in group.variants:
                self._hosting.setdefault(key, []).append(at)

    def add(self, endpoint: EndpointDemand, budgets: Mapping[str, float] | None) -> None:
        """Columns and rows of one endpoint."""
        time_ms = compute_ms(endpoint, self._hop_ms)
        if time_ms <= 0.0:
            return
        limits = stage_budgets(endpoint, self._capacity, time_ms) | dict(budgets or {})
        rows_of: dict[tuple[str, str], dict[int, float]] = {}
        paths = paths_of(endpoint, self._capacity, PATHS_MAX, hosted=frozenset(self._hosting))
        for floor in demand_by_floor(endpoint):
            if floor.rate_rps <= 0.0:
                continue
            asked: dict[int, float] = {}
            for path in paths:
                if path.accuracy >= floor.floor - 1e-9:
                    column = self._add_path(endpoint.endpoint, path, rows_of)
                    asked[column] = 1.0
            self._program.row(asked, upper=floor.rate_rps)
        for (stage, key), rows in rows_of.items():
            self._add_stage(key, limits[stage], rows)

    def _add_path(self, endpoint: str, path: ModelPath, rows_of: dict[tuple[str, str], dict[int, float]]) -> int:
        column = self._program.column(SERVED_WEIGHT + path.accuracy)
        self._paths.append((endpoint, path.accuracy, column))
        for stage, key in path.variants.items():
            rows_of.setdefault((stage, key), {})[column] = path.rows[stage]
        return column

    def _add_stage(self, key: str, budget_ms: float, rows: dict[int, float]) -> None:
        balance = dict(rows)
        for at in self._hosting.get(key, ()):
            group = self._groups[at]
            operation = operation_of(group.crew, key, group.threads, group.batch_size_max, budget_ms, self._capacity)
            if operation is not None:
                column = self._program.column()
                balance[column] = -1.0
                self._parts.append((key, at, operation.rate_rps, column))
                self._used[at][column] = 1.0 / operation.rate_rps
        self._program.row(balance, lower=0.0, upper=0.0)

    def solve(self, snapshot: Snapshot, time_s: float) -> Flows:
        """Read the flows off the columns."""
        for group, used in zip(self._groups, self._used, strict=True):
            self._program.row(used, upper=float(group.count))
        solved = self._program.solve(time_s=time_s, seed=0) if self._program.columns else None
        values = solved.values if solved is not None else ()
        asked = {endpoint.endpoint: sum(floor.rate_rps for floor in demand_by_floor(endpoint)) for endpoint in snapshot.endpoints}
        served, gained = dict.fromkeys(asked, 0.0), dict.fromkeys(asked, 0.0)
        for endpoint, accuracy, column in self._paths if values else ():
            served[endpoint] += max(values[column], 0.0)
            gained[endpoint] += accuracy * max(values[column], 0.0)
        return Flows(
            served={name: min(served[name] / rate, 1.0) if rate > 0.0 else 1.0 for name, rate in asked.items()},
            accuracy={name: gained[name] / served[name] for name in asked if served[name] > 1e-9},
            shares=self._shares(values),
            load=self._load(values),
            served_rps=sum(served.values()),
            solved=bool(values) or not self._program.columns,
        )

    def _shares(self, values: tuple[float, ...]) -> dict[str, dict[str, float]]:
        tasks: dict[str, dict[str, float]] = {}
        for key, _, _, column in self._parts if values else ():
            task = self._capacity.variants[key].task
            tasks.setdefault(task, {})[key] = tasks.get(task, {}).get(key, 0.0) + max(values[column], 0.0)
        return normal_shares(tasks)

    def _load(self, values: tuple[float, ...]) -> dict[str, float]:
        used: dict[str, float] = {}
        workers: dict[str, int] = {}
        for crew in self._capacity.crews:
            workers[crew.type] = workers.get(crew.type, 0) + crew.size
        for _, at, rate, column in self._parts if values else ():
            type_ = self._groups[at].crew.type
            used[type_] = used.get(type_, 0.0) + max(values[column], 0.0) / rate
        return {type_: min(used.get(type_, 0.0) / count, 1.0) for type_, count in workers.items() if count}


def operation_of(crew: Crew, key: str, threads: int, batch_size_max: int, budget_ms: float, capacity: Capacity) -> Operation | None:
    """How a binding runs a variant: a batch that takes half of the budget while one waits; else one that fits all of it; None where none does."""
    counts = capacity.threads_of(crew, key)
    if not counts or not isfinite(budget_ms):
        return None
    measured = max((count for count in counts if count <= threads), default=counts[0])
    for limit_ms in (budget_ms / 2.0, budget_ms):
        operation = capacity.operation(crew, key, limit_ms, measured, batch_size_max)
        if operation is not None:
            return operation
    return None


def normal_shares(flows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Flows by task and variant as parts of 1, tiny ones left out; a task without any flow is missing."""
    shares: dict[str, dict[str, float]] = {}
    for task, by_variant in sorted(flows.items()):
        total = sum(by_variant.values())
        if total > 1e-9:
            kept = {key: flow for key, flow in sorted(by_variant.items()) if flow / total > 1e-6}
            total = sum(kept.values())
            shares[task] = {key: flow / total for key, flow in kept.items()}
    return shares


def _groups(bindings: Iterable[Binding], snapshot: Snapshot) -> list[_Group]:
    workers = {worker.name: worker for worker in snapshot.workers}
    counts: Counter[tuple[Crew, tuple[str, ...], int, int]] = Counter()
    for binding in bindings:
        worker = workers.get(binding.worker)
        if worker is not None and binding.variants:
            crew = msgspec.structs.replace(crew_alone(worker), workers=())
            counts[crew, binding.variants, binding.batch_size_max, binding.threads] += 1
    return [_Group(*key, count) for key, count in counts.items()]

"""Bindings for a hosting: lanes, thread counts and batch limits that do not force a worker to load anew what it has."""

from __future__ import annotations

from scaler.optimizers.capacity import Capacity, Crew
from scaler.optimizers.evaluation import normal_shares
from scaler.optimizers.headrace.allocation import Allocation
from scaler.optimizers.headrace.hosting import Hosting
from scaler.optimizers.headrace.routes import Routes
from scaler.optimizers.lanes import give_lanes
from scaler.optimizers.snapshot import Snapshot, Worker
from schemas.plan import Binding

HIGHER_FLOOR = 1e-2
BATCH_SIZE_MAX = 32
"""Larger batches only where a route needs them."""


def bindings_of(snapshot: Snapshot, routes: Routes, capacity: Capacity, hosting: Hosting) -> tuple[Binding, ...]:
    """One for each worker that hosts something."""
    lanes = give_lanes(
        [
            worker
            for crew, seats in zip(routes.crews, hosting.crews, strict=True)
            for worker, hosted in zip(crew.workers, seats, strict=True)
            if hosted
        ],
        snapshot,
    )
    needed = _batches(routes)
    bindings: list[Binding] = []
    for at, (crew, seats) in enumerate(zip(routes.crews, hosting.crews, strict=True)):
        usual = max([needed[at], *(min(capacity.variants[key].batch_size_max, BATCH_SIZE_MAX) for key in _hostable(crew, capacity))], default=1)
        for worker, hosted in zip(crew.workers, seats, strict=True):
            if hosted and worker.name in lanes:
                bindings.append(
                    Binding(
                        worker=worker.name,
                        accelerator=worker.accelerator,
                        lane=lanes[worker.name],
                        variants=hosted,
                        batch_size_max=_batch_limit(worker, needed[at], max(usual, 1)),
                        threads=min(routes.threads[at], max(worker.threads_max, 1)),
                    )
                )
    return tuple(sorted(bindings, key=lambda binding: binding.worker))


def budgets_of(snapshot: Snapshot, routes: Routes, allocation: Allocation) -> dict[str, dict[str, float]]:
    """By endpoint, milliseconds for each stage: the mean over the routes that its requests take."""
    budgets: dict[str, dict[str, float]] = {}
    weights: dict[str, float] = {}
    for each, parts in zip(routes.classes, allocation.parts, strict=True):
        endpoint = snapshot.endpoints[each.endpoint]
        for number, part in parts.items():
            weight = part * each.rate_rps
            weights[endpoint.endpoint] = weights.get(endpoint.endpoint, 0.0) + weight
            stages = budgets.setdefault(endpoint.endpoint, {})
            for stage, budget_ms in zip(endpoint.stages, routes.routes[number].budgets_ms, strict=True):
                stages[stage.name] = stages.get(stage.name, 0.0) + weight * budget_ms
    return {name: {stage: total / weights[name] for stage, total in stages.items()} for name, stages in budgets.items() if weights[name] > 0.0}


def shares_of(snapshot: Snapshot, routes: Routes, capacity: Capacity, allocation: Allocation) -> dict[str, dict[str, float]]:
    """By task of a graph that is asked for, the part of its rows that each variant answers; elsewhere the load of the moment decides.

    Requests with a floor choose among the variants that meet it, in these parts. So each higher floor counts next to nothing for those below it, and
    decides among the variants that only it needs.
    """
    asked = {each.endpoint for each in routes.classes if not each.idle}
    graphs = {stage.task for at in asked if len(snapshot.endpoints[at].stages) > 1 for stage in snapshot.endpoints[at].stages}
    flows: dict[str, dict[str, float]] = {}
    ranks: dict[int, int] = {}
    for each, parts in zip(routes.classes, allocation.parts, strict=True):
        if each.idle:
            continue
        rank = ranks[each.endpoint] = ranks.get(each.endpoint, -1) + 1
        for number, part in parts.items():
            route = routes.routes[number]
            for stage, rows in zip(snapshot.endpoints[each.endpoint].stages, route.rows, strict=True):
                key = route.variants[stage.name]
                into = flows.setdefault(capacity.variants[key].task, {})
                into[key] = into.get(key, 0.0) + part * each.rate_rps * rows * HIGHER_FLOOR**rank
    return normal_shares({task: into for task, into in flows.items() if task in graphs})


def _batch_limit(worker: Worker, needed: int, usual: int) -> int:
    """What the worker has, where that is enough: a larger limit makes it load all that it hosts again."""
    kept = worker.binding
    return kept.batch_size_max if kept is not None and kept.variants and kept.batch_size_max >= max(needed, 1) else usual


def _batches(routes: Routes) -> list[int]:
    """By crew: the largest batch of any route."""
    largest = [1] * len(routes.crews)
    for route in routes.routes:
        for runs in route.runs:
            for run in runs:
                largest[run.crew] = max(largest[run.crew], run.batch_size)
    return largest


def _hostable(crew: Crew, capacity: Capacity) -> list[str]:
    return [key for key in capacity.variants if capacity.can_host(crew, key)]

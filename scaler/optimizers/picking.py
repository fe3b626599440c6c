"""Division of whole workers among tasks where the variant of each task on each crew is given: what all static optimizers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush

import msgspec

from scaler.optimizers.capacity import Capacity, Crew, Operation
from scaler.optimizers.lanes import Post
from scaler.optimizers.paths import compute_ms, demand_of_task, demand_rps, main_floor, stage_budgets
from scaler.optimizers.snapshot import Snapshot, Variant

Order = Callable[[Variant, Operation], tuple[float, ...]]
"""Which variant is picked on a crew: the one with the largest value."""


class TaskDemand(msgspec.Struct, kw_only=True):
    """What one task has to do for all endpoints together, to those who know single models only."""

    rate_rps: float = 0.0
    """Rows/s."""
    budget_ms: float = 0.0
    """The least of its stages' budgets."""
    floor: float = 0.0
    """The lowest of the main floors of the endpoints of one stage that use it: below it nobody's floor is met. 0 on graphs: floors are of paths."""


def task_demands(snapshot: Snapshot, capacity: Capacity) -> dict[str, TaskDemand]:
    """By task, for every stage with time to compute in and a variant that somebody can host; zero demand too."""
    demands: dict[str, TaskDemand] = {}
    for endpoint in snapshot.endpoints:
        time_ms = compute_ms(endpoint, snapshot.hop_ms)
        if time_ms <= 0.0:
            continue
        budgets = stage_budgets(endpoint, capacity, time_ms)
        rates = demand_of_task(endpoint, demand_rps(endpoint))
        floor = main_floor(endpoint) if len(endpoint.stages) == 1 else 0.0
        for stage in endpoint.stages:
            if not capacity.tasks.get(stage.task):
                continue
            rate = rates.pop(stage.task, 0.0)
            found = demands.get(stage.task)
            if found is None:
                demands[stage.task] = TaskDemand(rate_rps=rate, budget_ms=budgets[stage.name], floor=floor)
            else:
                found.rate_rps += rate
                found.budget_ms = min(found.budget_ms, budgets[stage.name])
                found.floor = min(found.floor, floor)
    return dict(sorted(demands.items()))


def allowed(capacity: Capacity, task: str, floor: float) -> list[Variant]:
    """The task's variants at or above the floor, most accurate first; all of them where none is."""
    variants = capacity.tasks.get(task, ())
    above = [variant for variant in variants if variant.accuracy >= floor - 1e-9]
    return above or list(variants)


def operation_within(capacity: Capacity, crew: Crew, key: str, budget_ms: float) -> Operation | None:
    """The best within half of the budget (one batch waits while one runs); else one within all of it."""
    return capacity.operation(crew, key, budget_ms / 2.0) or capacity.operation(crew, key, budget_ms)


def picks_of(capacity: Capacity, demands: Mapping[str, TaskDemand], order: Order) -> dict[str, dict[int, Operation]]:
    """By task and number of the crew: the variant with the largest `order` among those that the crew can run in time.

    A task that no crew can run in time is missing.
    """
    picks: dict[str, dict[int, Operation]] = {}
    for task, demand in demands.items():
        for at, crew in enumerate(capacity.crews):
            found: list[tuple[tuple[float, ...], Operation]] = []
            for variant in allowed(capacity, task, demand.floor):
                operation = operation_within(capacity, crew, variant.key, demand.budget_ms)
                if operation is not None:
                    found.append((order(variant, operation), operation))
            if found:
                picks.setdefault(task, {})[at] = max(found, key=lambda entry: entry[0])[1]
    return picks


def divide(
    capacity: Capacity, picks: Mapping[str, Mapping[int, Operation]], demands: Mapping[str, TaskDemand], *, until: float | None = None
) -> list[Post]:
    """Whole workers, one after the other to the task that is served least; then the tasks that got none beside others, as memory allows.

    `until`: a task that is served so many times over gets no more (None: everybody is put to work).
    """
    free = [crew.size for crew in capacity.crews]
    counts: Counter[tuple[str, int]] = Counter()
    weights = {task: max(demands[task].rate_rps, 1e-9) for task in picks}
    best = _mean_rates(picks)
    # Tasks without demand come last, and still get a worker where there is one.
    waiting = [(0.0 if demands[task].rate_rps > 0.0 else 1.0, task) for task in picks]
    heapify(waiting)
    while waiting and any(free):
        served, task = heappop(waiting)
        if until is not None and served >= until:
            continue
        open_ = [at for at in picks[task] if free[at]]
        if not open_:
            continue
        at = max(open_, key=lambda at: (picks[task][at].rate_rps / best[at], -at))
        free[at] -= 1
        counts[task, at] += 1
        heappush(waiting, (served + picks[task][at].rate_rps / weights[task], task))
    posts = [_post(capacity.crews[at], picks[task][at], count) for (task, at), count in counts.items()]
    hosted = {task for task, _ in counts}
    for task in picks:
        if task not in hosted and (until is None or demands[task].rate_rps > 0.0):
            _squeeze_in(capacity, picks[task], posts)
    return posts


def _mean_rates(picks: Mapping[str, Mapping[int, Operation]]) -> dict[int, float]:
    """By crew: the mean over the tasks of its rate beside the task's best one; against it a task's rate there is a comparative advantage."""
    rates: dict[int, list[float]] = {}
    for by_crew in picks.values():
        own = max(operation.rate_rps for operation in by_crew.values())
        for at, operation in by_crew.items():
            rates.setdefault(at, []).append(operation.rate_rps / own)
    return {at: sum(found) / len(found) for at, found in rates.items()}


def _post(crew: Crew, operation: Operation, count: int) -> Post:
    return Post(crew=crew, variants=(operation.variant,), batch_size=operation.batch_size, threads=operation.threads, count=count)


def _squeeze_in(capacity: Capacity, picks: Mapping[int, Operation], posts: list[Post]) -> None:
    """Beside what one worker hosts already: the one that hosts least and has the memory."""
    crews = {id(capacity.crews[at]): operation for at, operation in picks.items()}
    for post in sorted(posts, key=lambda post: (len(post.variants), -post.count)):
        operation = crews.get(id(post.crew))
        if operation is None or not capacity.fits(post.crew, (*post.variants, operation.variant)):
            continue
        at = next(at for at, other in enumerate(posts) if other is post)
        posts[at] = beside(post, operation)
        if post.count > 1:
            posts.append(msgspec.structs.replace(post, count=post.count - 1))
        return


def beside(post: Post, operation: Operation, count: int = 1) -> Post:
    """The post of workers that host one variant more."""
    return msgspec.structs.replace(
        post,
        variants=(*post.variants, operation.variant),
        batch_size=max(post.batch_size, operation.batch_size),
        threads=max(post.threads, operation.threads),
        count=count,
    )

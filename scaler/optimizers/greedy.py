"""The greedy heuristic: milliseconds at any size, floors kept; also what others fall back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf, isfinite

import msgspec

from scaler.optimizers.assembling import Draft, assemble
from scaler.optimizers.capacity import Capacity, Operation
from scaler.optimizers.lanes import Post
from scaler.optimizers.mixing import Ladder, ladder_of, most_accurate_mix, posts_of
from scaler.optimizers.optimizer import FALLBACK, Limits, Proposal
from scaler.optimizers.paths import ModelPath, compute_ms, demand_by_floor, paths_of, stage_budgets
from scaler.optimizers.picking import TaskDemand, beside, divide
from scaler.optimizers.snapshot import EndpointDemand, Snapshot

CHUNKS = 400
"""Workers beyond the need are handed out in at most so many portions."""
PATHS_MAX = 512


class TaskNeed(msgspec.Struct, kw_only=True):
    """What all endpoints together ask of one task."""

    budget_ms: float = inf
    classes: dict[float, float] = {}
    """Rows/s by the accuracy that the stage must have."""
    value: float = 0.0
    """Requests/s, times the accuracy of the other stages: what a point of accuracy here is worth."""

    @property
    def rate_rps(self) -> float:
        return sum(self.classes.values())


class Greedy:
    """Enough workers for every task at its fastest variants first; the rest go where they buy most accuracy; then each task's best mix.

    For a floor over a graph, the path that costs least work among those that meet it says how accurate each stage must be. Dividing the rest is
    the greedy optimum of separable concave gains, for workers of one type; across types a worker goes where it is better than its peers.
    Each worker also hosts the fastest variant that its task allows, where the memory is there: for bursts, and for tasks with little to do.
    """

    name = "greedy"
    source = "Headrace; the mix within a task is the fractional knapsack of Proteus's single-pool program"

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """In time linear in workers, and in tasks x variants x types."""
        capacity = Capacity(snapshot)
        return assemble(Draft(posts=greedy_posts(snapshot, capacity)), snapshot, capacity, limits)


def greedy_instead(snapshot: Snapshot, capacity: Capacity, limits: Limits, *, asked: bool) -> Proposal:
    """The fallback of who had no time to solve, or was not `asked` for anything."""
    why = "no time for the solver: greedy decided" if asked else "greedy keeps every endpoint ready"
    return assemble(Draft(posts=greedy_posts(snapshot, capacity), status=FALLBACK, bound_by=[why]), snapshot, capacity, limits)


def greedy_posts(snapshot: Snapshot, capacity: Capacity) -> list[Post]:
    """Who hosts what."""
    needs = task_needs(snapshot, capacity)
    ladders = {task: ladder_of(capacity, task, need.budget_ms) for task, need in needs.items()}
    picks = {task: picked for task, ladder in ladders.items() if (picked := _fastest(capacity, ladder, needs[task]))}
    demands = {task: TaskDemand(rate_rps=need.rate_rps, budget_ms=need.budget_ms) for task, need in needs.items()}
    posts = divide(capacity, picks, demands, until=1.0)
    numbers = {id(crew): at for at, crew in enumerate(capacity.crews)}
    sizes: dict[str, dict[int, int]] = {task: {} for task in picks}
    shared = [post for post in posts if len(post.variants) > 1]
    for post in posts:
        if len(post.variants) == 1:
            by_crew = sizes[capacity.variants[post.variants[0]].task]
            at = numbers[id(post.crew)]
            by_crew[at] = by_crew.get(at, 0) + post.count
    _hand_out(capacity, needs, ladders, picks, sizes)
    placed = list(shared)
    for task, by_crew in sizes.items():
        mix = most_accurate_mix(ladders[task], by_crew, needs[task].classes)
        placed += [_with_fastest(capacity, post, picks[task]) for post in posts_of(capacity, ladders[task], mix)]
    return placed


def task_needs(snapshot: Snapshot, capacity: Capacity) -> dict[str, TaskNeed]:
    """By task, for every stage that can be computed in time."""
    needs: dict[str, TaskNeed] = {}
    for endpoint in snapshot.endpoints:
        time_ms = compute_ms(endpoint, snapshot.hop_ms)
        paths = paths_of(endpoint, capacity, PATHS_MAX) if time_ms > 0.0 else ()
        if not paths:
            continue
        budgets = stage_budgets(endpoint, capacity, time_ms)
        for stage in endpoint.stages:
            need = needs.setdefault(stage.task, TaskNeed(classes={}))
            need.budget_ms = min(need.budget_ms, budgets[stage.name])
        work = _work(capacity, endpoint, budgets)
        accuracies = {variant.key: variant.accuracy for stage in endpoint.stages for variant in capacity.tasks[stage.task]}
        for floor in demand_by_floor(endpoint):
            path = _cheapest(paths, floor.floor, work)
            if path is not None and floor.rate_rps > 0.0:
                free = floor.floor <= paths[-1].accuracy
                _ask(needs, endpoint, path, floor.rate_rps, {} if free else accuracies)
    return dict(sorted(needs.items()))


def _ask(needs: Mapping[str, TaskNeed], endpoint: EndpointDemand, path: ModelPath, rate_rps: float, accuracies: Mapping[str, float]) -> None:
    """`accuracies`: by variant, what the stages must keep so that the floor is met; empty where every path meets it."""
    for stage in endpoint.stages:
        need = needs[stage.task]
        asked = accuracies.get(path.variants[stage.name], 0.0)
        need.classes[asked] = need.classes.get(asked, 0.0) + rate_rps * path.rows[stage.name]
        others = 1.0
        for name, key in path.variants.items():
            others *= accuracies.get(key, 1.0) if name != stage.name else 1.0
        need.value += rate_rps * others


def _work(capacity: Capacity, endpoint: EndpointDemand, budgets: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Worker-seconds of one row, on the crew that is quickest with it, by stage and variant; what nobody can do in time is missing."""
    work: dict[tuple[str, str], float] = {}
    for stage in endpoint.stages:
        for (_, key), operation in ladder_of(capacity, stage.task, budgets[stage.name], all_variants=True).operations.items():
            place = (stage.name, key)
            work[place] = min(work.get(place, inf), 1.0 / operation.rate_rps)
    return work


def _cheapest(paths: Sequence[ModelPath], floor: float, work: Mapping[tuple[str, str], float]) -> ModelPath | None:
    """Among those that meet the floor, the path with the least work for a request; the more accurate of equals."""
    best, least = None, inf
    for path in paths:
        if path.accuracy < floor - 1e-9:
            break
        cost = sum(path.rows[stage] * work.get((stage, key), inf) for stage, key in path.variants.items())
        if isfinite(cost) and cost < least * (1.0 - 1e-9):
            best, least = path, cost
    return best


def _fastest(capacity: Capacity, ladder: Ladder, need: TaskNeed) -> dict[int, Operation]:
    """By crew, for the class that asks for least."""
    lowest = min(need.classes, default=0.0)
    found = {at: ladder.fastest(at, lowest) for at in range(len(capacity.crews))}
    return {at: operation for at, operation in found.items() if operation is not None}


def _hand_out(
    capacity: Capacity,
    needs: Mapping[str, TaskNeed],
    ladders: Mapping[str, Ladder],
    picks: Mapping[str, Mapping[int, Operation]],
    sizes: dict[str, dict[int, int]],
) -> None:
    """Workers beyond the need, crew by crew, to the task where the next of them buys most accuracy."""
    for at, crew in enumerate(capacity.crews):
        free = crew.size - sum(by_crew.get(at, 0) for by_crew in sizes.values())
        if free <= 0:
            continue
        portion = max(free // CHUNKS, 1)
        hulls = {task: _hull(ladders[task], at) for task in picks if at in picks[task]}
        waiting = [(-_gain(needs[task], hulls[task], picks[task], sizes[task], at), task) for task in hulls]
        heapify(waiting)
        while free > 0 and waiting:
            _, task = heappop(waiting)
            given = min(portion, free)
            sizes[task][at] = sizes[task].get(at, 0) + given
            free -= given
            heappush(waiting, (-_gain(needs[task], hulls[task], picks[task], sizes[task], at), task))


def _hull(ladder: Ladder, at: int) -> list[tuple[float, float]]:
    """(worker-seconds of a row, accuracy) on one crew: the upper concave hull, from the fastest."""
    points = sorted((1.0 / operation.rate_rps, ladder.accuracies[key]) for (crew, key), operation in ladder.operations.items() if crew == at)
    hull: list[tuple[float, float]] = []
    for work, accuracy in points:
        if hull and accuracy <= hull[-1][1]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (work - hull[-1][0]) <= (accuracy - hull[-1][1]) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append((work, accuracy))
    return hull


def _gain(need: TaskNeed, hull: Sequence[tuple[float, float]], picks: Mapping[int, Operation], sizes: Mapping[int, int], at: int) -> float:
    """What one worker more is worth: the slope of the hull where the task's work per row stands; a trifle, falling with its workers, at the end."""
    workers = sum(count * picks[crew].rate_rps for crew, count in sizes.items() if crew in picks) / picks[at].rate_rps
    if need.rate_rps <= 0.0:
        return 1e-12 / (1.0 + workers)
    work = workers / need.rate_rps
    for (low, below), (high, above) in pairwise(hull):
        if work < high * (1.0 - 1e-9):
            return need.value / need.rate_rps * (above - below) / (high - low)
    return 1e-9 / (1.0 + work / hull[-1][0])


def _with_fastest(capacity: Capacity, post: Post, picks: Mapping[int, Operation]) -> Post:
    """The post with the task's fastest variant beside its own."""
    at = next(at for at, crew in enumerate(capacity.crews) if crew is post.crew)
    operation = picks.get(at)
    if operation is None or operation.variant in post.variants or not capacity.fits(post.crew, (*post.variants, operation.variant)):
        return post
    return beside(post, operation, post.count)

"""Optimizers that change variants task by task, by rules of thumb: INFaaS and Sommelier, as Proteus compares with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil

from scaler.optimizers.assembling import Draft, assemble
from scaler.optimizers.capacity import Capacity
from scaler.optimizers.lanes import Post
from scaler.optimizers.mixing import Counts, Ladder, ladder_of, most_accurate_mix, posts_of
from scaler.optimizers.optimizer import Limits, Proposal
from scaler.optimizers.picking import TaskDemand, divide, picks_of, task_demands
from scaler.optimizers.snapshot import Snapshot
from scaler.optimizers.static import by_accuracy, by_rate

IDLE = 1.25
"""INFaaS upgrades a worker where what it has is this much more than it needs."""
UPGRADED_AT_ONCE = 0.25

Division = dict[str, dict[int, int]]
"""Workers by task and number of the crew."""


class Sommelier:
    """Every task keeps the workers that it has; only the variants on them change with the load.

    The first division is by the work of the most accurate variants. The paper switches between models that its own analysis calls equivalent; we
    take the task's variants, stepping down where the least accuracy is lost for the rate won. The floor that most requests ask for is kept.
    """

    name = "sommelier"
    source = "Sommelier (SIGMOD'22); as baseline: Proteus (ASPLOS'24), evaluation"

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """The present division of workers, with the best mix for each task by itself."""
        capacity = Capacity(snapshot)
        demands = task_demands(snapshot, capacity)
        division, extra = _present_division(capacity, demands)
        if not division:
            division, extra = _division(capacity, divide(capacity, picks_of(capacity, demands, by_accuracy), demands))
        posts: list[Post] = list(extra)
        for task, sizes in division.items():
            ladder = _ladder(capacity, task, demands[task])
            mix = most_accurate_mix(ladder, sizes, {0.0: demands[task].rate_rps})
            posts += posts_of(capacity, ladder, mix)
        return assemble(Draft(posts=posts), snapshot, capacity, limits)


class Infaas:
    """Task by task, from what runs now: under pressure workers change to what wins most rate; where much is idle, some go one variant up.

    INFaaS minimizes cost; Proteus's INFaaS-Accuracy, which this follows, spends what the cluster has on accuracy, greedily. Workers go to tasks by
    the work of their fastest variants. INFaaS's ten votes before scaling down need memory, which a proposal has not: a quarter of the workers of
    a task at most go up in one plan. The floor that most requests ask for is kept.
    """

    name = "infaas"
    source = "INFaaS (ATC'21), autoscaling; as baseline INFaaS-Accuracy: Proteus (ASPLOS'24), evaluation"

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """One step from the present plan."""
        capacity = Capacity(snapshot)
        demands = task_demands(snapshot, capacity)
        division, extra = _division(capacity, divide(capacity, picks_of(capacity, demands, by_rate), demands))
        present = _present_counts(capacity)
        posts: list[Post] = list(extra)
        for task, sizes in division.items():
            ladder = _ladder(capacity, task, demands[task])
            counts = _kept(ladder, present, sizes)
            needed = demands[task].rate_rps
            _scale_up(ladder, counts, needed)
            _upgrade(ladder, counts, needed * IDLE, max(int(sum(sizes.values()) * UPGRADED_AT_ONCE), 1))
            posts += posts_of(capacity, ladder, counts)
        return assemble(Draft(posts=posts), snapshot, capacity, limits)


def _ladder(capacity: Capacity, task: str, demand: TaskDemand) -> Ladder:
    """At or above the task's floor, where some variant is."""
    ladder = ladder_of(capacity, task, demand.budget_ms)
    above = {place: operation for place, operation in ladder.operations.items() if ladder.accuracies[place[1]] >= demand.floor - 1e-9}
    crews = {at for at, _ in above}
    rest = {place: operation for place, operation in ladder.operations.items() if place[0] not in crews}
    return Ladder(operations={**above, **rest} if above else ladder.operations, accuracies=ladder.accuracies)


def _division(capacity: Capacity, posts: list[Post]) -> tuple[Division, list[Post]]:
    """Workers by task and crew; posts of several variants are left as they are."""
    numbers = {id(crew): at for at, crew in enumerate(capacity.crews)}
    division: Division = {}
    for post in posts:
        if len(post.variants) == 1:
            sizes = division.setdefault(capacity.variants[post.variants[0]].task, {})
            at = numbers[id(post.crew)]
            sizes[at] = sizes.get(at, 0) + post.count
    return division, [post for post in posts if len(post.variants) > 1]


def _present_division(capacity: Capacity, demands: Mapping[str, TaskDemand]) -> tuple[Division, list[Post]]:
    """As the workers are bound now; empty where a task has none, or a worker has no task of these or several."""
    division: Division = {}
    for at, crew in enumerate(capacity.crews):
        for worker in crew.workers:
            keys = worker.binding.variants if worker.binding is not None else ()
            tasks = {capacity.variants[key].task for key in keys if key in capacity.variants}
            task = next(iter(tasks), "")
            if len(tasks) != 1 or task not in demands:
                return {}, []
            sizes = division.setdefault(task, {})
            sizes[at] = sizes.get(at, 0) + 1
    return (division, []) if set(division) == set(demands) else ({}, [])


def _present_counts(capacity: Capacity) -> Counts:
    counts: Counter[tuple[int, str]] = Counter()
    for at, crew in enumerate(capacity.crews):
        for worker in crew.workers:
            if worker.binding is not None and len(worker.binding.variants) == 1:
                counts[at, worker.binding.variants[0]] += 1
    return dict(counts)


def _kept(ladder: Ladder, present: Counts, sizes: Mapping[int, int]) -> Counts:
    """Workers that host the task already stay as they are; new ones begin with the most accurate variant."""
    counts: Counts = {}
    for at, size in sizes.items():
        own = sorted((key for crew, key in ladder.operations if crew == at), key=lambda key: -ladder.accuracies[key])
        if not own:
            continue
        left = size
        for key in own:
            counts[at, key] = min(present.get((at, key), 0), left)
            left -= counts[at, key]
        counts[at, own[0]] += left
    return counts


def _scale_up(ladder: Ladder, counts: Counts, needed: float) -> None:
    """Workers change to whatever wins most rate, until there is enough or nothing more to win."""
    while (missing := needed - ladder.rate_at(counts, 0.0)) > 1e-9 * max(needed, 1.0):
        steps = [
            (ladder.operations[target].rate_rps - ladder.operations[place].rate_rps, place, target)
            for place, count in counts.items()
            for target in ladder.operations
            if count and target[0] == place[0]
        ]
        gain, place, target = max(steps, default=(0.0, (0, ""), (0, "")))
        if gain <= 0.0:
            return
        moved = max(min(counts[place], ceil(missing / gain - 1e-9)), 1)
        counts[place] -= moved
        counts[target] = counts.get(target, 0) + moved


def _upgrade(ladder: Ladder, counts: Counts, needed: float, most: int) -> None:
    """The least accurate workers go one variant up, while what is left is still enough."""
    spare = ladder.rate_at(counts, 0.0) - needed
    for place in sorted(counts, key=lambda place: (ladder.accuracies[place[1]], place)):
        above = [target for target in ladder.operations if target[0] == place[0] and ladder.accuracies[target[1]] > ladder.accuracies[place[1]]]
        if not above or not counts[place] or most < 1:
            continue
        target = min(above, key=lambda target: ladder.accuracies[target[1]])
        loss = ladder.operations[place].rate_rps - ladder.operations[target].rate_rps
        moved = min(counts[place], most, int(spare / loss + 1e-9) if loss > 0.0 else most)
        if moved >= 1:
            counts[place] -= moved
            counts[target] = counts.get(target, 0) + moved
            most -= moved
            spare -= moved * loss

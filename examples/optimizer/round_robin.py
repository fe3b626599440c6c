"""An optimizer in a package of its own: tasks take turns on the workers, each with the most accurate variant that still carries its demand."""

from __future__ import annotations

from scaler.optimizers.assembling import Draft, assemble
from scaler.optimizers.capacity import Capacity, Operation
from scaler.optimizers.lanes import Post
from scaler.optimizers.optimizer import Limits, Proposal
from scaler.optimizers.picking import TaskDemand, allowed, operation_within, task_demands
from scaler.optimizers.snapshot import Snapshot


class RoundRobin:
    """Every task gets every n-th worker of each type, and on all of them the most accurate variant with which they carry its demand.

    Simple on purpose: it shows what an optimizer of somebody else needs. `spare` is the part of the capacity that stays free, an option that
    a scenario can set (`control: {optimizer: round-robin, options: {spare: 0.1}}`).
    """

    name = "round-robin"
    source = "headrace-round-robin, an example"

    def __init__(self, spare: float = 0.0) -> None:
        self._spare = spare

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """Turns by demand, the largest first, so that it gets the odd worker."""
        capacity = Capacity(snapshot)
        demands = task_demands(snapshot, capacity)
        tasks = sorted(demands, key=lambda task: (-demands[task].rate_rps, task))
        turns = {task: {at: len(range(turn, crew.size, len(tasks))) for at, crew in enumerate(capacity.crews)} for turn, task in enumerate(tasks)}
        posts: list[Post] = []
        for task in tasks:
            posts += self._posts(capacity, task, demands[task], turns[task])
        return assemble(Draft(posts=posts, bound_by=["tasks take turns"]), snapshot, capacity, limits)

    def _posts(self, capacity: Capacity, task: str, demand: TaskDemand, turns: dict[int, int]) -> list[Post]:
        """With the most accurate variant that carries the demand, else the one that carries most."""
        best: dict[int, Operation] = {}
        most_rps = 0.0
        for variant in allowed(capacity, task, demand.floor):
            found = {at: operation_within(capacity, capacity.crews[at], variant.key, demand.budget_ms) for at, count in turns.items() if count}
            able = {at: operation for at, operation in found.items() if operation is not None}
            rate_rps = sum(operation.rate_rps * turns[at] for at, operation in able.items())
            if rate_rps > most_rps:
                best, most_rps = able, rate_rps
            if most_rps * (1.0 - self._spare) >= demand.rate_rps and best:
                break
        return [
            Post(
                crew=capacity.crews[at],
                variants=(operation.variant,),
                batch_size=operation.batch_size,
                threads=operation.threads,
                count=turns[at],
            )
            for at, operation in best.items()
        ]

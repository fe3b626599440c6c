"""Proteus: accuracy scaling of single models on a heterogeneous cluster of fixed size, as a mixed-integer program."""

from __future__ import annotations

from collections.abc import Mapping

from scaler.optimizers.assembling import Draft, assemble
from scaler.optimizers.capacity import Capacity, Operation
from scaler.optimizers.evaluation import normal_shares
from scaler.optimizers.flow_program import ROOM, Answer, Family, FlowProgram
from scaler.optimizers.greedy import greedy_instead
from scaler.optimizers.lanes import Post
from scaler.optimizers.optimizer import ALWAYS, Limits, Proposal
from scaler.optimizers.paths import ModelPath
from scaler.optimizers.picking import TaskDemand, allowed, operation_within, task_demands
from scaler.optimizers.snapshot import Snapshot
from scaler.optimizers.solver import SolverTime


class Proteus:
    """The aggregated exact form: whole workers of each type on each variant, and flows, for the highest mean accuracy at all of the demand.

    Where the paper leaves it open, or speaks of something else:
    - *Infeasible at the lowest accuracy*: the paper shrinks the demand a little and solves again; we find the largest common factor with one more
      program, then the accuracy at that factor. Where whole workers leave nearly nothing for everybody, as many requests as possible are served.
    - *Graphs*: the paper knows single models. Each task is a family of its own, with the rows that reach it on average, and a part of the
      time-out in proportion to its fastest variant.
    - *Floors*: the paper knows none. A task's variants below the floor that most requests ask for are left out; no other floor is looked at.
    - *Demand*: the paper plans for 1.05 times an EWMA over 20 s; here for 1.25 times the forecast (`room`), as requests come in bursts, and a plan
      for just what is forecast has no room for them.
    - *What loads cost* the paper does not weigh: each plan comes into force, whatever the control loop thinks of it (`Proposal.adopted`).
    - *Without demand* (no request was seen yet) greedy decides, so that the first to come find something ready.
    - *Workers without work* stand ready with what their type uses most.
    - A variant for which no batch is within half of the time is taken with batches within all of it.
    """

    name = "proteus"
    source = "Proteus (ASPLOS'24), resource allocation"

    def __init__(self, *, room: float = ROOM) -> None:
        """`room`: multiple of the demand that is planned for; 1.05: the paper's."""
        self._room = room

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """Objective: requests/s times accuracy. Without time for the solver: greedy, as a fallback."""
        capacity = Capacity(snapshot)
        demands = task_demands(snapshot, capacity)
        for demand in demands.values():
            demand.rate_rps *= self._room
        answer, families = solve_tasks(capacity, demands, SolverTime(limits, len(snapshot.workers)))
        if answer is None or not families:
            return greedy_instead(snapshot, capacity, limits, asked=bool(families))
        status, notes = answer.within(self._room)
        draft = Draft(
            posts=with_idle(capacity, answer),
            status=status,
            bound_by=notes,
            objective=answer.objective / self._room,
            gap=answer.gap,
            shares=_shares(answer, families, capacity),
            adopted=ALWAYS,
        )
        return assemble(draft, snapshot, capacity, limits)


def solve_tasks(capacity: Capacity, demands: Mapping[str, TaskDemand], time: SolverTime) -> tuple[Answer | None, list[Family]]:
    """The program over tasks, each for itself."""
    operations: list[tuple[int, Operation]] = []
    families: list[Family] = []
    for task, demand in demands.items():
        paths: list[ModelPath] = []
        for variant in allowed(capacity, task, demand.floor):
            found = [(at, operation_within(capacity, crew, variant.key, demand.budget_ms)) for at, crew in enumerate(capacity.crews)]
            able = [(at, operation) for at, operation in found if operation is not None]
            if able:
                operations += able
                paths.append(ModelPath(variants={"": variant.key}, accuracy=variant.accuracy, rows={"": 1.0}))
        if paths and demand.rate_rps > 0.0:
            families.append(Family(name=task, rate_rps=demand.rate_rps, paths=tuple(paths)))
    return FlowProgram(capacity, families, operations).solve(time), families


def with_idle(capacity: Capacity, answer: Answer) -> list[Post]:
    """The answer's posts; workers that it leaves idle stand by with what most of their crew do."""
    posts = answer.posts(capacity)
    for at, crew in enumerate(capacity.crews):
        used = {place: count for place, count in answer.workers.items() if place[0] == at}
        idle = crew.size - sum(used.values())
        if idle <= 0:
            continue
        able = sorted(place for place in answer.operations if place[0] == at)
        place = max(used, key=lambda place: (used[place], place)) if used else _best(capacity, able)
        if place is not None:
            operation = answer.operations[place]
            posts.append(Post(crew=crew, variants=(place[1],), batch_size=operation.batch_size, threads=operation.threads, count=idle))
    return posts


def _best(capacity: Capacity, able: list[tuple[int, str, int]]) -> tuple[int, str, int] | None:
    """Where a crew is not used at all: the most accurate of what it can run."""
    return max(able, key=lambda place: (capacity.variants[place[1]].accuracy, place), default=None)


def _shares(answer: Answer, families: list[Family], capacity: Capacity) -> dict[str, dict[str, float]]:
    flows: dict[str, dict[str, float]] = {}
    for (number, at), part in answer.parts.items():
        key = families[number].paths[at].variants[""]
        flows.setdefault(capacity.variants[key].task, {})[key] = part
    return normal_shares(flows)

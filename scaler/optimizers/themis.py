"""Themis: more cores at once while load rises, more replicas when it settles; one variant per task."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec

from scaler.optimizers.assembling import Draft, assemble, default_budgets
from scaler.optimizers.capacity import Capacity, Crew
from scaler.optimizers.lanes import Post
from scaler.optimizers.optimizer import INFEASIBLE, OPTIMAL, Limits, Proposal
from scaler.optimizers.paths import compute_ms, demand_rps, parents, rows_into
from scaler.optimizers.picking import TaskDemand, divide, picks_of, task_demands
from scaler.optimizers.snapshot import EndpointDemand, Snapshot
from scaler.optimizers.static import by_accuracy
from scaler.optimizers.themis_programs import (
    HORIZONTAL,
    VERTICAL,
    Configuration,
    Configured,
    Option,
    StageLoad,
    Transition,
    advance,
    horizontal,
    vertical_and_more,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CALM, MODE = "calm", "vertical"


class Need(msgspec.Struct, kw_only=True):
    """What one task gets, for all endpoints that use it."""

    variant: str
    crew: Crew
    configured: Configured


class Themis:
    """Two exact dynamic programs over whole milliseconds: fewest replicas at one core, or fewest cores for the replicas that there are.

    On a cluster of fixed size, *horizontal* says how many workers host a task, and *vertical* how many threads their bindings get; a worker without
    a post costs nothing. Where the paper leaves it open, or speaks of something else:
    - *Variants*: the paper has one model per stage; here the most accurate that is in time.
    - *Latency model*: the paper fits l(b, c) = a b/c + B b + g/c + z; here the profile at its measured thread counts is the model, without a fit.
    - *Unlike workers*: the programs use the type that carries most of the task; replicas go there first, then to other types by what they carry.
    - *Endpoints that share a task* are configured one by one; a task gets all of their replicas and the most cores.
    - *State*: the count of calm decisions comes back in `Snapshot.memory`.
    - *Create before shrinking* is the rebinding's rule, not the plan's.
    - *Beyond the cluster*: workers are divided so that every task is served alike, with all threads that help.
    """

    name = "themis"
    source = "Themis (arXiv 2407.14843), the two dynamic programs and the transition between them"

    def __init__(self, *, horizontal: float = 1.0, vertical: float = 1.0) -> None:
        """0 takes one of the two away: the paper's baselines, FA2 (horizontal only) and Sponge (vertical only). Raises ValueError for both."""
        if not horizontal and not vertical:
            raise ValueError("horizontal and vertical are both 0: nothing is left to scale by")
        self._only = "" if horizontal and vertical else HORIZONTAL if horizontal else VERTICAL

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """Objective: cores, negative."""
        capacity = Capacity(snapshot)
        demands = task_demands(snapshot, capacity)
        picks = {task: self._reference(capacity, task, demands) for task in demands}
        references = {task: found for task, found in picks.items() if found is not None}
        chains = [(endpoint, loads_of(endpoint, snapshot, capacity, references)) for endpoint in snapshot.endpoints]
        runnable = [(compute_ms(endpoint, snapshot.hop_ms), loads) for endpoint, loads in chains if loads]
        before = Transition(VERTICAL if snapshot.memory.get(MODE) else HORIZONTAL, int(snapshot.memory.get(CALM, 0.0)))
        after, configurations = decide(before, runnable, started=any(worker.binding for worker in snapshot.workers), only=self._only)
        needs = _needs(references, runnable, configurations)
        posts, short = _place(capacity, needs)
        status = INFEASIBLE if short or any(found is None for found in configurations) else OPTIMAL
        if short:
            posts = divide(capacity, picks_of(capacity, demands, by_accuracy), demands)
        draft = Draft(
            posts=posts,
            status=status,
            bound_by=[f"{after.mode} scaling", *(["more replicas are needed than there are workers"] if short else [])],
            objective=-float(sum(post.count * post.threads for post in posts)),
            budgets=default_budgets(snapshot, capacity),
        )
        proposal = assemble(draft, snapshot, capacity, limits)
        memory = {MODE: 1.0 if after.mode == VERTICAL else 0.0, CALM: float(after.calm)}
        return msgspec.structs.replace(proposal, memory=memory)

    @staticmethod
    def _reference(capacity: Capacity, task: str, demands: dict[str, TaskDemand]) -> tuple[str, Crew] | None:
        """The variant, and the crew that carries most of it."""
        found = picks_of(capacity, {task: demands[task]}, by_accuracy).get(task, {})
        best = max(
            found, key=lambda at: (capacity.variants[found[at].variant].accuracy, found[at].rate_rps * capacity.crews[at].size, -at), default=None
        )
        return None if best is None else (found[best].variant, capacity.crews[best])


def loads_of(endpoint: EndpointDemand, snapshot: Snapshot, capacity: Capacity, references: dict[str, tuple[str, Crew]]) -> list[StageLoad]:
    """The stages with their options; none where a stage cannot be run."""
    if not endpoint.stages or any(stage.task not in references for stage in endpoint.stages) or compute_ms(endpoint, snapshot.hop_ms) <= 0.0:
        return []
    above = parents(endpoint)
    rates: dict[str, float] = {}
    loads: list[StageLoad] = []
    for stage in endpoint.stages:
        before = above[stage.name]
        key, crew = references[stage.task]
        parent = next((other.task for other in endpoint.stages if other.name == before), None)
        answering = references[parent][0] if parent is not None else None
        rates[stage.name] = (demand_rps(endpoint) if before is None else rates[before]) * rows_into(stage, answering)
        largest = capacity.variants[key].batch_size_max
        options = tuple(
            Option(batch_size=batch, cores=cores, latency_ms=capacity.latency_ms(crew, key, batch, cores))
            for cores in capacity.threads_of(crew, key)
            for batch in BATCHES
            if batch <= largest
        )
        hosting = [worker.binding for worker in crew.workers if worker.binding is not None and key in worker.binding.variants]
        cores = min((binding.threads for binding in hosting), default=0)
        loads.append(
            StageLoad(name=stage.name, after=before, variant=key, rate_rps=rates[stage.name], options=options, replicas=len(hosting), cores=cores)
        )
    return loads


def decide(
    before: Transition, chains: Sequence[tuple[float, Sequence[StageLoad]]], *, started: bool, only: str = ""
) -> tuple[Transition, list[Configuration | None]]:
    """The rule, then the program that it names; None for a chain that has no configuration. `started`: something is hosted already; `only`: the one
    program that there is."""
    fewest = [horizontal(loads, time_ms) for time_ms, loads in chains]
    now = sum(load.replicas for _, loads in chains for load in loads)
    needed = sum(each.replicas for found in fewest if found is not None for each in found.stages.values())
    rising = started and (any(found is None for found in fewest) or needed > now)
    needed = max(needed, now + 1) if any(found is None for found in fewest) else needed
    after = advance(before, replicas_now=now, replicas_needed=needed, rising=rising)
    if only:
        after = Transition(only, after.calm)
    if after.mode == HORIZONTAL:
        # A chain that one core cannot serve in time has no horizontal configuration at all.
        filled = zip(fewest, chains, strict=True)
        return after, [found or vertical_and_more(loads, time_ms) for found, (time_ms, loads) in filled]
    if before.mode == VERTICAL:
        # Cores only grow, until the load has settled.
        chains = [(time_ms, [load.grown() for load in loads]) for time_ms, loads in chains]
    return after, [vertical_and_more(loads, time_ms) or found for found, (time_ms, loads) in zip(fewest, chains, strict=True)]


def _needs(
    references: dict[str, tuple[str, Crew]],
    chains: Sequence[tuple[float, Sequence[StageLoad]]],
    configurations: Sequence[Configuration | None],
) -> list[Need]:
    """By variant: replicas added up, the most cores, the largest batch."""
    crews = dict(references.values())
    needs: dict[str, Need] = {}
    for (_, loads), found in zip(chains, configurations, strict=True):
        for load in loads if found is not None else ():
            each = found.stages[load.name] if found is not None else Configured(option=load.options[0], replicas=0)
            need = needs.get(load.variant)
            if need is None:
                needs[load.variant] = Need(variant=load.variant, crew=crews[load.variant], configured=each)
            else:
                larger = max(need.configured.option, each.option, key=lambda option: (option.cores, option.rate_rps))
                need.configured = Configured(option=larger, replicas=need.configured.replicas + each.replicas)
    return list(needs.values())


def _place(capacity: Capacity, needs: Sequence[Need]) -> tuple[list[Post], bool]:
    """Replicas on the type that they were counted for, then on others by what they carry there; and whether some found no worker."""
    free = {id(crew): crew.size for crew in capacity.crews}
    posts: list[Post] = []
    left: list[tuple[Need, float]] = []
    for need in needs:
        count = min(need.configured.replicas, free[id(need.crew)])
        free[id(need.crew)] -= count
        option = need.configured.option
        posts.append(Post(crew=need.crew, variants=(need.variant,), batch_size=option.batch_size, threads=option.cores, count=count))
        left.append((need, (need.configured.replicas - count) * option.rate_rps))
    short = False
    for need, rate_rps in left:
        missing = rate_rps
        for crew in capacity.crews:
            if missing <= 1e-9 or crew is need.crew or not free[id(crew)]:
                continue
            operation = capacity.operation(crew, need.variant, need.configured.option.latency_ms)
            if operation is not None:
                count = min(ceil(missing / operation.rate_rps - 1e-9), free[id(crew)])
                free[id(crew)] -= count
                missing -= count * operation.rate_rps
                posts.append(Post(crew=crew, variants=(need.variant,), batch_size=operation.batch_size, threads=operation.threads, count=count))
        short = short or missing > 1e-9
    return [post for post in posts if post.count], short

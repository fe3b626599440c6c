"""Loki: pipelines on a fixed cluster, hardware scaling first, accuracy scaling only where that is not enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scaler.optimizers.assembling import Draft, assemble, default_budgets
from scaler.optimizers.capacity import Capacity, Operation
from scaler.optimizers.flow_program import ROOM, Answer, Family, FlowProgram
from scaler.optimizers.greedy import greedy_instead
from scaler.optimizers.loki_routing import most_accurate_first
from scaler.optimizers.optimizer import ALWAYS, Limits, Proposal
from scaler.optimizers.paths import compute_ms, demand_rps, main_floor, parents, paths_of, stage_budgets
from scaler.optimizers.snapshot import EndpointDemand, Snapshot
from scaler.optimizers.solver import SolverTime

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PATHS_MAX = 400
EXACT_MAX = 1_200
"""Rows of the program about latencies; where there would be more, each stage gets a fixed part of the time instead."""
WORTH = 1.02
"""A larger batch is looked at only where it raises the rate by this much."""


class Loki:
    """Two programs over configurations (variant, batch size) and paths, then MostAccurateFirst routing.

    First the most accurate variants alone, on as few workers as possible; where those cannot carry the demand, all variants, for the highest
    mean accuracy of the paths. Latencies of a path's batches add up to half of its time-out at most, and a stage's budget is twice its latency.

    Where the paper leaves it open, or speaks of something else:
    - *Unlike workers*: the paper's cluster is homogeneous; here a configuration belongs to a worker type, and a path is as slow as the slowest type
      that runs its variants.
    - *Trees*: a path names one variant for every stage, and latencies count from the root to each leaf. On a chain this is the paper's path.
    - *Several endpoints* share the cluster; accuracy is weighed by their demand.
    - *Floors*: the paper knows none. Paths below the floor that most requests of an endpoint ask for are left out (unless all are); no other
      floor is looked at.
    - *Room*: both steps are solved for 1.25 times the demand (`room`), of which the paper says nothing. A plan for just what is forecast has no
      room for a forecast that was too low, nor for requests that come in bursts.
    - *What loads cost* the paper does not weigh: each plan comes into force, whatever the control loop thinks of it (`Proposal.adopted`). By the
      control loop's own yardstick, which divides a path's time in proportion to the fastest variants, what was bound before looked as good.
    - *Without demand* (no request was seen yet) greedy decides, so that the first to come find something ready.
    - *Beyond the least accurate*: where not even the demand without its room fits, everybody's is cut by the same factor; where that leaves
      nearly nothing, as much as possible is served.
    - *Size*: with more latency rows than HiGHS can be asked for in a control interval, each stage gets a part of the time in proportion to its
      fastest variant, and one batch size.
    """

    name = "loki"
    source = "Loki (HPDC'24, arXiv 2407.03583), resource manager and load balancer"

    def __init__(self, *, room: float = ROOM) -> None:
        """`room`: multiple of the demand that is planned for; 1: the paper's own program."""
        self._room = room

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """Objective: requests/s times accuracy. Without time for the solver: greedy, as a fallback."""
        capacity = Capacity(snapshot)
        families = families_of(snapshot, capacity, self._room)
        asked = [(endpoint, family) for endpoint, family in families if family.rate_rps > 0.0]
        time = SolverTime(limits, len(snapshot.workers))
        answer = _hardware_scaling(capacity, snapshot, asked, time)
        notes: list[str] = []
        if answer is None:
            notes.append("the most accurate variants cannot carry the demand: accuracy scaling")
            answer = loki_program(capacity, snapshot, asked).solve(time)
        if answer is None or not answer.workers:
            return greedy_instead(snapshot, capacity, limits, asked=bool(asked))
        status, within = answer.within(self._room)
        rates = _rates(answer)
        draft = Draft(
            posts=answer.posts(capacity),
            status=status,
            bound_by=[*notes, *within],
            objective=answer.objective / self._room,
            gap=answer.gap,
            shares=most_accurate_first(snapshot, capacity, rates),
            budgets=_budgets(snapshot, capacity, answer),
            adopted=ALWAYS,
        )
        return assemble(draft, snapshot, capacity, limits)


def families_of(snapshot: Snapshot, capacity: Capacity, room: float) -> list[tuple[EndpointDemand, Family]]:
    """Endpoints that can be computed at all, with `room` times their demand, and the paths at or above the floor that most ask for."""
    found: list[tuple[EndpointDemand, Family]] = []
    for endpoint in snapshot.endpoints:
        paths = paths_of(endpoint, capacity, PATHS_MAX)
        if not paths or compute_ms(endpoint, snapshot.hop_ms) <= 0.0:
            continue
        floor = main_floor(endpoint)
        above = tuple(path for path in paths if path.accuracy >= floor - 1e-9) or paths
        found.append((endpoint, Family(name=endpoint.endpoint, rate_rps=room * demand_rps(endpoint), paths=above)))
    return found


def loki_program(capacity: Capacity, snapshot: Snapshot, asked: Sequence[tuple[EndpointDemand, Family]]) -> FlowProgram:
    """The program over all paths of these families, with their latencies kept."""
    chains = [(endpoint, family) for endpoint, family in asked if len(endpoint.stages) > 1]
    rows = sum(len(family.paths) * _leaf_count(endpoint) for endpoint, family in chains)
    exact = rows + sum(len(capacity.tasks[stage.task]) for endpoint, _ in chains for stage in endpoint.stages) <= EXACT_MAX
    limits_ms = _limits(snapshot, capacity, [endpoint for endpoint, _ in asked], exact=exact)
    operations = list(_operations(capacity, limits_ms, {stage.task for endpoint, _ in chains for stage in endpoint.stages} if exact else set()))
    able = {operation.variant for _, operation in operations}
    families = [
        Family(name=family.name, rate_rps=family.rate_rps, paths=tuple(path for path in family.paths if able.issuperset(path.variants.values())))
        for _, family in asked
    ]
    kept = [(endpoint, family) for (endpoint, _), family in zip(asked, families, strict=True) if family.paths]
    program = FlowProgram(capacity, [family for _, family in kept], operations)
    if exact and chains:
        _LatencyRows(program, {stage.task for endpoint, _ in chains for stage in endpoint.stages}).add(kept, snapshot)
    return program


class _LatencyRows:
    """Latencies along paths: one batch size for each (type, variant), and no flow on a path whose batches take more than half of its time."""

    def __init__(self, program: FlowProgram, tasks: set[str]) -> None:
        self._program = program.program
        self._flow = program
        self._latencies: dict[str, int] = {}
        """By variant: the column of the slowest of its configurations that is used, in ms."""
        self._longest: dict[str, float] = {}
        configurations: dict[tuple[int, str], list[tuple[int, str, int]]] = {}
        for place in program.workers:
            if program.capacity.variants[place[1]].task in tasks:
                configurations.setdefault(place[:2], []).append(place)
        for (at, key), places in sorted(configurations.items()):
            slowest = max(program.operations[place].latency_ms for place in places)
            self._longest[key] = max(self._longest.get(key, 0.0), slowest)
            if key not in self._latencies:
                self._latencies[key] = self._program.column(upper=1e6)
            self._choose(program.capacity.crews[at].size, places, self._latencies[key])

    def _choose(self, size: int, places: list[tuple[int, str, int]], latency: int) -> None:
        chosen: dict[int, float] = {}
        for place in places:
            used = self._program.column(upper=1.0, integer=True)
            chosen[used] = 1.0
            self._program.row({self._flow.workers[place]: 1.0, used: -float(size)}, upper=0.0)
            self._program.row({latency: 1.0, used: -self._flow.operations[place].latency_ms}, lower=0.0)
        self._program.row(chosen, upper=1.0)

    def add(self, kept: Sequence[tuple[EndpointDemand, Family]], snapshot: Snapshot) -> None:
        """I_p of each path, and its sums from the root to each leaf."""
        for number, (endpoint, family) in enumerate(kept):
            if len(endpoint.stages) < 2:
                continue
            half_ms = compute_ms(endpoint, snapshot.hop_ms) / 2.0
            for at, path in enumerate(family.paths):
                taken = self._program.column(upper=1.0, integer=True)
                self._program.row({self._flow.parts[number, at]: 1.0, taken: -1.0}, upper=0.0)
                for chain in chains_of(endpoint):
                    keys = [path.variants[stage] for stage in chain]
                    over_ms = max(sum(self._longest[key] for key in keys) - half_ms, 0.0)
                    if over_ms > 0.0:
                        self._program.row(_summed((self._latencies[key] for key in keys), {taken: over_ms}), upper=half_ms + over_ms)


def _summed(columns: Iterable[int], terms: Mapping[int, float]) -> dict[int, float]:
    total = dict(terms)
    for column in columns:
        total[column] = total.get(column, 0.0) + 1.0
    return total


def chains_of(endpoint: EndpointDemand) -> list[list[str]]:
    """Names of the stages from the root to each leaf."""
    above = parents(endpoint)
    inner = set(above.values())
    chains: list[list[str]] = []
    for leaf in above:
        if leaf not in inner:
            chain: list[str] = []
            at: str | None = leaf
            while at is not None:
                chain.append(at)
                at = above[at]
            chains.append(chain[::-1])
    return chains


def _leaf_count(endpoint: EndpointDemand) -> int:
    return len(chains_of(endpoint))


def _limits(snapshot: Snapshot, capacity: Capacity, endpoints: Sequence[EndpointDemand], *, exact: bool) -> dict[str, float]:
    """By task: the longest that a batch may take, at most; of a stage in a graph what the fastest variants of the others leave, or its fixed part."""
    limits_ms: dict[str, float] = {}
    for endpoint in endpoints:
        half_ms = compute_ms(endpoint, snapshot.hop_ms) / 2.0
        parts = stage_budgets(endpoint, capacity, half_ms)
        fastest = {stage.name: capacity.fastest_ms(stage.task) for stage in endpoint.stages}
        for stage in endpoint.stages:
            rest = max(sum(fastest[name] for name in chain if name != stage.name) for chain in chains_of(endpoint) if stage.name in chain)
            limit = half_ms - rest if exact else parts[stage.name]
            limits_ms[stage.task] = min(limits_ms.get(stage.task, limit), limit)
    return limits_ms


def _operations(capacity: Capacity, limits_ms: Mapping[str, float], many: set[str]) -> Iterable[tuple[int, Operation]]:
    """The best batch within the limit; for tasks in `many` the smaller ones too."""
    for task, limit_ms in limits_ms.items():
        for variant in capacity.tasks.get(task, ()):
            for at, crew in enumerate(capacity.crews):
                best = capacity.operation(crew, variant.key, limit_ms)
                if best is None:
                    continue
                yield at, best
                rate = 0.0
                for batch in BATCHES if task in many else ():
                    if batch < best.batch_size:
                        smaller = capacity.operation_at(crew, variant.key, batch, best.threads)
                        if smaller.rate_rps > rate * WORTH:
                            rate = smaller.rate_rps
                            yield at, smaller


def _hardware_scaling(capacity: Capacity, snapshot: Snapshot, asked: Sequence[tuple[EndpointDemand, Family]], time: SolverTime) -> Answer | None:
    """Step 1: the most accurate path of each endpoint alone; None where it cannot carry the demand."""
    best = [(endpoint, Family(name=family.name, rate_rps=family.rate_rps, paths=family.paths[:1])) for endpoint, family in asked]
    program = loki_program(capacity, snapshot, best)
    return program.fewest_workers(time) if len(program.families) == len(best) else None


def _rates(answer: Answer) -> dict[str, float]:
    rates: dict[str, float] = {}
    for place, count in answer.workers.items():
        rates[place[1]] = rates.get(place[1], 0.0) + count * answer.operations[place].rate_rps
    return rates


def _budgets(snapshot: Snapshot, capacity: Capacity, answer: Answer) -> dict[str, dict[str, float]]:
    """Twice the latency of the slowest configuration that is used; stages that host nothing, and chains that would be too long, in proportion."""
    slowest: dict[str, float] = {}
    for place in answer.workers:
        task = capacity.variants[place[1]].task
        slowest[task] = max(slowest.get(task, 0.0), answer.operations[place].latency_ms)
    budgets = default_budgets(snapshot, capacity)
    for endpoint in snapshot.endpoints:
        if endpoint.endpoint not in budgets or any(stage.task not in slowest for stage in endpoint.stages):
            continue
        doubled = {stage.name: 2.0 * slowest[stage.task] for stage in endpoint.stages}
        longest = max(sum(doubled[name] for name in chain) for chain in chains_of(endpoint))
        part = min(compute_ms(endpoint, snapshot.hop_ms) / longest, 1.0)
        budgets[endpoint.endpoint] = {name: budget * part for name, budget in doubled.items()}
    return budgets

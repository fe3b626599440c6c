"""Why a proposal is what it is, in words and figures."""

from __future__ import annotations

from math import inf

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.headrace.allocation import Allocation
from scaler.optimizers.headrace.hosting import Candidate, Hosting
from scaler.optimizers.headrace.routes import Class, Routes
from scaler.optimizers.optimizer import FALLBACK, FEASIBLE, INFEASIBLE, OPTIMAL, Explanation
from scaler.optimizers.paths import compute_ms, paths_of
from scaler.optimizers.snapshot import READY, Snapshot

FULL, ALL = 0.98, 0.999
GAP_OPTIMAL = 0.01
REASONS_MAX = 24
IDLE = "nothing is asked for: every endpoint is kept ready as far as it can be"


def idle(snapshot: Snapshot, routes: Routes, capacity: Capacity) -> Explanation:
    """Nothing can be answered, or nothing is asked for, or there was no time: what is hosted stays."""
    reasons = _hopeless(snapshot, routes, capacity)
    asked = {snapshot.endpoints[each.endpoint].endpoint for each in routes.classes if not each.idle}
    answerable = any(each.routes for each in routes.classes)
    if not asked:
        reasons.insert(0, IDLE)
    elif answerable:
        reasons.insert(0, "the time was too short to compare plans: what is hosted stays, or a rule of thumb decided")
    return Explanation(
        status=INFEASIBLE if asked and not answerable else FALLBACK,
        bound_by=tuple(reasons[:REASONS_MAX]),
        served={endpoint.endpoint: 0.0 if endpoint.endpoint in asked else 1.0 for endpoint in snapshot.endpoints} if not answerable else {},
    )


def explain(snapshot: Snapshot, routes: Routes, capacity: Capacity, best: Candidate, bound: float) -> Explanation:
    """What the plan is expected to do."""
    hosting, allocation, objective = best.hosting, best.allocation, best.objective
    served, accuracy = _by_endpoint(snapshot, routes, allocation)
    crew_load = _crew_load(routes, hosting, allocation)
    gap = max((bound - objective) / max(abs(bound), 1e-9), 0.0) if bound < inf else None
    status = OPTIMAL if gap is not None and gap <= GAP_OPTIMAL else FEASIBLE
    if any(part < ALL for part in served.values()):
        status = INFEASIBLE
    reasons = [] if any(not each.idle for each in routes.classes) else [IDLE]
    reasons += _hopeless(snapshot, routes, capacity)
    full = {routes.crews[at].type for at, load in enumerate(crew_load) if load >= FULL}
    reasons += [f"{type_} workers are full" for type_ in sorted(full)]
    reasons += _short(snapshot, routes, served)
    reasons += _memory(routes, capacity, hosting)
    reasons += _narrow(snapshot, routes)
    return Explanation(
        status=status,
        objective=objective,
        gap=gap,
        bound_by=tuple(dict.fromkeys(reasons))[:REASONS_MAX],
        served=served,
        accuracy=accuracy,
        load=_by_type(routes, crew_load),
    )


def _by_endpoint(snapshot: Snapshot, routes: Routes, allocation: Allocation) -> tuple[dict[str, float], dict[str, float]]:
    offered = [0.0] * len(snapshot.endpoints)
    answered, accurate = list(offered), list(offered)
    for each, parts in zip(routes.classes, allocation.parts, strict=True):
        if each.idle:
            continue
        offered[each.endpoint] += each.rate_rps
        for number, part in parts.items():
            answered[each.endpoint] += part * each.rate_rps
            accurate[each.endpoint] += part * each.rate_rps * routes.routes[number].accuracy
    names = [endpoint.endpoint for endpoint in snapshot.endpoints]
    served = {name: min(answered[at] / offered[at], 1.0) if offered[at] else 1.0 for at, name in enumerate(names)}
    return served, {name: min(accurate[at] / answered[at], 1.0) for at, name in enumerate(names) if answered[at] > 0.0}


def _crew_load(routes: Routes, hosting: Hosting, allocation: Allocation) -> list[float]:
    busy = [0.0] * len(routes.crews)
    for team, times in zip(hosting.teams(routes), allocation.busy, strict=True):
        busy[team.crew] += sum(times.values())
    return [time / crew.size for time, crew in zip(busy, routes.crews, strict=True)]


def _by_type(routes: Routes, crew_load: list[float]) -> dict[str, float]:
    busy: dict[str, float] = {}
    size: dict[str, int] = {}
    for crew, load in zip(routes.crews, crew_load, strict=True):
        busy[crew.type] = busy.get(crew.type, 0.0) + load * crew.size
        size[crew.type] = size.get(crew.type, 0) + crew.size
    return {type_: min(busy[type_] / size[type_], 1.0) for type_ in busy}


def _hopeless(snapshot: Snapshot, routes: Routes, capacity: Capacity) -> list[str]:
    """What nothing can be done about."""
    reasons: list[str] = []
    if not routes.crews:
        alive = sum(worker.state == READY for worker in snapshot.workers)
        reasons.append("no worker has a lane" if alive else f"no worker is ready ({len(snapshot.workers)} are known)")
    else:
        reasons += [_without_route(each, snapshot, capacity) for each in routes.classes if not each.routes and not each.idle]
    return reasons + list(capacity.notes)


def _without_route(each: Class, snapshot: Snapshot, capacity: Capacity) -> str:
    endpoint = snapshot.endpoints[each.endpoint]
    bare = [stage.task for stage in endpoint.stages if not capacity.tasks.get(stage.task)]
    if bare:
        return f"no worker can host any variant of task {bare[0]}, which {endpoint.endpoint} needs"
    paths = paths_of(endpoint, capacity)
    best = paths[0].accuracy if paths else 0.0
    if best < each.floor:
        return f"floor {each.floor:g} of {endpoint.endpoint} is above what any worker can answer (best {best:.4f})"
    least_ms = sum(capacity.fastest_ms(stage.task) for stage in endpoint.stages)
    left_ms = compute_ms(endpoint, snapshot.hop_ms)
    return (
        f"floor {each.floor:g} of {endpoint.endpoint} cannot be met in time: {left_ms:.0f} ms to compute, its fastest variants need {least_ms:.0f} ms"
    )


def _short(snapshot: Snapshot, routes: Routes, served: dict[str, float]) -> list[str]:
    answerable = {snapshot.endpoints[each.endpoint].endpoint for each in routes.classes if each.routes}
    cut = sorted((part, name) for name, part in served.items() if part < ALL and name in answerable)
    return [f"only {part:.0%} of {name} can be served" for part, name in cut]


def _memory(routes: Routes, capacity: Capacity, hosting: Hosting) -> list[str]:
    """Types of which no worker could host one variant more."""
    tight: set[str] = set()
    for crew, seats in zip(routes.crews, hosting.crews, strict=True):
        if crew.memory_bytes_max and crew.workers:
            every = {key: capacity.memory_bytes(crew, (key,)) for key in capacity.variants if capacity.can_host(crew, key)}
            if all(_is_full(hosted, every, crew.memory_bytes_max) for hosted in set(seats)):
                tight.add(crew.type)
    return [f"memory of {type_} workers is full" for type_ in sorted(tight)]


def _is_full(hosted: tuple[str, ...], memory: dict[str, int], memory_bytes: int) -> bool:
    left = memory_bytes - sum(memory[key] for key in hosted)
    least = min((needed for key, needed in memory.items() if key not in hosted), default=None)
    return least is not None and least > left


def _narrow(snapshot: Snapshot, routes: Routes) -> list[str]:
    """Floors that leave little choice."""
    total: dict[int, int] = {}
    for route in routes.routes:
        total[route.endpoint] = total.get(route.endpoint, 0) + 1
    found: list[str] = []
    for each in routes.classes:
        if len(each.routes) == 1 and not each.idle and (each.floor > 0.0 or total[each.endpoint] > 1):
            variants = ", ".join(routes.routes[each.routes[0]].variants.values())
            found.append(f"floor {each.floor:g} of {snapshot.endpoints[each.endpoint].endpoint} leaves one path: {variants}")
    return found

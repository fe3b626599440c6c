"""From a draft (who hosts what) to a proposal: bindings with lanes, shares, budgets, and why it is not better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.evaluation import Flows, flows_of
from scaler.optimizers.lanes import Post, bind
from scaler.optimizers.optimizer import FEASIBLE, INFEASIBLE, OPTIMAL, WORTHWHILE, Explanation, Limits, Proposal
from scaler.optimizers.paths import compute_ms, demand_by_floor, demand_rps, paths_of, stage_budgets
from scaler.optimizers.snapshot import READY, EndpointDemand, Snapshot

FULL = 0.995
SERVED = 0.9999
NOTES_MAX = 24
"""So many reasons and no more: the first are the most important."""


class Draft(msgspec.Struct, kw_only=True):
    """What an optimizer decided."""

    posts: list[Post]
    status: str = FEASIBLE
    bound_by: list[str] = []
    objective: float | None = None
    """None: requests/s served, times their accuracy."""
    gap: float | None = None
    shares: Mapping[str, Mapping[str, float]] | None = None
    """None: as the best flows over the bindings have it."""
    budgets: Mapping[str, Mapping[str, float]] | None = None
    """None: the time-out, divided in proportion to the fastest variants."""
    adopted: str = WORTHWHILE


def assemble(draft: Draft, snapshot: Snapshot, capacity: Capacity, limits: Limits) -> Proposal:
    """The proposal; what it serves is judged by `flows_of`, alike for every optimizer."""
    bindings = bind(draft.posts, snapshot)
    budgets = default_budgets(snapshot, capacity) if draft.budgets is None else {name: dict(budget) for name, budget in draft.budgets.items()}
    flows = flows_of(bindings, snapshot, capacity, budgets=budgets, time_s=limits.left_s)
    shares = flows.shares if draft.shares is None else {task: dict(share) for task, share in draft.shares.items()}
    short = flows.solved and any(served < SERVED for served in flows.served.values())
    objective = draft.objective
    if objective is None:
        asked = {endpoint.endpoint: demand_rps(endpoint) for endpoint in snapshot.endpoints}
        objective = sum(flows.accuracy.get(name, 0.0) * flows.served[name] * asked[name] for name in asked)
    return Proposal(
        bindings=bindings,
        shares=shares,
        budgets=budgets,
        adopted=draft.adopted,
        explanation=Explanation(
            status=INFEASIBLE if short and draft.status in (OPTIMAL, FEASIBLE) else draft.status,
            objective=objective,
            gap=draft.gap,
            bound_by=_bound_by([*draft.bound_by, *bounds_of(snapshot, capacity, flows), *capacity.notes]),
            served=flows.served if flows.solved else {},
            accuracy=flows.accuracy,
            load=flows.load if flows.solved else {},
        ),
    )


def default_budgets(snapshot: Snapshot, capacity: Capacity) -> dict[str, dict[str, float]]:
    """By endpoint and stage; an endpoint whose time-out leaves nothing is missing."""
    times = {endpoint.endpoint: (endpoint, compute_ms(endpoint, snapshot.hop_ms)) for endpoint in snapshot.endpoints}
    return {name: stage_budgets(endpoint, capacity, time_ms) for name, (endpoint, time_ms) in times.items() if time_ms > 0.0 and endpoint.stages}


def bounds_of(snapshot: Snapshot, capacity: Capacity, flows: Flows) -> list[str]:
    """What kept a plan with these flows from being better, most important first."""
    notes: list[str] = []
    if not capacity.crews:
        ready = any(worker.state == READY for worker in snapshot.workers)
        notes.append("no worker has a lane" if ready else f"no worker is ready ({len(snapshot.workers)} known)")
    if not snapshot.endpoints:
        notes.append("no endpoint asks for anything")
    elif not any(demand_rps(endpoint) > 0.0 for endpoint in snapshot.endpoints):
        notes.append("nothing is asked for")
    if not flows.solved:
        notes.append("no time was left to tell what the plan serves")
    for type_, load in sorted(flows.load.items()):
        if load >= FULL:
            notes.append(f"{type_} workers are full")
    for endpoint in snapshot.endpoints:
        notes += _of_endpoint(endpoint, snapshot, capacity, flows)
    return notes


def _of_endpoint(endpoint: EndpointDemand, snapshot: Snapshot, capacity: Capacity, flows: Flows) -> list[str]:
    name = endpoint.endpoint
    if compute_ms(endpoint, snapshot.hop_ms) <= 0.0:
        return [f"{name}: its time-out of {endpoint.timeout_ms:g} ms leaves nothing for computing"]
    missing = sorted({stage.task for stage in endpoint.stages if not capacity.tasks.get(stage.task)})
    if missing:
        return [f"{name}: no worker can host a variant of {', '.join(missing)}"]
    if not flows.solved or flows.served.get(name, 1.0) >= SERVED:
        return []
    best = max((path.accuracy for path in paths_of(endpoint, capacity, 512)), default=0.0)
    unmet = [f"{name}: floor {floor.floor:g} is above the best path ({best:.4g})" for floor in demand_by_floor(endpoint) if floor.floor > best]
    return [*unmet, f"{name}: {100.0 * flows.served[name]:.1f} % of {demand_rps(endpoint):g} requests/s can be served"]


def _bound_by(notes: Iterable[str]) -> tuple[str, ...]:
    distinct = list(dict.fromkeys(notes))
    more = len(distinct) - NOTES_MAX
    return tuple(distinct) if more <= 0 else (*distinct[:NOTES_MAX], f"and {more} more")

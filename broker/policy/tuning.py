"""How accurate the answers may be under the present load: the fluid allocation of computing time to accuracy.

Every class of requests (task, rung) starts at the cheapest variant that meets its floor. What time is left goes to the upgrade with the most accuracy
per millisecond, again and again: the greedy solution of the linear program max sum(accuracy x flow) under one capacity, exact because each class
offers its upgrades along an upper convex hull (the single-pool form of Proteus, ASPLOS'24, section 4, with rates per floor).
"""

from __future__ import annotations

import heapq

import msgspec

Group = tuple[str, int]
"""(task, rung)"""


class Rung(msgspec.Struct, frozen=True):
    """A variant as the allocation sees it."""

    key: str
    accuracy: float
    row_ms: float


class Mix(msgspec.Struct, frozen=True):
    """Which variants a class is answered with: `upper` for this part of its requests, `lower` for the rest."""

    lower: Rung
    upper: Rung
    upper_part: float


def hull(rungs: list[Rung]) -> list[Rung]:
    """Upper convex hull of accuracy over cost, cheapest first: from each variant to the next, accuracy per millisecond falls."""
    best: list[Rung] = []
    for rung in sorted(rungs, key=lambda r: (r.row_ms, -r.accuracy)):
        if best and rung.accuracy <= best[-1].accuracy:
            continue
        while len(best) >= 2 and _gain(best[-2], rung) >= _gain(best[-2], best[-1]):
            best.pop()
        best.append(rung)
    return best


def _gain(cheap: Rung, dear: Rung) -> float:
    cost_ms = dear.row_ms - cheap.row_ms
    return (dear.accuracy - cheap.accuracy) / cost_ms if cost_ms > 0.0 else float("inf")


def allocate(demand: dict[Group, float], ladders: dict[Group, list[Rung]], capacity_ms: float) -> dict[Group, Mix]:
    """The mix of each class.

    `demand`: rows that will want an answer within the time that `capacity_ms` (milliseconds of computing) stands for;
    `ladders`: the variants at or above each class's rung.
    Classes without a variant are left out. Where even the cheapest variants do not fit, every class gets its cheapest.
    """
    hulls = {group: hull(ladders[group]) for group in demand if ladders.get(group)}
    at = dict.fromkeys(hulls, 0)
    part: dict[Group, float] = {}
    left_ms = capacity_ms - sum(demand[group] * steps[0].row_ms for group, steps in hulls.items())
    upgrades: list[tuple[float, Group]] = []
    for group, steps in hulls.items():
        if len(steps) > 1:
            heapq.heappush(upgrades, (-_gain(steps[0], steps[1]), group))
    while upgrades and left_ms > 0.0:
        _, group = heapq.heappop(upgrades)
        steps, level = hulls[group], at[group]
        cost_ms = demand[group] * (steps[level + 1].row_ms - steps[level].row_ms)
        if cost_ms > left_ms:
            part[group] = left_ms / cost_ms
            break
        left_ms -= cost_ms
        at[group] = level + 1
        if level + 2 < len(steps):
            heapq.heappush(upgrades, (-_gain(steps[level + 1], steps[level + 2]), group))
    return {group: Mix(steps[at[group]], steps[min(at[group] + 1, len(steps) - 1)], part.get(group, 0.0)) for group, steps in hulls.items()}

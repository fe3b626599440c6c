# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# SciPy has no types.
"""The transportation problem: so many of each source to so much room at each sink, at the least cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_array

ASSIGNED_MAX = 1_500
"""Units up to which each is a row of an assignment problem: exact, and quick enough."""
CELLS_MAX = 60_000
"""Pairs of source and sink up to which the linear program is solved: exact, for all its vertices are whole numbers."""

Costs = NDArray[np.float64]


def transport(costs: Costs, wanted: Sequence[int], room: Sequence[int]) -> list[tuple[int, int, int]]:
    """(source, sink, count) with count > 0. `costs`: by source and sink, of one unit. There must be room for all.

    Exact where there are few units, or few kinds; else the cheapest pairs first, made better block by block.
    """
    units = sum(wanted)
    if units > sum(room):
        raise ValueError(f"{units} units, and room for {sum(room)}")
    if units == 0:
        return []
    room = [min(each, units) for each in room]
    if sum(room) <= ASSIGNED_MAX:
        return _assigned(costs, wanted, room)
    if costs.size <= CELLS_MAX:
        found = _solved(costs, wanted, room)
        if found is not None:
            return found
    return _improved(costs, _greedy(costs, wanted, room))


def _assigned(costs: Costs, wanted: Sequence[int], room: Sequence[int]) -> list[tuple[int, int, int]]:
    """The Hungarian method over single units."""
    sources = np.repeat(np.arange(len(wanted)), wanted)
    sinks = np.repeat(np.arange(len(room)), room)
    rows, columns = linear_sum_assignment(costs[np.ix_(sources, sinks)])
    return _counted(sources[rows], sinks[columns])


def _solved(costs: Costs, wanted: Sequence[int], room: Sequence[int]) -> list[tuple[int, int, int]] | None:
    """By HiGHS' simplex, which ends at a vertex."""
    sources, sinks = costs.shape
    cells = np.arange(costs.size)
    ones = np.ones(costs.size)
    leaving = coo_array((ones, (cells // sinks, cells)), shape=(sources, costs.size)).tocsr()
    coming = coo_array((ones, (cells % sinks, cells)), shape=(sinks, costs.size)).tocsr()
    solved = linprog(costs.ravel(), A_eq=leaving, b_eq=wanted, A_ub=coming, b_ub=room, method="highs-ds")
    if solved.x is None:
        return None
    flows = np.rint(solved.x).astype(int).reshape(costs.shape)
    if not np.array_equal(flows.sum(axis=1), np.asarray(wanted)) or np.any(flows.sum(axis=0) > np.asarray(room)):
        return None
    return [(int(source), int(sink), int(flows[source, sink])) for source, sink in np.argwhere(flows > 0)]


def _greedy(costs: Costs, wanted: Sequence[int], room: Sequence[int]) -> list[tuple[int, int, int]]:
    left, free = list(wanted), list(room)
    units = sum(left)
    found: list[tuple[int, int, int]] = []
    for cell in np.argsort(costs, axis=None, kind="stable"):
        source, sink = divmod(int(cell), len(free))
        count = min(left[source], free[sink])
        if count:
            found.append((source, sink, count))
            left[source] -= count
            free[sink] -= count
            units -= count
            if not units:
                break
    return found


def _improved(costs: Costs, pairs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Exchange sinks within blocks of units, the dearest first: each block ends at its own best."""
    pairs = sorted(pairs, key=lambda pair: costs[pair[0], pair[1]], reverse=True)
    sources = np.repeat([source for source, _, _ in pairs], [count for _, _, count in pairs])
    sinks = np.repeat([sink for _, sink, _ in pairs], [count for _, _, count in pairs])
    for start in range(0, len(sources), ASSIGNED_MAX):
        block = slice(start, start + ASSIGNED_MAX)
        rows, columns = linear_sum_assignment(costs[np.ix_(sources[block], sinks[block])])
        sinks[block] = sinks[block][columns[np.argsort(rows)]]
    return _counted(sources, sinks)


def _counted(sources: NDArray[np.int_], sinks: NDArray[np.int_]) -> list[tuple[int, int, int]]:
    pairs, counts = np.unique(np.stack([sources, sinks]), axis=1, return_counts=True)
    return [(int(source), int(sink), int(count)) for (source, sink), count in zip(pairs.T, counts, strict=True)]

"""How many workers of each class the forecast needs, at the most accurate variants that are in time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import msgspec

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.picking import picks_of, task_demands
from scaler.optimizers.snapshot import READY, Snapshot, Worker
from scaler.optimizers.solver import Program
from scaler.optimizers.static import by_accuracy

SOLVE_S = 0.5
SHORTAGE = 1e4
"""What the forecast costs that is not served, in cores: nothing else may cost as much."""
ROUNDING = 1e-6


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What one class may have."""

    worker: Worker
    """One of them, as all are."""
    least: int
    most: int
    threads: int = 1
    """That each is bound with."""


class Needed(msgspec.Struct, frozen=True, kw_only=True):
    """What serves the forecast with the fewest cores."""

    counts: dict[str, int]
    """Workers by class; of the least that a class has, at least so many."""
    short: bool = False
    """All that is allowed does not serve it."""
    unknown: tuple[str, ...] = ()
    """Tasks of which it is not known what they cost: nothing of them was counted."""


def needed(snapshot: Snapshot, rooms: Mapping[str, Room], *, headroom: float, cores: int = 0) -> Needed:
    """By an exact program over whole workers, whose time is divided at will among the tasks.

    `headroom`: multiple of the forecast that is to be served. `cores`: that all workers of these classes share; 0: no limit.
    """
    classes = sorted(rooms)
    workers = tuple(
        msgspec.structs.replace(room.worker, state=READY, threads_max=room.threads, binding=None, hosted=(), refused={})
        for room in (rooms[name] for name in classes)
    )
    capacity = Capacity(msgspec.structs.replace(snapshot, workers=workers))
    demands = {task: demand for task, demand in task_demands(snapshot, capacity).items() if demand.rate_rps > 0.0}
    picks = picks_of(capacity, demands, by_accuracy)
    asked = {stage.task for endpoint in snapshot.endpoints if endpoint.forecast_rps > 0.0 for stage in endpoint.stages}
    unknown = tuple(sorted(asked - picks.keys()))
    least = {name: rooms[name].least for name in classes}
    if not picks:
        return Needed(counts=least, unknown=unknown)
    rates = {
        task: {capacity.crews[at].accelerator: operation.rate_rps for at, operation in found.items() if operation.rate_rps > 0.0}
        for task, found in picks.items()
    }
    wanted = {task: headroom * demands[task].rate_rps for task in picks}
    if len(classes) == 1:
        counts, short = _of_one(rooms[classes[0]], sum(rate_rps / rates[task][classes[0]] for task, rate_rps in wanted.items()), cores)
    else:
        counts, short = _fewest([rooms[name] for name in classes], rates, wanted, cores)
    return Needed(counts=counts or least, short=short or not counts, unknown=unknown)


def _of_one(room: Room, time: float, cores: int) -> tuple[dict[str, int], bool]:
    """`time`: of workers, together. What the program below would find."""
    most = min(room.most, max(cores // room.threads, room.least)) if cores else room.most
    count = ceil(time - ROUNDING)
    return {room.worker.accelerator: min(max(count, room.least), max(most, room.least))}, count > most


def _fewest(rooms: Sequence[Room], rates: Mapping[str, Mapping[str, float]], wanted: Mapping[str, float], cores: int) -> tuple[dict[str, int], bool]:
    """Columns: workers of each class, their time for each task, and what is not served, as a part of what is wanted."""
    program = Program()
    counts = {
        room.worker.accelerator: program.column(-float(room.threads), float(room.least), float(max(room.most, room.least)), integer=True)
        for room in rooms
    }
    spent: dict[str, dict[int, float]] = {name: {} for name in counts}
    missing: list[int] = []
    for task, rate_rps in wanted.items():
        lacking = program.column(-SHORTAGE, 0.0, 1.0)
        missing.append(lacking)
        terms = {lacking: 1.0}
        for name, rate in rates[task].items():
            time = program.column()
            spent[name][time] = 1.0
            terms[time] = rate / rate_rps
        program.row(terms, lower=1.0)
    for name, column in counts.items():
        program.row({**spent[name], column: -1.0}, upper=0.0)
    if cores:
        program.row({counts[room.worker.accelerator]: float(room.threads) for room in rooms}, upper=float(max(cores, _least_cores(rooms))))
    solved = program.solve(time_s=SOLVE_S, seed=1, gap=0.0)
    if not solved.found:
        return {}, True
    found = {name: ceil(solved.values[column] - ROUNDING) for name, column in counts.items()}
    return found, any(solved.values[column] > ROUNDING for column in missing)


def _least_cores(rooms: Sequence[Room]) -> int:
    return sum(room.least * room.threads for room in rooms)

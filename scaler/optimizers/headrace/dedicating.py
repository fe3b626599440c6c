"""Whole workers for each group of tasks that get on with each other: what a group has can be counted on, and nobody's batches make others late."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil

from scaler.optimizers.capacity import Capacity, Crew
from scaler.optimizers.headrace.hosting import Hosting, Reserve, spares_of
from scaler.optimizers.headrace.packing import held_by
from scaler.optimizers.headrace.routes import Routes
from scaler.optimizers.snapshot import Worker

TRIFLE = 0.02
"""Workers' time that does not ask for a worker of its own."""


def dedicated(routes: Routes, capacity: Capacity, reserve: Reserve, groups: Mapping[str, str]) -> Hosting:
    """Each worker hosts tasks of one group: as many workers as the group needs, and of those left as many as a surge would need.

    `groups`: by task. Within its group a worker hosts all that memory allows: what is needed first first, then what it has, then spares.
    """
    spares = spares_of(routes, capacity, reserve.horizon_ms)
    crews: list[tuple[tuple[str, ...], ...]] = []
    for crew, wanted, surge, spare in zip(routes.crews, reserve.wanted, reserve.surge, spares, strict=True):
        sizes = _sizes(crew.size, _by_group(wanted, groups, capacity), _by_group(surge, groups, capacity))
        taken = _taken(crew, sizes, groups, capacity)
        every = {name: _ranked(name, (wanted, surge), spare, groups, capacity) for name in sizes}
        needed = {name: _ranked(name, (wanted,), {}, groups, capacity) for name in sizes}
        seats: list[tuple[str, ...]] = []
        alike: dict[tuple[str, frozenset[str]], tuple[str, ...]] = {}
        for worker, name in taken:
            place = (name, held_by(worker))
            if place not in alike:
                held = [key for key in every.get(name, ()) if key in place[1]]
                # Whoever serves the group already loads nothing more than it needs: a load keeps its requests waiting.
                wished = [*needed.get(name, ()), *held] if held else every.get(name, ())
                alike[place] = _hosted(crew, wished, capacity, reserve.variants_max)
            seats.append(alike[place])
        crews.append(tuple(seats))
    return Hosting(tuple(crews))


def workers_of_fewest(hosting: Hosting, capacity: Capacity, tasks: Collection[str]) -> int:
    """How many workers host the task that fewest do."""
    counts = dict.fromkeys(tasks, 0)
    for seats in hosting.crews:
        for hosted in seats:
            for task in {capacity.variants[key].task for key in hosted} & counts.keys():
                counts[task] += 1
    return min(counts.values(), default=0)


def _by_group(times: Mapping[str, float], groups: Mapping[str, str], capacity: Capacity) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, time in times.items():
        name = groups[capacity.variants[key].task]
        found[name] = found.get(name, 0.0) + time
    return found


def _sizes(workers: int, needed: Mapping[str, float], surge: Mapping[str, float]) -> dict[str, int]:
    """Workers by group: one by one to the group that is shortest of what it needs; once all have that, of what a surge would need."""
    sizes = dict.fromkeys([*needed, *surge], 0)
    for _ in range(workers):
        short = {
            name: need / (sizes[name] + TRIFLE) for name, need in needed.items() if need > 0.0 and sizes[name] < ceil(max(need - TRIFLE, TRIFLE))
        }
        later = {name: need / (sizes[name] + TRIFLE) for name, need in surge.items() if need > TRIFLE}
        from_these = short or later or {name: 1.0 / (size + TRIFLE) for name, size in sizes.items()}
        if not from_these:
            break
        sizes[max(sorted(from_these), key=lambda name: from_these[name])] += 1
    return sizes


def _taken(crew: Crew, sizes: Mapping[str, int], groups: Mapping[str, str], capacity: Capacity) -> list[tuple[Worker, str]]:
    """By worker, in the crew's order: its group ("" for none); whoever has most of a group's variants stays with it."""
    left = dict(sizes)
    chosen: dict[str, str] = {}
    ranked: list[tuple[int, str, str]] = []
    for worker in crew.workers:
        counts: dict[str, int] = {}
        for key in held_by(worker):
            name = groups.get(capacity.variants[key].task) if key in capacity.variants else None
            if name is not None:
                counts[name] = counts.get(name, 0) + 1
        ranked += [(-count, worker.name, name) for name, count in counts.items()]
    for _, worker_name, name in sorted(ranked):
        if worker_name not in chosen and left.get(name, 0) > 0:
            chosen[worker_name] = name
            left[name] -= 1
    free = iter([name for name, count in left.items() for _ in range(count)])
    return [(worker, chosen.get(worker.name) or next(free, "")) for worker in crew.workers]


def _ranked(
    name: str,
    wanted: Sequence[Mapping[str, float]],
    spare: Mapping[str, Sequence[str]],
    groups: Mapping[str, str],
    capacity: Capacity,
) -> list[str]:
    """Variants of a group as they are wanted; of the spares the first of each task, then the second of each."""
    own = [key for times in wanted for key, _ in sorted(times.items(), key=lambda item: (-item[1], item[0]))]
    own = [key for key in own if groups[capacity.variants[key].task] == name]
    fronts = [spare[task] for task in spare if groups[task] == name]
    more = [front[rank] for rank in range(max(map(len, fronts), default=0)) for front in fronts if rank < len(front)]
    return list(dict.fromkeys([*own, *more]))


def _hosted(crew: Crew, ranked: Sequence[str], capacity: Capacity, variants_max: int) -> tuple[str, ...]:
    """As far as memory goes."""
    hosted: list[str] = []
    for key in dict.fromkeys(ranked):
        if len(hosted) < max(variants_max, 1) and capacity.fits(crew, (*hosted, key)):
            hosted.append(key)
    return tuple(hosted)

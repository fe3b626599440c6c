"""Who hosts what: candidates, made from the linear program, from each worker's choices one by one, from a rule, and from what is in force now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import msgspec

from scaler.optimizers.capacity import Capacity, Crew
from scaler.optimizers.headrace.allocation import FIXED, FREE, WHOLE, Allocation, Team, load_cost
from scaler.optimizers.headrace.packing import Packing, held_by
from scaler.optimizers.headrace.routes import Routes
from scaler.optimizers.headrace.settings import HeadraceSettings
from scaler.optimizers.snapshot import Worker

SPARE_PART = 0.1
"""A spare variant must load within this part of the time for which a plan is expected to stay: forecasts change."""
Wanted = Sequence[Mapping[str, float]]
"""By crew: workers' time for each variant."""


class Hosting(msgspec.Struct, frozen=True):
    """By crew, by worker (in the crew's order): what it hosts, what it needs first first."""

    crews: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def any(self) -> bool:
        """Whether anybody hosts anything."""
        return any(any(seats) for seats in self.crews)

    def teams(self, routes: Routes) -> list[Team]:
        """Workers that host the same are told apart no further."""
        teams: list[Team] = []
        for at, seats in enumerate(self.crews):
            alike: dict[tuple[str, ...], int] = {}
            for hosted in seats:
                each = tuple(sorted(hosted))
                alike[each] = alike.get(each, 0) + 1
            teams += [Team(crew=at, count=count, hosting=FIXED, holders=dict.fromkeys(each, count)) for each, count in alike.items() if each]
        return teams

    def switching(self, routes: Routes, capacity: Capacity, settings: HeadraceSettings, horizon_ms: float) -> float:
        """What all its loads take from the objective."""
        workers = max(sum(crew.size for crew in routes.crews), 1)
        total = 0.0
        for crew, seats in zip(routes.crews, self.crews, strict=True):
            for worker, hosted in zip(crew.workers, seats, strict=True):
                held = held_by(worker)
                total += sum(load_cost(capacity.load_ms(crew, key), workers, settings, horizon_ms) for key in hosted if key not in held)
        return total


class Candidate(msgspec.Struct, frozen=True):
    """One way to host, with what it would achieve."""

    hosting: Hosting
    allocation: Allocation
    objective: float
    """Its loads are paid for."""


class Reserve(msgspec.Struct, frozen=True):
    """What idle time and memory are used for."""

    wanted: Wanted
    """What the forecast needs."""
    surge: Wanted
    """What a multiple of it would need."""
    horizon_ms: float
    variants_max: int
    """Of each worker, with those that are spare."""


def free_teams(routes: Routes, lost: Sequence[float]) -> list[Team]:
    """One team for each crew, whose hosting is relaxed; `lost`: workers' time of each crew that cannot be used."""
    return [Team(crew=at, count=crew.size, hosting=FREE, holders=_holders(crew), lost=lost[at]) for at, crew in enumerate(routes.crews)]


def single_teams(routes: Routes) -> list[Team]:
    """One team for each worker, in the order of crews and workers."""
    return [
        Team(crew=at, count=1, hosting=WHOLE, holders=dict.fromkeys(held_by(worker), 1))
        for at, crew in enumerate(routes.crews)
        for worker in crew.workers
    ]


def choices(routes: Routes) -> int:
    """How many decisions `single_teams` makes."""
    useful: list[set[str]] = [set() for _ in routes.crews]
    for route in routes.routes:
        for runs in route.runs:
            for run in runs:
                useful[run.crew].add(run.variant)
    return sum(crew.size * len(keys) for crew, keys in zip(routes.crews, useful, strict=True))


def packed(routes: Routes, capacity: Capacity, wanted: Wanted, like: Hosting | None = None) -> tuple[Hosting, list[float]]:
    """Time of crews given to their workers, and by crew the workers' time that found no place.

    `like`: begin with this hosting instead of the present one.
    """
    packings = _packings(routes, capacity, like)
    missing = [packing.pack(times) for packing, times in zip(packings, wanted, strict=True)]
    return _hosting(packings), missing


def stayed(routes: Routes, capacity: Capacity, wanted: Wanted) -> Hosting:
    """All that is hosted stays, and what finds no place so is added where memory allows."""
    packings = _packings(routes, capacity, None)
    for packing, times in zip(packings, wanted, strict=True):
        packing.pin()
        packing.add(times)
    return _hosting(packings)


def decided(routes: Routes, capacity: Capacity, allocation: Allocation) -> Hosting:
    """What `single_teams` decided."""
    packings = _packings(routes, capacity, None)
    seats = [(packing, seat) for packing in packings for seat in packing.seats]
    for number, (packing, seat) in enumerate(seats):
        hosts, busy = allocation.hosts[number], allocation.busy[number]
        packing.place(seat, {key: busy.get(key, 0.0) for key, part in hosts.items() if part > 0.5})
    return _hosting(packings)


def filled(routes: Routes, capacity: Capacity, hosting: Hosting, reserve: Reserve) -> Hosting:
    """The hosting and more, for loads that nobody forecast: idle time goes to what a surge would need, memory to further variants of the same tasks,
    and to the other stages of the graphs that they are in: how many rows each stage gets changes with every variant that answers before it.

    Nothing of the hosting itself changes.
    """
    packings = _packings(routes, capacity, hosting)
    spares, kin = spares_of(routes, capacity, reserve.horizon_ms), _kin(routes, capacity)
    for packing, times, more, spare in zip(packings, reserve.wanted, reserve.surge, spares, strict=True):
        packing.pin()
        packing.add(times)
        packing.stretch(more or times)
        packing.widen(spare, kin, reserve.variants_max)
    return _hosting(packings)


def _kin(routes: Routes, capacity: Capacity) -> dict[str, list[str]]:
    """By task, those that are computed for the same requests."""
    found: dict[str, dict[str, None]] = {}
    for route in routes.routes:
        tasks = dict.fromkeys(capacity.variants[key].task for key in route.variants.values())
        for task in tasks:
            found.setdefault(task, {}).update(tasks)
    return {task: list(others) for task, others in found.items()}


def by_crew(routes: Routes, teams: Sequence[Team], allocation: Allocation) -> Wanted:
    """Time that teams spend, by crew."""
    found: list[dict[str, float]] = [{} for _ in routes.crews]
    for team, busy in zip(teams, allocation.busy, strict=True):
        for key, time in busy.items():
            found[team.crew][key] = found[team.crew].get(key, 0.0) + time
    return found


def present(routes: Routes, capacity: Capacity) -> Hosting:
    """What is in force, as far as it may stay."""
    return Hosting(tuple(tuple(_kept(worker, crew, capacity) for worker in crew.workers) for crew in routes.crews))


def spares_of(routes: Routes, capacity: Capacity, horizon_ms: float) -> list[dict[str, list[str]]]:
    """By crew and task: variants worth their cost there and quickly loaded; the cheapest first, then the most accurate, then those between."""
    cheapest: list[dict[str, dict[str, float]]] = [{} for _ in routes.crews]
    for number in sorted({number for each in routes.classes for number in each.routes}):
        for runs in routes.routes[number].runs:
            for run in runs:
                variants = cheapest[run.crew].setdefault(capacity.variants[run.variant].task, {})
                variants[run.variant] = min(run.row_s, variants.get(run.variant, inf))
    return [
        {task: _front(variants, crew, capacity, horizon_ms) for task, variants in tasks.items()}
        for crew, tasks in zip(routes.crews, cheapest, strict=True)
    ]


def _front(costs: Mapping[str, float], crew: Crew, capacity: Capacity, horizon_ms: float) -> list[str]:
    front: list[str] = []
    for key in sorted(costs, key=lambda key: (costs[key], -capacity.variants[key].accuracy, key)):
        quick = capacity.load_ms(crew, key) <= SPARE_PART * horizon_ms
        if quick and (not front or capacity.variants[key].accuracy > capacity.variants[front[-1]].accuracy):
            front.append(key)
    return [*front[:1], *front[:0:-1]]


def rule_of_thumb(routes: Routes) -> Wanted:
    """Each class on its cheapest route, stage by stage on the crew with most time left for what it costs there: where no program could be solved."""
    left = [float(crew.size) for crew in routes.crews]
    wanted: list[dict[str, float]] = [{} for _ in routes.crews]
    cheapest = {
        number: sum(rows * min(run.row_s for run in runs) for rows, runs in zip(route.rows, route.runs, strict=True))
        for number, route in enumerate(routes.routes)
    }
    for each in sorted(routes.classes, key=lambda each: -each.rate_rps):
        if not each.routes:
            continue
        route = routes.routes[min(each.routes, key=lambda number: (cheapest[number], number))]
        for rows, runs in zip(route.rows, route.runs, strict=True):
            run = max(runs, key=lambda run: (left[run.crew] > 0.0, left[run.crew] / (run.row_s * routes.crews[run.crew].size)))
            time = each.rate_rps * rows * run.row_s
            left[run.crew] -= time
            wanted[run.crew][run.variant] = wanted[run.crew].get(run.variant, 0.0) + time
    for crew, times in zip(routes.crews, wanted, strict=True):
        over = sum(times.values()) / crew.size
        if over > 1.0:
            times |= {key: time / over for key, time in times.items()}
    return wanted


def _kept(worker: Worker, crew: Crew, capacity: Capacity) -> tuple[str, ...]:
    kept: list[str] = []
    ready = frozenset(worker.hosted)
    for key in sorted(held_by(worker), key=lambda key: (key not in ready, key)):
        if capacity.can_host(crew, key) and capacity.fits(crew, (*kept, key)):
            kept.append(key)
    return tuple(kept)


def _holders(crew: Crew) -> dict[str, int]:
    counts: dict[str, int] = {}
    for worker in crew.workers:
        for key in held_by(worker):
            counts[key] = counts.get(key, 0) + 1
    return counts


def _packings(routes: Routes, capacity: Capacity, like: Hosting | None) -> list[Packing]:
    return [Packing(crew, capacity, like.crews[at] if like is not None else ()) for at, crew in enumerate(routes.crews)]


def _hosting(packings: Sequence[Packing]) -> Hosting:
    return Hosting(
        tuple(tuple(tuple(sorted(seat.busy, key=lambda key, busy=seat.busy: (-busy[key], key))) for seat in packing.seats) for packing in packings)
    )

"""Which groups of tasks may share workers: those whose requests still keep their deadlines where they wait for a batch of the other."""

from __future__ import annotations

from math import inf

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.headrace.hosting import Reserve, spares_of
from scaler.optimizers.headrace.routes import Routes
from scaler.optimizers.paths import compute_ms, parents
from scaler.optimizers.snapshot import EndpointDemand, Snapshot

OWN_BATCHES = 2.0
"""Of its own kind a request waits for one batch, and is computed in one (Loki, section 4)."""
LATER_WAIT = 0.5
"""One batch of others is waited for in full; at each further stage half of one, for requests come at any moment of it."""


def groups_of(routes: Routes, capacity: Capacity) -> dict[str, str]:
    """By task, the name of its group: tasks that some request needs together."""
    group: dict[str, str] = {}
    for route in routes.routes:
        tasks = [capacity.variants[key].task for key in route.variants.values()]
        named = {group.get(task, task) for task in tasks}
        name = min(named)
        group |= dict.fromkeys(tasks, name)
        group |= {task: name for task, other in group.items() if other in named}
    return group


def sharing_of(snapshot: Snapshot, routes: Routes, capacity: Capacity, reserve: Reserve) -> dict[str, str]:
    """By task, the name of the groups that may share workers with its own.

    The groups that leave most room come first, and a group joins where it gets on with everybody. What deadlines a group will have that nobody asks
    for, nobody knows: it shares where every worker has room for everything, for then whatever has to be parted later is parted without a load.
    """
    groups = groups_of(routes, capacity)
    times = _Times(snapshot, routes, capacity, groups)
    times.roomy = _roomy(routes, capacity, reserve)
    together: list[list[str]] = []
    for name in sorted(set(groups.values()), key=lambda name: (-times.room_ms(name), name)):
        fitting = next((others for others in together if all(times.share(name, other) for other in others)), None)
        if fitting is None:
            together.append([name])
        else:
            fitting.append(name)
    joined = {name: min(others) for others in together for name in others}
    return {task: joined[name] for task, name in groups.items()}


def _roomy(routes: Routes, capacity: Capacity, reserve: Reserve) -> bool:
    for crew, fronts in zip(routes.crews, spares_of(routes, capacity, reserve.horizon_ms), strict=True):
        every = [key for front in fronts.values() for key in front]
        if len(every) > reserve.variants_max or not capacity.fits(crew, every):
            return False
    return True


class _Times:
    """Batches and deadlines of every group that is asked for."""

    def __init__(self, snapshot: Snapshot, routes: Routes, capacity: Capacity, groups: dict[str, str]) -> None:
        self._snapshot = snapshot
        self.roomy = False
        """Whether every worker has room for all that any group would host."""
        self._longest: dict[str, dict[int, float]] = {}
        """By group and crew: the longest of its batches, as planned."""
        self._endpoints: dict[str, list[EndpointDemand]] = {}
        self._fastest: dict[tuple[str, str], dict[int, float]] = {}
        """By endpoint and stage: its shortest batch on each crew."""
        asked = {each.endpoint for each in routes.classes if not each.idle}
        for at in sorted(asked):
            endpoint = snapshot.endpoints[at]
            tasks = [stage.task for stage in endpoint.stages if stage.task in groups]
            if tasks:
                self._endpoints.setdefault(groups[tasks[0]], []).append(endpoint)
        used = {number for each in routes.classes if not each.idle for number in each.routes}
        for number in sorted(used):
            route = routes.routes[number]
            name = snapshot.endpoints[route.endpoint].endpoint
            for (stage, key), runs in zip(route.variants.items(), route.runs, strict=True):
                longest = self._longest.setdefault(groups[capacity.variants[key].task], {})
                fastest = self._fastest.setdefault((name, stage), {})
                for run in runs:
                    longest[run.crew] = max(longest.get(run.crew, 0.0), run.latency_ms)
                    fastest[run.crew] = min(fastest.get(run.crew, inf), run.latency_ms)

    def room_ms(self, group: str) -> float:
        """What the most urgent of its endpoints has."""
        return min((compute_ms(endpoint, self._snapshot.hop_ms) for endpoint in self._endpoints.get(group, ())), default=inf)

    def share(self, one: str, other: str) -> bool:
        """Whether each gets through behind a batch of the other, wherever both could be."""
        if one not in self._endpoints or other not in self._endpoints:
            return self.roomy
        mine, theirs = self._longest.get(one, {}), self._longest.get(other, {})
        crews = sorted(mine.keys() & theirs.keys())
        return all(self._gets_through(one, theirs[crew], crew) and self._gets_through(other, mine[crew], crew) for crew in crews)

    def _gets_through(self, group: str, foreign_ms: float, crew: int) -> bool:
        return all(self._needed_ms(endpoint, foreign_ms, crew) <= compute_ms(endpoint, self._snapshot.hop_ms) for endpoint in self._endpoints[group])

    def _needed_ms(self, endpoint: EndpointDemand, foreign_ms: float, crew: int) -> float:
        """Along the longest way from root to leaf; stages that the crew cannot compute are computed elsewhere."""
        needed: dict[str, tuple[float, float]] = {}
        for name, before in parents(endpoint).items():
            so_far_ms, waited = needed[before] if before is not None else (0.0, 0.0)
            fastest = self._fastest.get((endpoint.endpoint, name), {})
            here = crew in fastest
            own_ms = fastest[crew] if here else min(fastest.values(), default=0.0)
            wait = 0.0 if not here else LATER_WAIT if waited else 1.0
            needed[name] = (so_far_ms + OWN_BATCHES * own_ms + wait * foreign_ms, waited + wait)
        return max(so_far_ms for so_far_ms, _ in needed.values())

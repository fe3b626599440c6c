"""The linear program: which routes answer which classes, and who computes them; with hosting free, fixed, or to be decided worker by worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import msgspec

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.headrace.routes import Routes, Run
from scaler.optimizers.headrace.settings import HeadraceSettings
from scaler.optimizers.solver import Program, Solved

FREE, FIXED, WHOLE = "free", "fixed", "whole"
"""Hosting of a team: any part of its workers may host a variant (a relaxation), as `holders` say and no other, or each worker decided by itself."""
LOAD_EPSILON = 1e-6
"""A load that takes no time is a load all the same."""


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """Workers of one crew that the program does not tell apart."""

    crew: int
    count: int
    hosting: str
    holders: Mapping[str, int]
    """How many of them host each variant: now (free, whole), or as decided (fixed)."""
    lost: float = 0.0
    """Workers' time that rounding is known to lose."""


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """What the program decided."""

    objective: float
    gap: float | None
    proven: bool
    parts: tuple[Mapping[int, float], ...]
    """By class: the part of its requests that takes each route."""
    busy: tuple[Mapping[str, float], ...]
    """By team: workers' time spent on each variant, in workers."""
    hosts: tuple[Mapping[str, float], ...]
    """By team that is not fixed: how many workers host each variant."""

    def served(self, at: int) -> float:
        """Part of a class that is answered."""
        return min(sum(self.parts[at].values()), 1.0)


class Model:
    """Builds and reads one program."""

    def __init__(self, routes: Routes, teams: Sequence[Team], capacity: Capacity, settings: HeadraceSettings, horizon_ms: float) -> None:
        self._routes, self._teams, self._capacity, self._settings = routes, teams, capacity, settings
        self._horizon_ms = horizon_ms
        self._workers = max(sum(crew.size for crew in routes.crews), 1)
        self._program = Program()
        self._parts: list[dict[int, int]] = []
        self._busy: list[dict[str, list[int]]] = [{} for _ in teams]
        self._hosts: list[dict[str, list[int]]] = [{} for _ in teams]
        self._demands: dict[tuple[Run, ...], dict[int, float]] = {}
        """By the runs of a stage (which variant, where, at what cost): the columns that need it, with rows/s."""
        self._ask()
        self._supply()
        for at, team in enumerate(teams):
            self._bound(at, team)

    def solve(self, *, time_s: float, seed: int) -> Allocation | None:
        """None where the time was too short."""
        solved = self._program.solve(time_s=time_s, seed=seed, gap=self._settings.gap, nodes_max=self._settings.exact_nodes_max)
        return self._read(solved) if solved.found else None

    def _ask(self) -> None:
        """Columns for the parts of each class by route, and the smallest part of any."""
        program, routes, settings = self._program, self._routes, self._settings
        least = program.column(settings.fair, upper=1.0)
        rows: list[dict[int, float]] = []
        idle = sum(each.idle for each in routes.classes)
        for each in routes.classes:
            weight = each.rate_rps / routes.rate_rps
            ready = settings.idle / idle if each.idle else 0.0
            columns: dict[int, int] = {}
            for number in each.routes:
                route = routes.routes[number]
                column = columns[number] = program.column(weight * (settings.served + settings.accuracy * route.accuracy) + ready)
                for stage, runs in enumerate(route.runs):
                    needed = self._demands.setdefault(runs, {})
                    needed[column] = needed.get(column, 0.0) + each.rate_rps * route.rows[stage]
            self._parts.append(columns)
            if columns:
                row = dict.fromkeys(columns.values(), 1.0)
                program.row(row, upper=1.0)
                if not each.idle:
                    rows.append(row)
        for row in rows:
            program.row({least: 1.0} | dict.fromkeys(row, -1.0), upper=0.0)
        if not rows:
            program.row({least: 1.0}, upper=0.0)

    def _supply(self) -> None:
        """Time of teams that computes what was asked for."""
        by_crew: dict[int, list[int]] = {}
        for at, team in enumerate(self._teams):
            by_crew.setdefault(team.crew, []).append(at)
        for runs, needed in self._demands.items():
            row = dict(needed)
            for run in runs:
                for at in by_crew.get(run.crew, ()):
                    team = self._teams[at]
                    if team.hosting != FIXED or run.variant in team.holders:
                        column = self._program.column(upper=float(team.count))
                        self._busy[at].setdefault(run.variant, []).append(column)
                        row[column] = -1.0 / run.row_s
            # Counted in thousands, so that all figures of the program are of a like size.
            self._program.row({column: value / 1000.0 for column, value in row.items()}, upper=0.0)

    def _bound(self, at: int, team: Team) -> None:
        """No team works longer than it has time, no variant on more workers than host it, no more variants than memory holds."""
        program, crew = self._program, self._routes.crews[team.crew]
        busy = self._busy[at]
        everything = [column for columns in busy.values() for column in columns]
        if everything:
            program.row(dict.fromkeys(everything, 1.0), upper=max(team.count - team.lost, 0.0))
        memory: dict[int, float] = {}
        smallest = min((self._capacity.memory_bytes(crew, (variant,)) for variant in busy), default=0)
        for variant, columns in busy.items():
            held = float(team.holders.get(variant, 0))
            if team.hosting == FIXED:
                if held < team.count:
                    program.row(dict.fromkeys(columns, 1.0), upper=held)
                continue
            hosts = self._hosts[at][variant] = self._host(team, variant, held)
            program.row(dict.fromkeys(columns, 1.0) | dict.fromkeys(hosts, -1.0), upper=0.0)
            if crew.memory_bytes_max:
                needed = self._capacity.memory_bytes(crew, (variant,))
                # What leaves no room even for the smallest takes a worker's whole memory.
                alone = needed + smallest > crew.memory_bytes_max
                memory |= dict.fromkeys(hosts, 1.0 if alone else needed / crew.memory_bytes_max)
        if memory:
            program.row(memory, upper=max(team.count - team.lost, 0.0))

    def _host(self, team: Team, variant: str, held: float) -> list[int]:
        """Columns for those that keep it, and those that would have to load it."""
        program, whole = self._program, team.hosting == WHOLE
        columns: list[int] = []
        if held > 0.0:
            columns.append(program.column(upper=held, integer=whole))
        if held < team.count:
            cost = load_cost(self._capacity.load_ms(self._routes.crews[team.crew], variant), self._workers, self._settings, self._horizon_ms)
            columns.append(program.column(-cost, upper=team.count - held, integer=whole))
        return columns

    def _read(self, solved: Solved) -> Allocation:
        values = solved.values
        return Allocation(
            objective=solved.objective,
            gap=solved.gap,
            proven=solved.status == "optimal",
            parts=tuple({route: values[column] for route, column in columns.items() if values[column] > 1e-9} for columns in self._parts),
            busy=tuple(_sums(columns, values) for columns in self._busy),
            hosts=tuple(_sums(columns, values) for columns in self._hosts),
        )


def load_cost(load_ms: float, workers: int, settings: HeadraceSettings, horizon_ms: float) -> float:
    """What one load takes from the objective."""
    part = min(load_ms / horizon_ms, 1.0) if 0.0 < horizon_ms < inf else 0.0
    return (settings.switching * part + LOAD_EPSILON) / workers


def _sums(columns: Mapping[str, Sequence[int]], values: Sequence[float]) -> dict[str, float]:
    found = {variant: sum(values[column] for column in each) for variant, each in columns.items()}
    return {variant: value for variant, value in found.items() if value > 1e-9}

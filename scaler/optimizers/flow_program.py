"""The program that Proteus and Loki share: whole workers by type and variant, and the part of each family's demand that takes each path.

maximize sum D A(p) c(p)   with   sum over p through v of D w(p, v) c(p) <= sum over k of v of P(k) n(k),
sum over k on crew t of n(k) <= N(t),   sum over p of c(p) = 1 for each family;   n(k) integer.

Flows of a variant are pooled over its workers, which is exact: f(t, m) <= P(t, m) n(t, m) can be met by any split of the pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from scaler.optimizers.capacity import Capacity, Operation
from scaler.optimizers.lanes import Post
from scaler.optimizers.optimizer import FEASIBLE, INFEASIBLE, OPTIMAL
from scaler.optimizers.paths import ModelPath
from scaler.optimizers.solver import Program, Solved, SolverTime

ROOM = 1.25
"""Multiple of the demand that is planned for: the `headroom` of the control loop, by which others' plans are compared."""
SERVED_WEIGHT = 100.0
LEAST_SCALE = 0.02
"""Where less than this of everybody's demand can be served, as much as possible of anybody's is."""
SHRINK = 1e-4
"""Demand is cut by this much more than it must be, so that the second program has room to find an integer solution."""
GAP = 1e-3
MARGINS = (1.0, 1.01, 1.02, 1.04, 1.08, 1.15)


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Demand that is answered by one of several paths."""

    name: str
    rate_rps: float
    paths: tuple[ModelPath, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Workers and flows of a solution."""

    status: str
    workers: dict[tuple[int, str, int], int]
    """By number of the crew, variant and batch size."""
    operations: dict[tuple[int, str, int], Operation]
    parts: dict[tuple[int, int], float]
    """c(p), by number of the family and of the path."""
    objective: float
    gap: float | None
    scale: float = 1.0
    """The part of the demand that was planned for."""

    def posts(self, capacity: Capacity) -> list[Post]:
        """One for each configuration that has workers."""
        return [
            Post(
                crew=capacity.crews[place[0]],
                variants=(place[1],),
                batch_size=self.operations[place].batch_size,
                threads=self.operations[place].threads,
                count=count,
            )
            for place, count in sorted(self.workers.items())
            if count
        ]

    def within(self, room: float) -> tuple[str, list[str]]:
        """(status, notes) where `room` times the demand was planned for: without all of that room a plan is no failure yet."""
        scale = self.scale * room
        if self.scale < 1.0 <= scale:
            return FEASIBLE, [f"room for {scale:.1%} of the demand, and not for {room:.0%}"]
        return self.status, [f"demand was cut to {scale:.1%}"] if 0.0 < scale < 1.0 else []


class FlowProgram:
    """Built once, solved for several aims. `operations`: (number of the crew, how it runs a variant), several batch sizes of one variant too."""

    def __init__(self, capacity: Capacity, families: Sequence[Family], operations: Iterable[tuple[int, Operation]]) -> None:
        self.capacity, self.families = capacity, families
        self.program = Program()
        self.operations = {(at, operation.variant, operation.batch_size): operation for at, operation in operations}
        self.workers = {place: self.program.column(upper=float(capacity.crews[place[0]].size), integer=True) for place in sorted(self.operations)}
        self.parts: dict[tuple[int, int], int] = {}
        self.scale = self.program.column(lower=1.0, upper=1.0)
        self._unserved: list[int] = []
        self._add_families()
        for at, crew in enumerate(capacity.crews):
            self.program.row({column: 1.0 for place, column in self.workers.items() if place[0] == at}, upper=float(crew.size))

    def solve(self, time: SolverTime) -> Answer | None:
        """As much accuracy as all of the demand allows; else of as much of everybody's demand as possible; else of anybody's. None: no time."""
        self._aim_at_accuracy(self.program)
        most = self._relaxed_scale(time)
        if most is None:
            return None
        rounded = self._best_rounded(most, time)
        if most >= 1.0 - 1e-9:
            whole = rounded is not None and rounded.values[self.scale] >= 1.0 - 1e-9
            start = rounded.values if rounded is not None and whole else ()
            solved = self.program.solve_in(time, 0.95 if whole else 0.6, gap=GAP, start=start)
            if solved.found:
                return self._answer(solved, OPTIMAL if solved.status == OPTIMAL else FEASIBLE, 1.0)
            if whole and rounded is not None:
                return self._answer(rounded, FEASIBLE, 1.0)
        return self._shrunk(time, rounded) if most >= LEAST_SCALE else self._most(time)

    def fewest_workers(self, time: SolverTime) -> Answer | None:
        """All of the demand with as few workers as possible; None where it cannot be, or time ran out."""
        most = self._relaxed_scale(time)
        if most is None or most < 1.0 - 1e-9:
            return None
        program = self.program.copy()
        program.clear_gains()
        for column in self.workers.values():
            program.set_gain(column, -1.0)
        solved = program.solve_in(time, 0.4, gap=GAP)
        return self._answer(solved, OPTIMAL if solved.status == OPTIMAL else FEASIBLE, 1.0) if solved.found else None

    def _add_families(self) -> None:
        needed: dict[str, dict[int, float]] = {}
        for number, family in enumerate(self.families):
            terms = {self.scale: -1.0}
            for at, path in enumerate(family.paths):
                column = self.parts[number, at] = self.program.column()
                terms[column] = 1.0
                for stage, key in path.variants.items():
                    uses = needed.setdefault(key, {})
                    uses[column] = uses.get(column, 0.0) + family.rate_rps * path.rows[stage]
            self._unserved.append(self.program.column(upper=0.0))
            self.program.row(terms | {self._unserved[-1]: 1.0}, lower=0.0, upper=0.0)
        for key, uses in sorted(needed.items()):
            serving = {column: -self.operations[place].rate_rps for place, column in self.workers.items() if place[1] == key}
            self.program.row(uses | serving, upper=0.0)

    def _aim_at_accuracy(self, program: Program, served: float = 0.0) -> None:
        program.clear_gains()
        for (number, at), column in self.parts.items():
            family = self.families[number]
            program.set_gain(column, family.rate_rps * (served + family.paths[at].accuracy))

    def _relaxed_scale(self, time: SolverTime) -> float | None:
        """Of the program without integers, an upper bound; None without time."""
        solved = self._for_scale(self.program.relaxed(), time, scale_max=MARGINS[-1])
        return solved.values[self.scale] if solved.found else None

    def _for_scale(self, program: Program, time: SolverTime, start: Sequence[float] = (), scale_max: float = 1.0) -> Solved:
        program.set_bounds(self.scale, 0.0, scale_max)
        program.clear_gains()
        program.set_gain(self.scale, 1.0)
        return program.solve_in(time, 0.4, gap=GAP, start=start)

    def _best_rounded(self, most: float, time: SolverTime) -> Solved | None:
        """Rounding loses some rate: planned for a little more than is asked, whole workers may do for all of it."""
        best: Solved | None = None
        for margin in MARGINS if most >= 1.0 else (most,):
            found = self._rounded(min(margin, most), time)
            if found is not None and (best is None or found.values[self.scale] > best.values[self.scale]):
                best = found
            if found is None or found.values[self.scale] >= 1.0 - 1e-9 or margin >= most:
                break
        return best

    def _rounded(self, scale: float, time: SolverTime) -> Solved | None:
        """The program without integers, its workers made whole, and the best flows for those; None without time, or where others are whole too."""
        if self.program.integers > len(self.workers):
            return None
        relaxed = self.program.relaxed()
        relaxed.set_bounds(self.scale, scale * (1.0 - 1e-9), scale)
        solved = relaxed.solve_in(time, 0.4)
        if not solved.found:
            return None
        for place, count in self._whole(solved.values).items():
            relaxed.set_bounds(self.workers[place], count, count)
        relaxed.set_bounds(self.scale, 0.0, 1.0)
        relaxed.set_gain(self.scale, SERVED_WEIGHT * sum(family.rate_rps for family in self.families))
        fixed = relaxed.solve_in(time, 0.4)
        return fixed if fixed.found else None

    def _whole(self, values: Sequence[float]) -> dict[tuple[int, str, int], float]:
        """By crew: rounded down, and the rest to those that lost most."""
        counts: dict[tuple[int, str, int], float] = {}
        for at, crew in enumerate(self.capacity.crews):
            places = {place: values[column] for place, column in self.workers.items() if place[0] == at}
            down = {place: float(int(value + 1e-6)) for place, value in places.items()}
            left = int(crew.size - sum(down.values()) + 1e-6)
            for place in sorted(places, key=lambda place: (down[place] - places[place], place))[:left]:
                down[place] += 1.0 if places[place] - down[place] > 1e-6 else 0.0
            counts |= down
        return counts

    def _shrunk(self, time: SolverTime, rounded: Solved | None) -> Answer | None:
        """Everybody's demand is cut by the same factor, as little as whole workers allow."""
        found = self._for_scale(self.program.copy(), time, rounded.values if rounded is not None else ())
        if not found.found and rounded is not None:
            found = rounded
        if not found.found or found.values[self.scale] < LEAST_SCALE:
            return self._most(time)
        scale = found.values[self.scale] * (1.0 - SHRINK)
        start = [*found.values]
        start[self.scale] = scale
        for column in self.parts.values():
            start[column] *= 1.0 - SHRINK
        program = self.program.copy()
        program.set_bounds(self.scale, scale, scale)
        solved = program.solve_in(time, 0.95, gap=GAP, start=start)
        if not solved.found:
            # The workers of the largest scale are a plan as well, if not the most accurate one.
            solved, scale = Solved(FEASIBLE, found.values), found.values[self.scale]
        return self._answer(solved, INFEASIBLE, scale)

    def _most(self, time: SolverTime) -> Answer | None:
        """As many requests as possible, whoever's, then accuracy."""
        program = self.program.copy()
        for column in self._unserved:
            program.set_bounds(column, 0.0, 1.0)
        self._aim_at_accuracy(program, SERVED_WEIGHT)
        solved = program.solve_in(time, 0.95, gap=GAP)
        return self._answer(solved, INFEASIBLE, 0.0) if solved.found else None

    def _answer(self, solved: Solved, status: str, scale: float) -> Answer:
        parts = {place: max(solved.values[column], 0.0) for place, column in self.parts.items()}
        # Workers of a variant that nothing flows through are an accident of the solver.
        used = {key for (n, at), part in parts.items() if part > 1e-9 for key in self.families[n].paths[at].variants.values()}
        return Answer(
            status=status,
            workers={place: count for place, column in self.workers.items() if place[1] in used and (count := round(solved.values[column]))},
            operations=self.operations,
            parts=parts,
            objective=sum(self.families[n].rate_rps * self.families[n].paths[at].accuracy * part for (n, at), part in parts.items()),
            gap=solved.gap,
            scale=scale,
        )

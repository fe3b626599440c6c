"""`headrace`: plans for pipelines on unlike workers, with floors, switching cost and uncertainty: a linear program, rounded onto the workers."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite

import msgspec

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.headrace.allocation import Allocation, Model, Team
from scaler.optimizers.headrace.binding import bindings_of, budgets_of, shares_of
from scaler.optimizers.headrace.dedicating import dedicated, workers_of_fewest
from scaler.optimizers.headrace.explaining import explain, idle
from scaler.optimizers.headrace.hosting import (
    Candidate,
    Hosting,
    Reserve,
    Wanted,
    by_crew,
    choices,
    decided,
    filled,
    free_teams,
    packed,
    present,
    rule_of_thumb,
    single_teams,
    stayed,
)
from scaler.optimizers.headrace.routes import Routes, routes_of, surge_of
from scaler.optimizers.headrace.settings import HeadraceSettings
from scaler.optimizers.headrace.sharing import sharing_of
from scaler.optimizers.optimizer import WITHOUT_LOADS, WORTHWHILE, Limits, Proposal
from scaler.optimizers.snapshot import Snapshot

RELAXED_PART, EXACT_PART, JUDGED_PART = 0.5, 0.6, 0.6
"""Parts of the time left that each step may take."""
BETTER = 1e-9
FULL = 0.98
PROGRAMS_LEFT = 1.5
"""No program is begun with less time left than this multiple of what one has taken: the rest is for putting the plan together."""
LOST_AGAIN = 1.0
"""What one packing lost is taken off the crew's time before the next, times this."""


class HeadraceOptimizer:
    """In three steps.

    1. The relaxation: how much time of each crew goes to which variant, if hosting could be split at will: an upper bound of what can be reached.
    2. Its rounding: that time is packed onto workers, whoever hosts a variant already first. Where there are few choices, they are made exactly
    instead, with one binary for each worker and variant.
    3. With the hosting fixed, the program again: what it is really worth. The best of this and the present plan wins; where the time is too short for
    the first step, a rule of thumb takes its place.

    4. What the winner leaves idle (time, memory) is made ready for a surge: the plan of a multiple of the demand, and further variants of the same
    tasks, so that the dispatcher can step down, or up, at once. That is no part of the objective.

    Endpoints of one stage get no shares: the dispatcher sees the load of the moment, the plan only what was forecast for the interval, and both would
    share out time alike. Of a graph only the plan knows what an accurate stage costs the stages after it, so that its tasks get shares.
    """

    name = "headrace"
    source = "Headrace"

    def __init__(self, settings: HeadraceSettings | None = None, **options: float) -> None:
        """`options`: settings by name, as scenarios and configuration state them. Raises ValueError for one that there is not."""
        unknown = sorted(options.keys() - set(HeadraceSettings.__struct_fields__))
        if unknown:
            raise ValueError(f"no setting {', '.join(unknown)}; there are {', '.join(HeadraceSettings.__struct_fields__)}")
        self._settings = msgspec.convert(msgspec.to_builtins(settings or HeadraceSettings()) | options, HeadraceSettings, strict=False)

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """See scaler.optimizers.optimizer."""
        capacity = Capacity(snapshot)
        routes = routes_of(snapshot, capacity, self._settings)
        if not any(each.routes for each in routes.classes):
            hosting = present(routes, capacity)
            return Proposal(bindings=bindings_of(snapshot, routes, capacity, hosting), explanation=idle(snapshot, routes, capacity))
        search = _Search(snapshot, capacity, routes, self._settings, limits)
        best, bound = search.run()
        if best is None:
            return Proposal(bindings=bindings_of(snapshot, routes, capacity, search.unjudged()), explanation=idle(snapshot, routes, capacity))
        hosting = search.filled(best)
        return Proposal(
            bindings=bindings_of(snapshot, routes, capacity, hosting),
            shares=shares_of(snapshot, routes, capacity, best.allocation),
            budgets=budgets_of(snapshot, routes, best.allocation),
            # What a worker hosts beside what it needs now costs nothing and may be wanted; only workers of a task's own are better without.
            adopted=WITHOUT_LOADS if search.alone else WORTHWHILE,
            explanation=explain(snapshot, routes, capacity, best, bound),
        )


class _Search:
    """One proposal's search for a hosting."""

    def __init__(self, snapshot: Snapshot, capacity: Capacity, routes: Routes, settings: HeadraceSettings, limits: Limits) -> None:
        self._snapshot, self._capacity, self._routes, self._settings, self._limits = snapshot, capacity, routes, settings, limits
        interval_ms = snapshot.interval_ms if isfinite(snapshot.interval_ms) and snapshot.interval_ms > 0.0 else 10_000.0
        self._horizon_ms = settings.horizon_intervals * interval_ms
        self._best: Candidate | None = None
        self._present = present(routes, capacity)
        self._packed: tuple[Hosting, Reserve] | None = None
        self.alone = False
        """Tasks of a pipeline have workers of their own in what was filled."""
        self._program_s = 0.0
        """The longest that making and solving a program has taken."""

    def run(self) -> tuple[Candidate | None, float]:
        """The best candidate, None where the time was too short to judge any; and an upper bound of all objectives."""
        bound = self._round()
        if choices(self._routes) <= self._settings.exact_binaries_max and self._gap(bound) > self._settings.gap:
            exact = self._solved(self._routes, single_teams(self._routes), EXACT_PART)
            if exact is not None:
                bound = min(bound, exact.objective * (1.0 + (exact.gap or 0.0)))
                self._judge(decided(self._routes, self._capacity, exact))
        return self._best, bound

    def unjudged(self) -> Hosting:
        """What to do where there was no time to compare: stay; where nothing is hosted yet, take what was packed."""
        if self._present.any or self._packed is None:
            return self._present
        return filled(self._routes, self._capacity, *self._packed)

    def _round(self) -> float:
        """Relax, pack, judge; and again with what the packing lost taken off, until little is lost. Returns the bound of the first relaxation."""
        bound, like = inf, None
        lost = [0.0] * len(self._routes.crews)
        for _ in range(1 + self._settings.repairs):
            relaxed = self._solved(self._routes, free_teams(self._routes, lost), RELAXED_PART)
            if like is None and relaxed is not None and relaxed.proven:
                bound = relaxed.objective
            if relaxed is not None and not relaxed.proven:
                relaxed = None
            wanted = relaxed.busy if relaxed is not None else rule_of_thumb(self._routes)
            if like is None and self._settled(wanted, bound):
                break
            like, missing = packed(self._routes, self._capacity, wanted, like)
            self._packed = like, Reserve(wanted, wanted, self._horizon_ms, self._settings.spare_variants_max)
            self._judge(like)
            if relaxed is None or self._best is None or self._gap(bound) <= self._settings.rounding_gap:
                break
            lost = [before + LOST_AGAIN * more for before, more in zip(lost, missing, strict=True)]
        return bound

    def _settled(self, wanted: Wanted, bound: float) -> bool:
        """Judge the present hosting first, so that others must be better; whether it is good enough."""
        if not self._present.any:
            return False
        self._judge(stayed(self._routes, self._capacity, wanted))
        return self._gap(bound) <= self._settings.gap

    def filled(self, best: Candidate) -> Hosting:
        """The best hosting with its idle time and memory put to use."""
        if self._settings.surge <= 0.0:
            return best.hosting
        wanted = by_crew(self._routes, best.hosting.teams(self._routes), best.allocation)
        surge = wanted
        if any(sum(times.values()) < FULL * crew.size for times, crew in zip(wanted, self._routes.crews, strict=True)):
            routes = surge_of(self._routes, self._settings)
            solved = self._solved(routes, free_teams(routes, [0.0] * len(routes.crews)), JUDGED_PART)
            surge = solved.busy if solved is not None else wanted
        reserve = Reserve(wanted, surge, self._horizon_ms, self._settings.spare_variants_max)
        for alone, apart in self._apart(reserve):
            judged = self._solved(self._routes, apart.teams(self._routes), JUDGED_PART)
            if judged is not None and self._as_good(judged, best.allocation):
                self.alone = alone
                return apart
        return filled(self._routes, self._capacity, best.hosting, reserve)

    def _apart(self, reserve: Reserve) -> Iterator[tuple[bool, Hosting]]:
        """Ways to give tasks workers of their own, the most apart first, and whether every task of a pipeline is alone."""
        together = sharing_of(self._snapshot, self._routes, self._capacity, reserve)
        asked = [self._routes.routes[number] for each in self._routes.classes if not each.idle for number in each.routes]
        if any(len(route.variants) > 1 for route in asked):
            alone = dedicated(self._routes, self._capacity, reserve, {task: task for task in together})
            tasks = {self._capacity.variants[key].task for route in asked for key in route.variants.values()}
            if workers_of_fewest(alone, self._capacity, tasks) >= self._settings.alone_workers_min:
                yield True, alone
        yield False, dedicated(self._routes, self._capacity, reserve, together)

    def _as_good(self, judged: Allocation, best: Allocation) -> bool:
        """Nearly, and for everybody: an endpoint that few ask for must not be what is lost."""
        apart = self._settings.apart
        everybody = all(judged.served(at) >= best.served(at) - apart for at in range(len(self._routes.classes)))
        return everybody and judged.objective >= best.objective - apart * abs(best.objective)

    def _solved(self, routes: Routes, teams: list[Team], part: float) -> Allocation | None:
        """In this part of the time that is left; None where it is too short, judging by the programs before: making one takes time, too."""
        began_s = self._limits.left_s
        if began_s < PROGRAMS_LEFT * self._program_s:
            return None
        allocation = Model(routes, teams, self._capacity, self._settings, self._horizon_ms).solve(time_s=began_s * part, seed=self._limits.seed)
        self._program_s = max(self._program_s, began_s - self._limits.left_s)
        return allocation

    def _gap(self, bound: float) -> float:
        if self._best is None or bound == inf:
            return inf
        return (bound - self._best.objective) / max(abs(bound), 1e-9)

    def _judge(self, hosting: Hosting) -> None:
        """Keep the hosting where it is the best so far."""
        allocation = self._solved(self._routes, hosting.teams(self._routes), JUDGED_PART)
        if allocation is None:
            return
        objective = allocation.objective - hosting.switching(self._routes, self._capacity, self._settings, self._horizon_ms)
        if self._best is None or objective > self._best.objective + self._settings.stay * abs(self._best.objective) + BETTER:
            self._best = Candidate(hosting, allocation, objective)

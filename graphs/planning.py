"""Which variants the rest of a request's path can still be computed with: how accurate a stage has to be, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from graphs.labels import Choice, Label
from graphs.line import Line
from graphs.liveness import serves_answer
from graphs.node import Node
from graphs.path import variant_name
from graphs.search import search
from graphs.situation import Situation, ahead, fresh, situation
from graphs.stage import Stage
from graphs.state import ROUNDING, product

if TYPE_CHECKING:
    from graphs.compiled import Graph
    from graphs.run import Run

REMEMBERED_MAX = 4_096
"""Situations whose fronts are kept."""


class Cost(NamedTuple):
    """What a variant of a stage takes now: `p95_ms` of one request (or row), `work_ms` of computing. `variant`: name or key."""

    variant: str
    accuracy: float
    p95_ms: float
    work_ms: float


class StagePlan(NamedTuple):
    """What a stage has to keep to."""

    accuracy_min: float
    """Each of its variants that is at least this accurate leaves a rest that keeps the floor."""
    rest_ms: float
    """To keep free after it, hand-overs included."""
    total_ms: float
    """From now to the answer, with the least accurate variant that will do."""
    work_ms: float
    accuracy: float
    """Of the whole path that way."""


class GraphPlan(NamedTuple):
    """What a whole request would take."""

    total_ms: float
    """The fastest that keeps the floor."""
    work_ms: float
    """The cheapest that keeps floor and time."""
    accuracy: float
    """The best in time."""


class Offer(NamedTuple):
    """What could be had where nothing keeps both floor and time."""

    accuracy: float
    """The best, in whatever time."""
    accuracy_in_time: float | None
    least_ms: float | None
    """The fastest that keeps the floor; None: nothing does."""


class _Rest(NamedTuple):
    """What can come with and after a variant of the planned stage."""

    after_ms: float
    """After it."""
    total_ms: float
    """From now to the answer, whatever runs beside it."""
    work_ms: float
    accuracy: float
    """Of the whole path."""


class _Option(NamedTuple):
    """A variant of the planned stage with the rests that go with it, the one that leaves it most time first."""

    own: Choice
    rests: list[_Rest]


class Estimates:
    """What planning is told of the fleet; make a new one when that has changed, for it remembers what it worked out."""

    def __init__(self, costs: Callable[[Stage], Sequence[Cost]], hop_ms: float, fan_out: Callable[[str], float]) -> None:
        """`hop_ms`: what handing over from one stage to the next takes. `fan_out` of a for_each's path: its rows; of a stage's: the share of requests

        that need it, asked where a switch may leave it out. `Stage.over` tells `costs` which rows share a device.
        """
        self.costs = costs
        self.hop_ms = hop_ms
        self.fan_out = fan_out
        self._choices: dict[Stage, list[Choice]] = {}
        self.names: dict[Stage, list[str]] = {}
        """Names of a stage's variants, by the choice's index."""
        self._options: dict[Situation, list[_Option]] = {}
        self._lines: dict[Node | Graph, list[_Option]] = {}
        """Of graphs as a whole, and from a stage of a line on."""

    def choices(self, stage: Stage) -> list[Choice]:
        """The variants of a stage, with the work of all its rows; a Python task that nobody has figures of costs nothing."""
        found = self._choices.get(stage)
        if found is None:
            costs = self.costs(stage)
            if not costs and not stage.model:
                costs = [Cost(stage.variants[0], 1.0, 0.0, 0.0)]
            rows = 1.0
            for path in stage.over:
                rows *= self.fan_out(path)
            found = [Choice(index, cost.accuracy, cost.p95_ms, cost.work_ms * rows) for index, cost in enumerate(costs)]
            self._choices[stage] = found
            self.names[stage] = [variant_name(cost.variant) for cost in costs]
        return found

    def options(self, where: Situation) -> list[_Option]:
        """By accuracy of the planned stage, the least first; without a planned stage, one of accuracy 1."""
        found = self._options.get(where)
        if found is None:
            if len(self._options) >= REMEMBERED_MAX:
                self._options.clear()
            found = self._options[where] = _options(self, where, search(where, self))
        return found

    def ahead(self, graph: Graph, node: Node) -> list[_Option]:
        """From a stage of a line on."""
        found = self._lines.get(node)
        if found is None:
            found = self._lines[node] = self.options(ahead(graph, node))
        return found

    def whole(self, graph: Graph) -> list[_Option]:
        """Of a request that has not started."""
        found = self._lines.get(graph)
        if found is None:
            found = self._lines[graph] = self.options(fresh(graph))
        return found


def _options(estimates: Estimates, where: Situation, labels: list[tuple[float, Label]]) -> list[_Option]:
    stage = getattr(where.target, "stage", None)
    own = estimates.choices(stage) if isinstance(stage, Stage) else [Choice(-1, 1.0, 0.0, 0.0)]
    by_variant: dict[int, list[tuple[float, float, float, float]]] = {}
    for accuracy, label in labels:
        (time,) = label.times.values()
        by_variant.setdefault(label.variant, []).append((time[0], time[1], label.work_ms, accuracy))
    order = sorted(own, key=lambda choice: (choice.accuracy, choice.time_ms))
    if where.apart:
        rests = sorted(by_variant.get(-1, []))
        return [
            _option(choice, [(after, beside, work + choice.work_ms, accuracy * choice.accuracy) for after, beside, work, accuracy in rests])
            for choice in order
        ]
    return [_option(choice, sorted(by_variant[choice.number])) for choice in order if choice.number in by_variant]


def _option(own: Choice, rests: list[tuple[float, float, float, float]]) -> _Option:
    """From (after it, whatever else runs, work, accuracy)."""
    return _Option(
        own, [_Rest(max(after, 0.0), max(own.time_ms + max(after, 0.0), beside), work, accuracy) for after, beside, work, accuracy in rests]
    )


def plan_stage(run: Run | Line, instance: str, estimates: Estimates, left_ms: float) -> StagePlan | None:
    """What an instance that has been given out by `RunStage` has to keep to, with `left_ms` to the deadline; None: nothing keeps the floor in that.

    Plans of other instances count on what is planned here. A shadow's copy has no floor and no deadline of its own.
    """
    if isinstance(run, Line):
        found = run.step_of(instance)
        return None if found is None else _planned(estimates.ahead(run.graph, found[0].node), run.floor, found[1], left_ms)
    state = run.flying.get(instance)
    if state is None:
        return None
    stage = run.graph.stages[state.node.path]
    if state.shadow or run.finished or (run.copies and not serves_answer(run, state)):
        fastest = min(estimates.choices(stage), key=lambda choice: choice.time_ms, default=None)
        return None if fastest is None else StagePlan(0.0, 0.0, fastest.time_ms, fastest.work_ms, 0.0)
    where = situation(run, state)
    before = product(state.factors) if where.apart else 1.0
    plan = _planned(estimates.options(where), run.floor, before, left_ms)
    if plan is not None:
        run.plan(instance, plan.accuracy_min)
        run.planned_combinations = _left(run, where, stage, estimates, plan.accuracy_min)
    return plan


def plan_step(graph: Graph, node: Node, floor: float, before: float, estimates: Estimates, left_ms: float) -> StagePlan | None:
    """The same for a stage of a line that is not given out yet; `before`: accuracy of the steps up to it, `left_ms`: from when it will begin."""
    return _planned(estimates.ahead(graph, node), floor, before, left_ms)


def _planned(options: list[_Option], whole_floor: float, before: float, left_ms: float) -> StagePlan | None:
    """The least accurate variant for which it, and every more accurate one, has a rest that keeps the floor; `before`: accuracy of what is done."""
    floor = (whole_floor - ROUNDING) / max(before, ROUNDING)
    best: StagePlan | None = None
    for own, rests in reversed(options):
        keeps = False
        for after_ms, total_ms, work_ms, accuracy in rests:
            if accuracy >= floor:
                keeps = True
                if total_ms <= left_ms:
                    best = StagePlan(own.accuracy, after_ms, total_ms, work_ms, accuracy * before)
                    break
        if not keeps:
            break
    return best


def _left(run: Run, where: Situation, stage: Stage, estimates: Estimates, accuracy_min: float) -> tuple[str, ...]:
    """The measured combinations that keep the floor with the variants that the stage may now have."""
    if not where.combinations:
        return ()
    names = {estimates.names[stage][choice.number] for choice in estimates.choices(stage) if choice.accuracy >= accuracy_min}
    table = run.graph.measured
    return tuple(
        key for key in where.combinations if table[key].accuracy >= run.floor - ROUNDING and table[key].variants.get(stage.path) in (None, *names)
    )


def plan_graph(graph: Graph, floor: float, estimates: Estimates, left_ms: float) -> GraphPlan | None:
    """What a request that arrives now would take; None: no choice keeps the floor in `left_ms`."""
    return _whole(estimates.whole(graph), floor, left_ms)


def plan_run(run: Run | Line, estimates: Estimates, left_ms: float) -> GraphPlan | None:
    """What a request that has just started will take, on the branches that its splitters have taken; None: no choice keeps its floor in `left_ms`."""
    if isinstance(run, Line) or not run.graph.outline.splits:
        return _whole(estimates.whole(run.graph), run.floor, left_ms)
    return _whole(estimates.options(situation(run, None)), run.floor, left_ms)


def _whole(options: list[_Option], floor: float, left_ms: float) -> GraphPlan | None:
    total_ms, least_work_ms, best_accuracy = inf, inf, -1.0
    for option in options:
        for rest in option.rests:
            if rest.accuracy >= floor - ROUNDING and rest.total_ms <= left_ms:
                total_ms, least_work_ms = min(total_ms, rest.total_ms), min(least_work_ms, rest.work_ms)
                best_accuracy = max(best_accuracy, rest.accuracy)
    return GraphPlan(total_ms, least_work_ms, best_accuracy) if best_accuracy >= 0.0 else None


def best(graph: Graph, floor: float, estimates: Estimates, left_ms: float) -> Offer | None:
    """What a new request could be offered; None: some stage has no variant at all."""
    return _offer(estimates.whole(graph), floor, left_ms)


def best_rest(run: Run, instance: str, estimates: Estimates, left_ms: float) -> Offer | None:
    """What a running request could still be offered, seen from a stage that is to run."""
    state = run.flying.get(instance)
    if state is None:
        return None
    where = situation(run, state)
    before = product(state.factors) if where.apart else 1.0
    offer = _offer(estimates.options(where), run.floor / before, left_ms)
    if offer is None:
        return None
    in_time = None if offer.accuracy_in_time is None else offer.accuracy_in_time * before
    return Offer(offer.accuracy * before, in_time, offer.least_ms)


def _offer(options: list[_Option], floor: float, left_ms: float) -> Offer | None:
    rated = [(rest.total_ms, rest.accuracy) for option in options for rest in option.rests]
    if not rated:
        return None
    in_time = max((accuracy for total, accuracy in rated if total <= left_ms), default=None)
    least_ms = min((total for total, accuracy in rated if accuracy >= floor - ROUNDING), default=None)
    return Offer(max(accuracy for _, accuracy in rated), in_time, least_ms)

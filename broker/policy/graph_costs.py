"""What the stages of a graph would cost on the lanes as they are, and whether a request on it can be taken on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from broker.policy.admission import Refusal, judge
from broker.policy.entry import Entry
from broker.policy.fan_out import FanOut
from broker.policy.fleet import Fleet
from broker.policy.pool import Pool
from broker.policy.promises import Promises, refused_by
from broker.policy.settings import DispatcherSettings
from graphs.commands import RunStage
from graphs.compiled import Graph
from graphs.line import Line
from graphs.planning import Cost, Estimates, best, plan_run, plan_stage
from graphs.reserve import way_to_the_answer_ms
from graphs.run import Run
from graphs.stage import Stage

ESTIMATES_MAX = 1_024
SHADOWS_WAITING = 8
"""In a pool without room for them."""


class GraphCosts:
    """Reads the fleet; remembers nothing beyond one change of it."""

    def __init__(self, fleet: Fleet, settings: DispatcherSettings, fan_out: FanOut, promises: Promises) -> None:
        self._fleet, self._settings, self._fan_out, self._promises = fleet, settings, fan_out, promises
        self._estimates: dict[tuple[int, int], Estimates] = {}
        self._reserves: dict[tuple[int, int], float] = {}
        self._parts: dict[tuple[int, int], Mapping[str, float]] = {}
        self._version = -1

    def of(self, endpoint: str, graph: Graph, rows: int) -> Estimates:
        """What planning may count on for requests of so many rows: the fastest lane's 95th percentile of each variant."""
        if self._version != self._fleet.version or len(self._estimates) > ESTIMATES_MAX:
            self._estimates.clear()
            self._reserves.clear()
            self._parts.clear()
            self._version = self._fleet.version
        key = (id(graph), rows)
        found = self._estimates.get(key)
        if found is None:
            hops_ms = 2.0 * self._settings.hop_ms
            found = self._estimates[key] = Estimates(partial(self._costs, rows), hops_ms, self._fan_out.upper(endpoint, graph))
        return found

    def reserve_ms(self, endpoint: str, graph: Graph, rows: int, left_ms: float) -> float:
        """What has to be kept free where a node goes on by the deadline: the stages behind it, on lanes that have other work, and the answer's way.

        Of a request with little time it takes no more than half of that.
        """
        settings, estimates = self._settings, self.of(endpoint, graph, rows)
        key = (id(graph), rows)
        way_ms = self._reserves.get(key)
        if way_ms is None:

            def stage_ms(stage: Stage) -> float:
                fastest_ms = min((choice.time_ms for choice in estimates.choices(stage)), default=0.0)
                return fastest_ms * settings.upgrade_margin + settings.window_ms + estimates.hop_ms

            way_ms = self._reserves[key] = way_to_the_answer_ms(graph, stage_ms)
        return 2.0 * settings.hop_ms + min(way_ms, left_ms / 2.0)

    def affordable(self, graph: Graph) -> Graph:
        """The graph, or where none of its shadows would be computed the same without them: what is begun for them would only cost time.

        A few may always wait: there may be room for them before their deadlines.
        """
        if graph.lean is None:
            return graph
        fleet = self._fleet
        tasks = {fleet.graphs.ladder_of(stage) for stage in graph.stages.values() if stage.shadow}
        return graph.lean if all(task in fleet.ladders and _has_none_for_shadows(fleet.pool(task)) for task in tasks) else graph

    def work_of(self, entry: Entry, graph: Graph) -> dict[str, float]:
        """By task: what of the path's work (`entry.work_ms`) is its stages', as that of their cheapest variants is to each other."""
        estimates, key = self.of(entry.endpoint, graph, entry.rows), (id(graph), entry.rows)
        parts = self._parts.get(key)
        if parts is None:
            parts = self._parts[key] = _parts(graph, estimates, self._fleet.graphs.ladder_of)
        return {task: entry.work_ms * part for task, part in parts.items()}

    def _costs(self, rows: int, stage: Stage) -> Sequence[Cost]:
        name = self._fleet.graphs.ladder_of(stage)
        ladder = self._fleet.ladders.get(name)
        if ladder is None:
            return ()
        each = 1 if stage.over or not stage.model else rows
        found: dict[str, Cost] = {}
        for lane in self._fleet.lanes:
            options = lane.options.get(name)
            for option in options[0] if lane.ready and options else ():
                known = found.get(option.key)
                if known is None or option.p95_ms(each) < known.p95_ms:
                    found[option.key] = Cost(option.key, option.accuracy, option.p95_ms(each), option.row_ms * each)
        if found:
            return list(found.values())
        # Nobody hosts it now: it may be hosted in time, and what it costs will be seen then.
        return [Cost(variant, accuracy, 0.0, 0.0) for variant, accuracy in zip(ladder.keys, ladder.accuracies, strict=True)]

    def judge(self, run: Run | Line, first: Sequence[RunStage], entry: Entry, now_ms: float) -> Refusal | None:
        """None where the request is taken on: some path keeps its floor in time, and all its work finds room beside what was promised already.

        Sets the entry's `work_ms`: computing time of the whole path at the cheapest variants that keep the floor.
        """
        left_ms = entry.deadline_ms - now_ms
        estimates = self.of(entry.endpoint, run.graph, entry.rows)
        plan = plan_run(run, estimates, left_ms - estimates.hop_ms)
        begun = [command for command in first if not command.shadow]
        planned = [plan_stage(run, command.instance, estimates, left_ms - estimates.hop_ms) for command in begun]
        if plan is None or None in planned:
            return self._refused(run.graph, estimates, entry, left_ms)
        entry.work_ms = plan.work_ms
        if not begun or planned[0] is None:
            return None
        task = self._fleet.graphs.ladder_of(begun[0].stage)
        pool, own_ms = self._fleet.pool(task), 0.0
        for other, work_ms in self._promises.expected_ms(entry.endpoint, self.work_of(entry, run.graph)).items():
            if self._fleet.pool(other) is pool:
                own_ms += work_ms
            elif refusal := refused_by(self._fleet.pool(other), other, entry, work_ms, self._settings, now_ms):
                return refusal
        rung = self._fleet.ladders[task].least(planned[0].accuracy_min)
        probe = Entry(
            entry.key, entry.shard, -1, entry.received_ms, entry.endpoint, None, None, None, entry.priority, entry.tenant, entry.rows, 0, None,
            task=task, rung=rung, deadline_ms=entry.deadline_ms, work_ms=own_ms,
        )  # fmt: skip
        return judge(probe, pool, self._settings, now_ms)

    def _refused(self, graph: Graph, estimates: Estimates, entry: Entry, left_ms: float) -> Refusal:
        floor = entry.floor or 0.0
        offer = best(graph, floor, estimates, left_ms)
        if offer is None:
            return "overloaded", "no worker can compute some stage of the graph now"
        if offer.least_ms is None:
            return "infeasible_accuracy", f"min_accuracy {floor} is above what any path of the graph reaches: the best has {offer.accuracy:.4f}"
        return (
            "infeasible_deadline",
            f"{left_ms:.0f} ms are left; the fastest path at or above the floor needs {offer.least_ms + estimates.hop_ms:.0f} ms with its hand-overs",
        )


def _has_none_for_shadows(pool: Pool) -> bool:
    return pool.pressed and pool.waiting.shadows >= SHADOWS_WAITING


def _parts(graph: Graph, estimates: Estimates, task_of: Callable[[Stage], str]) -> Mapping[str, float]:
    """By task, adding up to 1; alike where nothing is known to cost anything."""
    least_ms: dict[str, float] = {}
    for node in graph.outline.order:
        stage = getattr(node, "stage", None)
        if isinstance(stage, Stage):
            task = task_of(stage)
            needed = estimates.fan_out(node.path) if node in graph.outline.optional else 1.0
            least_ms[task] = least_ms.get(task, 0.0) + needed * min((choice.work_ms for choice in estimates.choices(stage)), default=0.0)
    total_ms = sum(least_ms.values())
    return {task: each_ms / total_ms if total_ms > 0.0 else 1.0 / len(least_ms) for task, each_ms in least_ms.items()}

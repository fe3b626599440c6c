"""Stages of a line that a worker goes on with by itself: no hand-over where deciding again could not do better.

Operator fusion (Sreekanti et al., "Optimizing Prediction Serving on Low-Latency Serverless Dataflow", 2020), with the difference that it is
decided for each request when its stage is sent, by load, plan, deadline and floor as they are then.
"""

from __future__ import annotations

from broker.policy.entry import LEASED, Entry
from broker.policy.fleet import Fleet
from broker.policy.graph_costs import GraphCosts
from broker.policy.graph_request import Ahead, Fused, GraphRequest, StageJob, rows_of, stage_entry
from broker.policy.lanes import Lane, Order
from broker.policy.sending import lend
from broker.policy.settings import DispatcherSettings
from graphs.commands import RunStage
from graphs.line import Line
from graphs.line_steps import LineStep
from graphs.planning import Estimates, plan_step


class Fusion:
    """Decides what workers may go on with, and keeps the books when they have."""

    def __init__(self, fleet: Fleet, settings: DispatcherSettings, costs: GraphCosts) -> None:
        self._fleet, self._settings, self._costs = fleet, settings, costs

    def sent(self, request: GraphRequest, order: Order, accuracy: float) -> None:
        """A stage of a line goes to a worker (`order`) in a variant of this accuracy: say what it may go on with."""
        run, lane, settings = request.run, order.lane, self._settings
        request.fused = None
        if not isinstance(run, Line) or order.entry.attempts > 1 or not request.graph.spec.fuse:
            return
        steps, before = run.after(order.entry.instance)
        before *= accuracy
        begins_ms = order.sent_ms + settings.hop_ms + lane.wait_ms
        estimates = self._costs.of(request.endpoint, request.graph, request.entry.rows)
        ahead: list[Ahead] = []
        for step in steps:
            found = self._ahead(request, step, lane, (before, begins_ms), estimates)
            if found is None:
                break
            ahead.append(found)
            before = found.accuracy
            begins_ms += found.option.p95_ms(found.entry.rows)
        if ahead:
            request.fused = Fused(order.entry.instance, lane, ahead)

    def _ahead(self, request: GraphRequest, step: LineStep, lane: Lane, here: tuple[float, float], estimates: Estimates) -> Ahead | None:
        """`here`: accuracy of the steps up to this one, and when it will begin; None where it has to be decided then."""
        root, stage, (before, begins_ms) = request.entry, step.stage, here
        task = self._fleet.graphs.ladder_of(stage)
        options = lane.options.get(task)
        if step.handed is None or options is None:
            return None
        plan = plan_step(request.graph, step.node, request.run.floor, before, estimates, root.deadline_ms - begins_ms)
        if plan is None:
            return None
        rung = self._fleet.ladders[task].least(plan.accuracy_min)
        if rung >= len(options) or not options[rung]:
            return None
        entry = stage_entry(request, step.stage.path, root.rows if stage.model else 1, task)
        entry.rung, entry.deadline_ms = rung, int(root.deadline_ms - plan.rest_ms)
        left_ms = entry.deadline_ms - begins_ms - self._settings.hop_ms
        option = self._fleet.pool(task).choose_ahead(lane, entry, left_ms, estimates.choices(stage), estimates.hop_ms)
        return None if option is None else Ahead(entry, option, step, before * option.accuracy)

    def begun(self, request: GraphRequest, command: RunStage, now_ms: float) -> Entry | None:
        """The worker that computed the stage before this one has gone on with it: put it on the books as sent. None: nobody has."""
        fused = request.fused
        ahead = None if fused is None else fused.under_way(command.instance)
        if fused is None or ahead is None:
            return None
        entry, root = ahead.entry, request.entry
        entry.payload = StageJob(request, command, root.payload, now_ms)
        entry.rows = rows_of(command, root)
        entry.state, entry.attempts, entry.handed_out = LEASED, 1, True
        self._fleet.pool(entry.task).arrived(entry)
        lend(entry, fused.lane, ahead.option, self._fleet.orders, self._settings, now_ms)
        return entry

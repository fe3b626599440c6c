"""When to plan, with what, and whether a proposal comes into force: the scaler's decisions, with all time coming in."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import msgspec

from scaler.optimizers.checking import faults_of
from scaler.optimizers.optimizer import ALWAYS, WITHOUT_LOADS, Explanation, Proposal
from scaler.optimizers.snapshot import READY, EndpointDemand, FloorDemand, Snapshot, Variant
from scaler.policy.control_bindings import of_catalog, with_lanes
from scaler.policy.control_needs import floor_needs, needs_of, with_needs
from scaler.policy.control_scouting import scouted
from scaler.policy.control_settings import ControlSettings, MakeForecaster, TypeOf, worker_type
from scaler.policy.control_time_shares import same_parts, time_shares
from scaler.policy.control_triggers import Triggers
from scaler.policy.control_worth import alike, hosts_all, needed, worth
from scaler.policy.observed_costs import ObservedCosts
from scaler.policy.observed_demand import ObservedDemand
from scaler.policy.observed_stages import StageTree, stage_tree
from scaler.policy.observed_workers import FAILED, WORKING, ObservedWorkers
from scaler.policy.rebinding import Rebound, rebind
from scaler.policy.rebinding_steps import Step, steps
from schemas.catalog import Catalog, EndpointSpec
from schemas.plan import Binding, Plan
from schemas.telemetry import Departed, DispatcherReport, WorkerReport

PUBLISHED, STEP, KEPT, INVALID, FAILED_TO_PLAN = "published", "step", "kept", "invalid", "failed"
FAULTS_SHOWN = 5
LOOK_MS = 200.0
"""Between two looks at rates and attainment: reports come once a second."""


class Verdict(NamedTuple):
    """Whether a proposal comes into force, and why."""

    taken: bool
    reason: str
    alike: bool = False
    """What is bound now serves the demand as well, so that the proposal's shares hold for it too."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `headrace plan history`."""

    at_ms: float
    epoch: int
    """Of the plan in force afterwards."""
    kind: str
    """published, step (of a rebinding), kept (the present plan is as good), invalid or failed (the present plan stays)."""
    trigger: str
    """Why a plan was to be made."""
    reason: str
    """Why it ended so."""
    loads: int = 0
    explanation: Explanation | None = None


class ControlPolicy:
    """Pure. The caller asks `due`, takes a `snapshot`, lets an optimizer propose, and publishes what `decide` (and later `next_step`) returns."""

    def __init__(
        self, settings: ControlSettings, make_forecaster: MakeForecaster, *, type_of: TypeOf = worker_type, costs: Iterable[Variant] = ()
    ) -> None:
        """`type_of`: the worker type of a report. `costs`: profiles that are known beforehand, by that type."""
        self.settings = settings
        self.plan = Plan()
        """In force, as far as is known here."""
        self.history: deque[Decision] = deque(maxlen=settings.history_max)
        self._workers = ObservedWorkers(settings, type_of)
        self.costs = ObservedCosts(settings, costs, self._workers.lies)
        self._demand = ObservedDemand(settings, make_forecaster, self._workers.lies)
        self._triggers = Triggers(settings)
        self._catalog = Catalog()
        self._trees: dict[str, StageTree] = {}
        self._bindings: dict[str, Binding] = {}
        """Of the plan in force, by worker; of somebody else's plan those that can be, with a lane of their own."""
        self._lag: dict[str, int] = {}
        self._trigger = ""
        self._steps: deque[Step] = deque()
        self._target: Plan | None = None
        """What the steps lead to; its epoch says nothing."""
        self._blind = False
        """The plan in force was made while nothing was asked."""
        self._step_since_ms = 0.0
        self._looked_ms = float("-inf")
        self._awaited: frozenset[str] = frozenset()
        self._unmeasured: set[tuple[str, str]] = set()
        """(variant key, worker type) pairs without a profile in the last snapshot; what was measured since, nobody has planned with."""
        self._memory: dict[str, float] = {}
        """What the optimizer wanted to find again."""

    # -- what is observed

    def observe_worker(self, report: WorkerReport, now_ms: float) -> None:
        """Follow a worker; what cannot be is bounded and counted in `lies`."""
        self._triggers.heard(now_ms)
        news = self._workers.observe(report, now_ms)
        if news:
            self._triggers.note("workers", news)
        known = self._workers.get(report.worker)
        if known is not None and known.report is report:
            binding = self._bindings.get(report.worker)
            self.costs.observe(report, known.type, binding.threads if binding is not None else max(report.threads, 1), now_ms)

    def observe_dispatcher(self, report: DispatcherReport, now_ms: float) -> None:
        """Follow a dispatcher's counters."""
        self._triggers.heard(now_ms)
        self._demand.tick(now_ms)
        self._demand.observe(report, now_ms)

    def observe_departed(self, record: Departed, now_ms: float) -> None:
        """A supervisor saw a process end."""
        if record.role == "dispatcher":
            self._demand.departed(record.name)
        else:
            news = self._workers.departed(record.name, record.incarnation, record.at_ms)
            if news:
                self._triggers.note("workers", news)

    def observe_catalog(self, catalog: Catalog) -> None:
        """Follow the catalog; variants with new files are measured anew."""
        before, now = self._catalog.variants(), catalog.variants()
        renewed = {key for key in before.keys() & now.keys() if (before[key].sha256, before[key].call) != (now[key].sha256, now[key].call)}
        if (self._catalog.tasks, self._trees.keys()) != (catalog.tasks, catalog.endpoints.keys()) or self._catalog.endpoints != catalog.endpoints:
            self._triggers.note("catalog", "the catalog changed")
        elif self._catalog.learned != catalog.learned:
            self._triggers.note("catalog", "learned accuracies changed")
        self.costs.forget(renewed)
        self._workers.forgive(renewed | (now.keys() - before.keys()))
        known = sorted(catalog.endpoints)[: self.settings.endpoints_max]
        self._trees = {name: self._tree(name, catalog) for name in known}
        self._catalog = Catalog(dict(catalog.tasks), dict(catalog.endpoints), learned=catalog.learned)
        self._demand.keep(known)

    def observe_lag(self, lag: Mapping[str, int]) -> None:
        """Log end minus committed offset, by endpoint."""
        self._lag = {name: max(int(messages), 0) for name, messages in lag.items() if isfinite(messages)}

    def observe_plan(self, plan: Plan) -> None:
        """A plan was read from the log: another leader's counts, if it is newer."""
        if plan.epoch <= self.plan.epoch and self.plan.epoch:
            return
        self._take(plan)
        self._steps.clear()
        self._target = None

    def ask(self, reason: str) -> None:
        """Somebody wants a plan: it is due as soon as the cool-down allows."""
        self._triggers.note("asked", reason)

    @property
    def lies(self) -> Counter[str]:
        """What was not believed, by what was wrong with it."""
        return self._workers.lies

    def left_out(self, now_ms: float) -> dict[str, str]:
        """Workers that no plan counts on because they flap, with the reason."""
        return self._workers.left_out(now_ms)

    # -- what is asked

    def due(self, now_ms: float) -> str | None:
        """Why to plan now; None: not now."""
        self._demand.tick(now_ms)
        for news in self._workers.expire(now_ms):
            self._triggers.note("workers", news)
        if not self._catalog.endpoints or not any(True for _ in self._workers.alive()):
            return None
        looking = now_ms - self._looked_ms >= LOOK_MS
        self._looked_ms = now_ms if looking else self._looked_ms
        for name in self._trees if looking else ():
            asked = self._demand.get(name)
            if asked is not None:
                self._triggers.look_at_rate(name, asked.rate_rps)
                self._triggers.look_at_attainment(name, *self._demand.attainment(name, now_ms, self.settings.attainment_window_ms), now_ms)
        return self._triggers.due(now_ms)

    def snapshot(self, now_ms: float) -> Snapshot:
        """All that is known at this moment, for an optimizer. Planning starts with it: `due` counts from here."""
        self._demand.tick(now_ms)
        self._trigger = self._triggers.begin(now_ms)
        snapshot = self.glimpse(now_ms)
        self._unmeasured = set(self.costs.unmeasured(self._catalog, {worker.type: worker.accelerator for worker in snapshot.workers}))
        self._triggers.planned_for({endpoint.endpoint: endpoint.forecast_rps for endpoint in snapshot.endpoints})
        return snapshot

    def glimpse(self, now_ms: float) -> Snapshot:
        """The same for whoever does not plan: nothing begins with it."""
        self._demand.tick(now_ms)
        workers = self._workers.workers(of_catalog(self._bindings, self._catalog), now_ms)
        endpoints = tuple(self._endpoint(self._catalog.endpoints[name], tree, now_ms) for name, tree in self._trees.items())
        return Snapshot(
            at_ms=now_ms,
            endpoints=endpoints,
            variants=self.costs.variants(self._catalog, {worker.type: worker.accelerator for worker in workers}),
            workers=workers,
            plan=self.plan,
            hop_ms=self.settings.hop_ms,
            interval_ms=self.settings.interval_ms,
            lanes_per_class=self.settings.lanes_per_class,
            memory=self._memory,
        )

    def decide(self, proposal: Proposal, snapshot: Snapshot, now_ms: float, optimizer: str = "", *, obliged: str = "") -> Plan | None:
        """The plan to publish now; None where the one in force stays (`history` says why). `obliged`: why it is taken whatever it gains."""
        self._memory = dict(proposal.memory)
        faults = faults_of(proposal, snapshot)
        if faults:
            shown = "; ".join(faults[:FAULTS_SHOWN]) + (f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else "")
            return self._stay(INVALID, f"{optimizer or 'the optimizer'} proposed what cannot be: {shown}", proposal, now_ms)
        wanted = scouted(proposal.bindings, sorted(self._unmeasured), snapshot, self.settings.scouts_max)
        endpoints = self._catalog.endpoints.values()
        wanted = with_needs(wanted, (*needs_of(endpoints), *floor_needs(endpoints, snapshot)), snapshot)
        rebound = rebind(wanted, snapshot)
        present = self._target or msgspec.structs.replace(self.plan, bindings=tuple(of_catalog(self._bindings, self._catalog).values()))
        taken, reason, as_good = self._judge(rebound, present, snapshot, proposal.adopted)
        if obliged and not taken and set(rebound.bindings) != set(_of_ready(present.bindings, snapshot)):
            taken, reason = True, obliged
        if not taken:
            follow = as_good and not alike(proposal.shares, present.shares) and hosts_all(present.bindings, proposal.shares)
            rebound = Rebound(bindings=_of_ready(present.bindings, snapshot), loads=0, load_ms=0.0)
            if not follow:
                if same_parts(present.time_shares or {}, time_shares(rebound.bindings, snapshot)):
                    return self._stay(KEPT, reason, proposal, now_ms)
                proposal = msgspec.structs.replace(proposal, shares=present.shares, budgets=present.budgets)
            reason = f"the bindings stay ({reason}); the shares follow the load"
        target = Plan(
            epoch=0,
            bindings=self._with_lost(rebound.bindings, snapshot),
            shares=proposal.shares,
            budgets=proposal.budgets,
            time_shares=time_shares(rebound.bindings, snapshot) or msgspec.UNSET,
            planner=self.settings.name,
            optimizer=optimizer,
            reason=f"{self._trigger}: {reason}",
        )
        return self._adopt(target, rebound, proposal, snapshot, now_ms)

    def next_step(self, now_ms: float) -> Plan | None:
        """The next plan of a rebinding under way; None while the last one is being carried out, and when all is done."""
        if not self._steps or self._target is None:
            return None
        late = now_ms - self._step_since_ms >= self.settings.step_ms_max
        if not late and not all(self._settled(name) for name in self._awaited):
            return None
        step = self._steps.popleft()
        plan = self._stepped(step, self._target, now_ms)
        why = "not everybody was ready in time" if late else "those who loaded are ready"
        self._record(STEP, f"{len(self._steps)} steps left; {why}", now_ms)
        return plan

    def failed(self, reason: str, now_ms: float) -> None:
        """No proposal came: the plan in force stays, and the next attempt is a periodic one."""
        self._record(FAILED_TO_PLAN, reason, now_ms)

    @property
    def rebinding(self) -> bool:
        """Whether steps of the last plan are still to come."""
        return bool(self._steps)

    # -- within

    def _tree(self, name: str, catalog: Catalog) -> StageTree:
        known = self._trees.get(name)
        spec = catalog.endpoints[name]
        unchanged = known is not None and self._catalog.endpoints.get(name) == spec and self._catalog.tasks == catalog.tasks
        return known if unchanged and known is not None else stage_tree(spec, catalog)

    def _endpoint(self, spec: EndpointSpec, tree: StageTree, now_ms: float) -> EndpointDemand:
        asked = self._demand.get(spec.name)
        default = spec.defaults.min_accuracy
        floors: tuple[FloorDemand, ...] = (FloorDemand(floor=default, rate_rps=0.0, forecast_rps=0.0),)
        forecast = self._forecast(spec.name)
        mixed = sum(asked.mix.values()) if asked is not None else 0.0
        if asked is not None and mixed > 0.0:
            floors = tuple(
                FloorDemand(floor=floor, rate_rps=asked.rate_rps * rate / mixed, forecast_rps=forecast * rate / mixed)
                for floor, rate in sorted(asked.mix.items())
            )
        attained, ended = self._demand.attainment(spec.name, now_ms, self.settings.interval_ms)
        return EndpointDemand(
            endpoint=spec.name,
            stages=tree.demand(asked.flows if asked else {}, self._demand.fan_out(spec.name), asked.rows if asked else 1.0),
            floors=floors,
            timeout_ms=self._demand.timeout_ms(spec.name, float(spec.defaults.timeout_ms)),
            backlog=self._demand.waiting(spec.name),
            lag=self._lag.get(spec.name, 0),
            attainment=attained if ended else 1.0,
            measured=tree.measured,
        )

    def _forecast(self, name: str) -> float:
        asked = self._demand.get(name)
        if asked is None:
            return 0.0
        expected = asked.forecaster.forecast(self.settings.interval_ms / 1000.0, self.settings.quantile)
        if not isfinite(expected) or expected < 0.0:
            self.lies["impossible forecast"] += 1
            expected = asked.rate_rps
        # A mean that still learns lags behind a rate that has risen: what is asked now is the least that may be expected.
        return min(max(expected, asked.rate_rps), self.settings.rate_rps_max)

    def _judge(self, rebound: Rebound, present: Plan, snapshot: Snapshot, adopted: str) -> Verdict:
        """The hysteresis, and what it does not hold for."""
        if not present.bindings:
            return Verdict(taken=True, reason="the first plan")
        bound = {binding.worker for binding in present.bindings}
        fresh = [binding.worker for binding in rebound.bindings if binding.worker not in bound]
        if fresh:
            return Verdict(taken=True, reason=f"{len(fresh)} workers had nothing to do")
        types = {worker.name: worker.type for worker in snapshot.workers}
        tried = {(key, types.get(binding.worker, "")) for binding in present.bindings for key in binding.variants}
        scouting = self._unmeasured - tried
        if any((key, types[binding.worker]) in scouting for binding in rebound.bindings for key in binding.variants):
            return Verdict(taken=True, reason="variants are tried that nobody has measured")
        now = _of_ready(present.bindings, snapshot)
        if set(rebound.bindings) == set(now):
            return Verdict(taken=False, reason="the bindings are the same", alike=True)
        if adopted == ALWAYS or (adopted == WITHOUT_LOADS and not rebound.loads):
            return Verdict(taken=True, reason="its optimizer weighs loads itself" if rebound.loads else "it loads nothing")
        found = worth(rebound, now, snapshot, self.settings)
        if found.enough(self.settings, blind=self._blind):
            return Verdict(taken=True, reason=found.text)
        late = [endpoint.endpoint for endpoint in snapshot.endpoints if endpoint.attainment < self.settings.attainment_target]
        if late and not rebound.loads and found.gain > -self.settings.gain_min:
            return Verdict(taken=True, reason=f"{late[0]} is late with what is bound, and the change loads nothing")
        kept = f"a gain of {found.gain:.2%} is not worth it ({found.text}; at least {found.least:.1%} more than they cost)"
        return Verdict(taken=False, reason=kept, alike=not rebound.loads or abs(found.gain) < self.settings.gain_min)

    def _adopt(self, target: Plan, rebound: Rebound, proposal: Proposal, snapshot: Snapshot, now_ms: float) -> Plan:
        ready = {binding.worker for binding in rebound.bindings}
        lost = [binding for binding in target.bindings if binding.worker not in ready]
        self._blind = not any(endpoint.forecast_rps for endpoint in snapshot.endpoints)
        sequence = steps(rebound.bindings, snapshot, needed(snapshot))
        self._steps = deque(msgspec.structs.replace(step, bindings=_sorted([*step.bindings, *lost])) for step in sequence)
        self._target = target
        plan = self._stepped(self._steps.popleft(), target, now_ms)
        self._record(PUBLISHED, plan.reason, now_ms, loads=rebound.loads, explanation=proposal.explanation)
        return plan

    def _stepped(self, step: Step, target: Plan, now_ms: float) -> Plan:
        """The plan of a step; the target's shares hold from its last step on, until then load decides."""
        last = not self._steps
        count = "" if last else f" (rebinding, {len(self._steps)} steps to follow)"
        plan = msgspec.structs.replace(
            target,
            epoch=self.plan.epoch + 1,
            bindings=step.bindings,
            shares=target.shares if last else {},
            reason=target.reason + count,
            made_ms=int(now_ms),
        )
        self._take(plan)
        self._awaited, self._step_since_ms = step.awaited, now_ms
        if last:
            self._target = None
        return plan

    def _take(self, plan: Plan) -> None:
        self.plan = plan
        self._bindings = with_lanes(plan.bindings, self.settings.lanes_per_class)

    def _stay(self, kind: str, reason: str, proposal: Proposal, now_ms: float) -> None:
        self._record(kind, reason, now_ms, explanation=proposal.explanation)

    def _record(self, kind: str, reason: str, now_ms: float, *, loads: int = 0, explanation: Explanation | None = None) -> None:
        self.history.append(
            Decision(at_ms=now_ms, epoch=self.plan.epoch, kind=kind, trigger=self._trigger, reason=reason, loads=loads, explanation=explanation)
        )

    def _with_lost(self, bindings: Sequence[Binding], snapshot: Snapshot) -> tuple[Binding, ...]:
        """Lost workers keep what they had until they are forgotten: who returns serves at once."""
        named = {binding.worker for binding in bindings}
        lanes = {(binding.accelerator, binding.lane) for binding in bindings}
        lost = [worker.binding for worker in snapshot.workers if worker.state != READY and worker.binding is not None]
        kept = [binding for binding in lost if binding.worker not in named and (binding.accelerator, binding.lane) not in lanes]
        return _sorted([*bindings, *kept])

    def _settled(self, name: str) -> bool:
        """Whether a worker has done what the present plan asks of it, or never will."""
        known, binding = self._workers.get(name), self._bindings.get(name)
        if known is None or binding is None or not known.alive:
            return True
        hosted = known.report.variants
        done = all(key in hosted and hosted[key].state in (WORKING, FAILED) for key in binding.variants)
        return done and known.report.epoch >= self.plan.epoch


def _of_ready(bindings: Sequence[Binding], snapshot: Snapshot) -> tuple[Binding, ...]:
    ready = {worker.name for worker in snapshot.workers if worker.state == READY}
    return tuple(binding for binding in bindings if binding.worker in ready)


def _sorted(bindings: Iterable[Binding]) -> tuple[Binding, ...]:
    return tuple(sorted(bindings, key=lambda binding: binding.worker))

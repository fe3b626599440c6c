"""A leader's turn: follow what people ask for, carry rebindings out, plan when that is due, publish, and write down why."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from scaler.actuating import Actuating
from scaler.control_loop_metrics import ControlMetrics
from scaler.control_loop_planning import Answer, MakeOptimizers, Planning
from scaler.control_loop_settings import LoopSettings
from scaler.control_loop_state import ControlState
from scaler.control_loop_term import Term
from scaler.optimizers.checking import faults_of
from scaler.optimizers.optimizer import FALLBACK, Explanation, Proposal
from scaler.optimizers.registry import DEFAULT_OPTIMIZER
from scaler.optimizers.snapshot import Snapshot
from scaler.plan_journal import PlanJournal
from scaler.policy.control_lanes import without_lane
from scaler.snapshot_recording import SnapshotRecording
from schemas.plan import Plan
from schemas.plan_journal import LED, MENDED, PINNED, PUBLISHED, SWITCHED, UNPINNED, Forecast, PlanDecision, Rules

logger = structlog.get_logger()
StillLeads = Callable[[], bool]


class Unwritten(msgspec.Struct, frozen=True):
    """A plan that is not known to stand in the log yet, with what its journal entry will be."""

    plan: Plan
    decision: PlanDecision


class Deciding:
    """Between the control policy of a term and the log; `overruled` where somebody else has published a newer plan."""

    def __init__(
        self,
        state: ControlState,
        journal: PlanJournal,
        metrics: ControlMetrics,
        settings: LoopSettings,
        make_optimizers: MakeOptimizers,
        *,
        name: str,
        now_ms: Callable[[], float],
        actuating: Actuating,
    ) -> None:
        self.overruled = False
        self.recording: SnapshotRecording | None = None
        """Takes every planning, where somebody wants them."""
        self._state, self._journal, self._metrics, self._settings = state, journal, metrics, settings
        self._name, self._now_ms = name, now_ms
        self._actuating = actuating
        self._planning = Planning(settings, make_optimizers, now_ms)
        self._term: Term | None = None
        self._unwritten: Unwritten | None = None
        self._pinned = False

    @property
    def optimizer(self) -> str:
        """The chosen one."""
        return self._planning.optimizer

    def begin(self, term: Term) -> None:
        """A term begins."""
        self._term, self._unwritten, self.overruled = term, None, False
        self._actuating.begin()
        control = self._state.catalog.control
        self._planning.choose(control.optimizer or self._settings.optimizer)
        self._pinned = control.pinned
        self._note(LED, f"{self._name} leads from epoch {term.policy.plan.epoch} on, and knows {len(term.workers)} workers")

    def end(self) -> None:
        """The term is over."""
        self._term, self._unwritten = None, None
        self._actuating.end()
        self._planning.drop()

    async def close(self) -> None:
        """End the optimizer's processes."""
        await self._planning.close()

    async def step(self, leads: StillLeads) -> None:
        """One turn; `leads` is asked at the moment of writing. Raises LogUnavailable."""
        term = self._term
        if term is None:
            return
        self._follow(term)
        if self._unwritten is None:
            self._mend(term)
        if self._unwritten is None:
            self._next_step(term)
        if self._unwritten is None and not self._planning.asking:
            self._actuate(term)
        if self._unwritten is None:
            self._plan(term)
        if self._unwritten is not None:
            await self._publish(term, self._unwritten, leads)

    # -- what people ask for

    def _follow(self, term: Term) -> None:
        term.follow_catalog()
        control = self._state.catalog.control
        by = f" by {control.changed_by}" if control.changed_by else ""
        if control.pinned != self._pinned:
            self._pinned = control.pinned
            self._note(PINNED if self._pinned else UNPINNED, (control.pin_reason or "asked for") + by)
            self._planning.drop()
            if not self._pinned:
                term.policy.ask("the plan was unpinned")
        before = self._planning.optimizer
        if self._planning.choose(control.optimizer or self._settings.optimizer):
            self._note(SWITCHED, f"from {before} to {self._planning.optimizer}{by}")
            term.policy.ask(f"the optimizer is {self._planning.optimizer} now")
        policy, metrics = term.policy, self._metrics
        metrics.pinned.set(self._pinned)
        metrics.workers(self._actuating.counts(), failing=bool(self._actuating.failure))
        metrics.epoch.set(policy.plan.epoch)
        metrics.plan_age.set(max(self._now_ms() - policy.plan.made_ms, 0.0) / 1e3 if policy.plan.made_ms else 0.0)
        for what, count in policy.lies.items():
            metrics.disbelieved.labels(what).set(count)

    # -- what comes next

    def _mend(self, term: Term) -> None:
        """A newer plan of somebody else's counts, and is looked at anew; one that is not newer, but last in the log, is written over."""
        policy, found = term.policy, self._state.plan
        if found.epoch > policy.plan.epoch:
            logger.warning("somebody else has published a plan", epoch=found.epoch, planner=found.planner)
            self._planning.drop()
            policy.observe_plan(found)
            policy.ask(f"{found.planner or 'somebody'} has published epoch {found.epoch}")
        elif self._state.stale(policy.plan):
            last = self._state.last
            policy.plan = msgspec.structs.replace(policy.plan, epoch=policy.plan.epoch + 1, made_ms=int(self._now_ms()))
            reason = f"epoch {last.epoch} of {last.planner or 'somebody'} stood behind it in the log"
            self._unwritten = Unwritten(policy.plan, self._decision(MENDED, reason, plan=policy.plan))

    def _next_step(self, term: Term) -> None:
        plan = term.policy.next_step(self._now_ms())
        if plan is not None:
            self._unwritten = Unwritten(plan, self._told(term, plan))

    def _actuate(self, term: Term) -> None:
        plan = self._actuating.turn(term.policy, self._now_ms(), pinned=self._pinned)
        if plan is not None:
            self._unwritten = Unwritten(plan, self._told(term, plan))

    def _plan(self, term: Term) -> None:
        term.notice_measured()
        answer = self._planning.answer()
        if answer is not None:
            self._decide(term, answer)
        elif not self._planning.asking and not self._pinned:
            now_ms = self._now_ms()
            if term.policy.due(now_ms) is not None:
                snapshot = self._actuating.seen(term.policy.snapshot(now_ms), now_ms)
                self._planning.ask(msgspec.structs.replace(snapshot, memory=term.memory))

    def _decide(self, term: Term, answer: Answer) -> None:
        policy, proposed, now_ms = term.policy, answer.proposed, self._now_ms()
        proposal = proposed.proposal
        if proposal is None:
            policy.failed("; ".join(proposed.failures) or "no optimizer proposed anything", now_ms)
            self._add(self._told(term, None, answer))
            self._record(answer, None, now_ms)
            return
        term.memory = proposal.memory
        obliged = self._obliged(policy.plan, answer.snapshot, proposed.optimizer)
        plan = policy.decide(proposal, answer.snapshot, now_ms, proposed.optimizer, obliged=obliged)
        self._actuating.planned()
        self._record(answer, plan, now_ms)
        decision = self._told(term, plan, answer)
        if plan is None:
            self._add(decision)
        else:
            self._unwritten = Unwritten(plan, decision)

    def _record(self, answer: Answer, plan: Plan | None, now_ms: float) -> None:
        if self.recording is not None:
            self.recording.follow(self._state.catalog)
            self.recording.take(answer.snapshot, answer.proposed.proposal, plan, now_ms, answer.proposed.optimizer)

    def _obliged(self, plan: Plan, snapshot: Snapshot, optimizer: str) -> str:
        """Why a proposal holds whatever it gains: the hysteresis protects good plans, not broken ones, nor against what somebody asked for."""
        faults = faults_of(Proposal(bindings=plan.bindings, explanation=Explanation(status=FALLBACK)), snapshot) if plan.bindings else []
        if faults:
            return f"the plan in force cannot be: {faults[0]}"
        if plan.optimizer != optimizer and (plan.optimizer or optimizer != DEFAULT_OPTIMIZER):
            return f"{optimizer} was chosen"
        return ""

    # -- writing

    async def _publish(self, term: Term, unwritten: Unwritten, leads: StillLeads) -> None:
        await self._state.catch_up()
        if not leads():
            return
        written = await self._state.publish(unwritten.plan)
        if self._term is not term:
            return
        self._unwritten = None
        self.overruled = not written
        if not written:
            logger.warning("a plan came too late", epoch=unwritten.plan.epoch, newest=self._state.plan.epoch, planner=self._state.plan.planner)
            return
        self._add(unwritten.decision)
        plan = unwritten.plan
        logger.info("plan published", epoch=plan.epoch, reason=plan.reason, workers=len(plan.bindings))

    def _note(self, kind: str, reason: str) -> None:
        self._add(self._decision(kind, reason))

    def _add(self, decision: PlanDecision) -> None:
        self._metrics.decided(decision)
        self._journal.add(decision)

    def _decision(self, kind: str, reason: str, plan: Plan | None = None) -> PlanDecision:
        epoch = self._term.policy.plan.epoch if self._term is not None else 0
        return PlanDecision(at_ms=self._now_ms(), scaler=self._name, epoch=epoch, kind=kind, reason=reason, optimizer=self.optimizer, plan=plan)

    def _told(self, term: Term, plan: Plan | None, answer: Answer | None = None) -> PlanDecision:
        """The policy's last decision, for the journal."""
        said, control = term.policy.history[-1], term.policy.settings
        decision = PlanDecision(
            at_ms=said.at_ms,
            scaler=self._name,
            epoch=said.epoch,
            kind=said.kind,
            trigger=said.trigger,
            reason=said.reason.removeprefix(f"{said.trigger}: ") if said.kind == PUBLISHED else said.reason,
            optimizer=self.optimizer,
            loads=said.loads,
            explanation=said.explanation,
            plan=plan,
        )
        if answer is None:
            return decision
        return msgspec.structs.replace(
            decision,
            optimizer=answer.proposed.optimizer,
            failures=answer.proposed.failures,
            proposed_ms=answer.took_ms,
            demand={
                endpoint.endpoint: Forecast(
                    rate_rps=sum(floor.rate_rps for floor in endpoint.floors),
                    forecast_rps=endpoint.forecast_rps,
                    attainment=endpoint.attainment,
                    lag=endpoint.lag,
                )
                for endpoint in answer.snapshot.endpoints
            },
            actuator=dict(self._actuating.explained()) or msgspec.UNSET,
            left_out=term.policy.left_out(answer.snapshot.at_ms)
            | without_lane(answer.snapshot, term.lane_topics)
            | {f"{worker.name}: {key}": reason for worker in answer.snapshot.workers for key, reason in worker.refused.items()},
            rules=Rules(
                interval_ms=control.interval_ms,
                cool_down_ms=control.cool_down_ms,
                attainment_cool_down_ms=control.attainment_cool_down_ms,
                attainment_target=control.attainment_target,
                demand_margin=control.demand_margin,
                gain_min=control.gain_min,
            ),
        )

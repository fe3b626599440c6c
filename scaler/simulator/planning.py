"""The simulated control plane: the control policy reads telemetry, asks an optimizer when a plan is due, and publishes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from scaler.optimizers.optimizer import Limits, Optimizer
from scaler.policy.control import ControlPolicy
from scaler.policy.control_settings import ControlSettings
from scaler.policy.forecasting.forecaster import create_forecaster
from scaler.policy.static_plan import static_bindings
from scaler.simulator.agenda import START_MS
from scaler.simulator.result import PlanMade
from scaler.simulator.world import World
from schemas.plan import Plan
from schemas.telemetry import Departed, DispatcherReport, Telemetry, WorkerReport

LOOK_MS = 250.0
LANES_MIN = 64
PATIENCE = 20.0
"""A solver may take so many times its limit: a simulation's plans are the same on a busy machine."""


class Planning(Protocol):
    """A control plane that may die and start again."""

    made: list[PlanMade]

    def start(self) -> None: ...
    def die(self) -> None: ...


class _Leader:
    """What every planner has: a life, in which it looks again and again whether there is something to do."""

    def __init__(self, world: World) -> None:
        self.made: list[PlanMade] = []
        self._world, self._agenda = world, world.agenda
        self._life = 0

    def start(self) -> None:
        """Plan from now on, from the plan in force."""
        self._life += 1
        self._begin()
        self._world.planner = self
        self._look(self._life)

    def die(self) -> None:
        """What it knew is gone."""
        self._life += 1
        self._world.planner = None

    def tell(self, record: Telemetry) -> None:
        """A telemetry record was read."""
        raise NotImplementedError

    def _begin(self) -> None:
        raise NotImplementedError

    def _plan(self) -> None:
        raise NotImplementedError

    def _look(self, life: int) -> None:
        if life == self._life:
            self._plan()
            self._agenda.schedule(self._agenda.now_ms + LOOK_MS, self._look, life)

    def _publish(self, plan: Plan, made: PlanMade) -> None:
        self.made.append(made)
        self._world.publish(plan)

    @property
    def _at_s(self) -> float:
        return (self._agenda.now_ms - START_MS) / 1e3


class OptimizerPlanning(_Leader):
    """The live scaler's policy with one optimizer."""

    def __init__(self, world: World, optimizer: Optimizer, seed: int, clock_s: Callable[[], float] | None) -> None:
        """`clock_s`: only tells how long proposals took: what they are does not depend on it."""
        super().__init__(world)
        self._optimizer, self._seed, self._clock_s = optimizer, seed, clock_s or _no_time
        scenario, control = world.scenario, world.scenario.control
        self._settings = ControlSettings(
            interval_ms=control.interval_s * 1e3,
            hop_ms=max(scenario.hop.p99_ms, 0.0),
            lanes_per_class=max(LANES_MIN, sum(group.count for group in scenario.workers)),
        )
        self._policy = self._new()

    def _new(self) -> ControlPolicy:
        scenario = self._world.scenario
        make = partial(create_forecaster, scenario.control.forecast)
        return ControlPolicy(self._settings, make, type_of=_type_of, costs=scenario.variants)

    def _begin(self) -> None:
        self._policy = self._new()
        self._policy.observe_catalog(self._world.scenario.catalog)
        if self._world.plan.epoch:
            self._policy.observe_plan(self._world.plan)
        for _, record in list(self._world.telemetry):
            self.tell(record)

    def tell(self, record: Telemetry) -> None:
        """A telemetry record was read."""
        policy, now_ms = self._policy, self._agenda.now_ms
        if isinstance(record, WorkerReport):
            policy.observe_worker(record, now_ms)
        elif isinstance(record, DispatcherReport):
            policy.observe_dispatcher(record, now_ms)
        elif isinstance(record, Departed):
            policy.observe_departed(record, now_ms)

    def _plan(self) -> None:
        policy, now_ms = self._policy, self._agenda.now_ms
        step = policy.next_step(now_ms)
        if step is not None:
            self._take(step, 0.0)
        if policy.due(now_ms) is None:
            return
        snapshot = policy.snapshot(now_ms)
        begun_s = self._clock_s()
        limits = Limits(time_s=self._world.scenario.control.time_s, seed=self._seed, clock_s=_no_time, patience=PATIENCE)
        try:
            proposal = self._optimizer.propose(snapshot, limits)
        except Exception as error:  # somebody else's plug-in: whatever it raises, the plan in force stays
            policy.failed(f"{self._optimizer.name} raised {type(error).__name__}: {error}", now_ms)
            return
        plan = policy.decide(proposal, snapshot, now_ms, self._optimizer.name)
        if plan is not None:
            self._take(plan, (self._clock_s() - begun_s) * 1e3)

    def _take(self, plan: Plan, solve_ms: float) -> None:
        decision = self._policy.history[-1]
        made = PlanMade(
            at_s=self._at_s,
            epoch=plan.epoch,
            reason=plan.reason or decision.reason,
            loads=decision.loads,
            explanation=decision.explanation,
            solve_ms=solve_ms,
        )
        if self._world.scenario.control.shares == "load":
            plan = msgspec.structs.replace(plan, shares={})
        self._publish(plan, made)


class StaticPlanning(_Leader):
    """Every worker hosts what it can, most accurate first."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._reports: dict[str, WorkerReport] = {}
        self._present = Plan()

    def _begin(self) -> None:
        self._reports.clear()
        if self._world.plan.epoch > self._present.epoch:
            self._present = self._world.plan

    def tell(self, record: Telemetry) -> None:
        """A telemetry record was read."""
        if isinstance(record, WorkerReport):
            self._reports[record.worker] = record

    def _plan(self) -> None:
        present = self._present
        lanes = max(LANES_MIN, sum(group.count for group in self._world.scenario.workers))
        bindings = static_bindings(self._reports.values(), self._world.scenario.catalog, present, lanes, keep_unheard=True)
        if set(bindings) == set(present.bindings):
            return
        before = {binding.worker: set(binding.variants) for binding in present.bindings}
        loads = sum(len(set(binding.variants) - before.get(binding.worker, set())) for binding in bindings)
        self._present = plan = Plan(
            epoch=present.epoch + 1, bindings=bindings, planner="static", reason="workers changed", made_ms=int(self._agenda.now_ms)
        )
        self._publish(plan, PlanMade(at_s=self._at_s, epoch=plan.epoch, reason=plan.reason, loads=loads))


def _type_of(report: WorkerReport) -> str:
    """Simulated workers give their type as their device."""
    return report.device


def _no_time() -> float:
    return 0.0

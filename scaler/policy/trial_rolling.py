"""Rolls a proposal forward: from a snapshot's cluster and bindings over an interval's demand, in the simulator, over the policies that serve."""

from __future__ import annotations

from functools import partial

import msgspec

from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import READY, Snapshot, Worker
from scaler.policy.control import FAILED_TO_PLAN, ControlPolicy
from scaler.policy.control_settings import ControlSettings
from scaler.policy.forecasting.last import Last
from scaler.policy.trial_load import IntervalDemand, loads_of
from scaler.simulator.agenda import START_MS
from scaler.simulator.cluster import Cluster
from scaler.simulator.result import PlanMade, Result
from scaler.simulator.scenario import Control, Hop, Scenario, WorkerGroup
from scaler.simulator.world import World
from schemas.catalog import Catalog
from schemas.plan import Binding, Plan
from schemas.telemetry import Departed, DispatcherReport, Telemetry, WorkerReport

STEP_MS = 250.0
REQUESTS_MAX = 20_000
"""An interval with more requests is rolled forward over its beginning."""
LEAD_IN_EPOCH, PRESENT_EPOCH = 1, 2


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is rolled forward."""

    snapshot: Snapshot
    proposal: Proposal | None
    """None: none was made, the plan in force stays."""
    optimizer: str
    catalog: Catalog
    demand: IntervalDemand
    seed: int
    """The same for all that are compared: the same arrivals."""


class Rolled(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    offered: int
    completed: int
    """On time, at or above the floor."""
    accuracy_sum: float
    """Over the completed."""
    attainment: dict[str, float]
    """By endpoint."""
    kind: str
    """published, kept, invalid or failed, as in `headrace plan history`."""
    reason: str
    loads: int
    plan: Plan
    """In force at the end (a rebinding under way counts as done)."""
    hosted: dict[str, tuple[str, ...]]
    """By worker: what is ready at the end."""


def roll_forward(question: Question) -> Rolled:
    """Deterministic. Raises InvalidScenario or InvalidWorkload for what cannot be simulated."""
    names = _names(question.snapshot)
    snapshot = _renamed(question.snapshot, names)
    demand = question.demand.cut(REQUESTS_MAX)
    scenario = _scenario(snapshot, demand, question)
    planning: list[RollingPlanning] = []

    def make(world: World) -> RollingPlanning:
        proposal = question.proposal
        if proposal is not None:
            proposal = msgspec.structs.replace(proposal, bindings=_bindings(proposal.bindings, names))
        made = RollingPlanning(world, snapshot, proposal, question.optimizer)
        planning.append(made)
        return made

    cluster = Cluster(scenario, question.seed, make, (), {})
    cluster.run(None)
    return _rolled(cluster.result(), planning[0], {simulated: name for name, simulated in names.items()})


class RollingPlanning:
    """The present plan until the interval begins; then the proposal, as far as the control policy takes it, step by step."""

    def __init__(self, world: World, snapshot: Snapshot, proposal: Proposal | None, optimizer: str) -> None:
        self.made: list[PlanMade] = []
        self._world, self._snapshot, self._proposal, self._optimizer = world, snapshot, proposal, optimizer
        settings = ControlSettings(
            name="trial", interval_ms=snapshot.interval_ms, hop_ms=snapshot.hop_ms, lanes_per_class=max(snapshot.lanes_per_class, 1)
        )
        self.policy = ControlPolicy(settings, Last, type_of=_device)
        bound = tuple(worker.binding for worker in snapshot.workers if worker.binding is not None)
        self._present = msgspec.structs.replace(snapshot.plan, epoch=PRESENT_EPOCH, bindings=bound)
        self.policy.observe_plan(self._present)
        self.hosted: dict[str, tuple[str, ...]] = {}

    def start(self) -> None:
        """Everybody loads what is loaded in the snapshot, before the interval begins."""
        hosted = {worker.name: worker.hosted for worker in self._snapshot.workers}
        ready = [
            msgspec.structs.replace(binding, variants=tuple(key for key in binding.variants if key in hosted[binding.worker]))
            for binding in self._present.bindings
        ]
        self._world.planner = self
        self._world.publish(msgspec.structs.replace(self._present, epoch=LEAD_IN_EPOCH, bindings=tuple(ready)))
        agenda = self._world.agenda
        agenda.schedule(START_MS, self._begin)
        agenda.schedule(START_MS + self._world.scenario.duration_s * 1e3, self._look_back)

    def die(self) -> None:
        """See Planning: nothing kills this one."""

    def tell(self, record: Telemetry) -> None:
        """A telemetry record was read."""
        now_ms = self._world.agenda.now_ms
        if isinstance(record, WorkerReport):
            self.policy.observe_worker(record, now_ms)
        elif isinstance(record, DispatcherReport):
            self.policy.observe_dispatcher(record, now_ms)
        elif isinstance(record, Departed):
            self.policy.observe_departed(record, now_ms)

    def _begin(self, _: None) -> None:
        now_ms = self._world.agenda.now_ms
        plan = None
        if self._proposal is None:
            self.policy.failed("nothing was proposed", now_ms)
        else:
            # As when somebody says `headrace optimizers use`: the hysteresis does not hold against a choice.
            obliged = f"{self._optimizer} was chosen" if self._present.optimizer != self._optimizer else ""
            plan = self.policy.decide(self._proposal, self._snapshot, now_ms, self._optimizer, obliged=obliged)
        self._world.publish(plan if plan is not None else self._present)
        self._world.agenda.schedule(now_ms + STEP_MS, self._step)

    def _step(self, _: None) -> None:
        now_ms = self._world.agenda.now_ms
        step = self.policy.next_step(now_ms)
        if step is not None:
            self._world.publish(step)
        if self.policy.rebinding:
            self._world.agenda.schedule(now_ms + STEP_MS, self._step)

    def _look_back(self, _: None) -> None:
        self.hosted = {worker.name: worker.hosted for worker in self.policy.snapshot(self._world.agenda.now_ms).workers}

    @property
    def target(self) -> Plan:
        """In force when all steps are done: the rest of them is gone through."""
        until_ms = self._world.agenda.now_ms
        while self.policy.rebinding:
            until_ms += self.policy.settings.step_ms_max
            self.policy.next_step(until_ms)
        return self.policy.plan


def _device(report: WorkerReport) -> str:
    return report.device


def _scenario(snapshot: Snapshot, demand: IntervalDemand, question: Question) -> Scenario:
    groups = tuple(_group(worker) for worker in snapshot.workers)
    loads = loads_of(snapshot, demand, question.catalog)
    asked = {load.endpoint: question.catalog.endpoints[load.endpoint] for load in loads}
    return Scenario(
        name="trial",
        # Endpoints that nobody asks cost nothing, and one whose graph cannot run ends no trial.
        catalog=Catalog(question.catalog.tasks, asked),
        variants=snapshot.variants,
        workers=groups,
        loads=loads,
        duration_s=max(demand.duration_s, 0.1),
        control=Control(optimizer=question.optimizer, interval_s=snapshot.interval_ms / 1e3),
        hop=Hop(p50_ms=snapshot.hop_ms / 4.0, p99_ms=snapshot.hop_ms),
    )


def _group(worker: Worker) -> WorkerGroup:
    """Each worker is a group of its own; one that is lost has its place and nobody in it."""
    return WorkerGroup(
        type=worker.type,
        accelerator=worker.accelerator,
        count=1 if worker.state == READY else 0,
        memory_bytes=worker.memory_bytes_max,
        threads=worker.threads_max,
    )


def _names(snapshot: Snapshot) -> dict[str, str]:
    """What the simulator calls each worker: its group's type and number, and its own number in the group."""
    return {worker.name: f"{worker.type}-{at}-0" for at, worker in enumerate(snapshot.workers)}


def _renamed(snapshot: Snapshot, names: dict[str, str]) -> Snapshot:
    rename = partial(_binding, names=names)
    workers = tuple(
        msgspec.structs.replace(worker, name=names[worker.name], binding=rename(worker.binding) if worker.binding is not None else None)
        for worker in snapshot.workers
    )
    plan = msgspec.structs.replace(snapshot.plan, bindings=_bindings(snapshot.plan.bindings, names))
    return msgspec.structs.replace(snapshot, workers=workers, plan=plan)


def _bindings(bindings: tuple[Binding, ...], names: dict[str, str]) -> tuple[Binding, ...]:
    return tuple(_binding(binding, names) for binding in bindings if binding.worker in names)


def _binding(binding: Binding, names: dict[str, str]) -> Binding:
    return msgspec.structs.replace(binding, worker=names[binding.worker])


def _rolled(result: Result, planning: RollingPlanning, names: dict[str, str]) -> Rolled:
    history = planning.policy.history
    said = next((decision for decision in history if decision.kind != "step"), None)
    total = result.total
    target = planning.target
    return Rolled(
        offered=total.offered,
        completed=total.completed,
        accuracy_sum=sum(window.accuracy_sum for window in total.windows),
        attainment={name: endpoint.attainment for name, endpoint in result.endpoints.items()},
        kind=said.kind if said is not None else FAILED_TO_PLAN,
        reason=said.reason if said is not None else "",
        loads=said.loads if said is not None else 0,
        plan=msgspec.structs.replace(target, bindings=_bindings(target.bindings, names)),
        hosted={names[name]: hosted for name, hosted in planning.hosted.items() if name in names},
    )

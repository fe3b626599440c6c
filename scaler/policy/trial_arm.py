"""One side of a trial: what the cluster would look like if this optimizer had led since the trial began.

Both sides see the same demand, costs and workers; bindings, what is loaded and the optimizer's memory are each side's own. Without that, the one
that leads would find its own plan at every snapshot, and the other would pay for the way from there every time.
"""

from __future__ import annotations

import msgspec

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.evaluation import flows_of
from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import READY, Snapshot, Worker
from scaler.policy.trial_rolling import Rolled
from schemas.plan import Binding, Plan


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is expected to do, by the yardstick that is the same for every optimizer (scaler/optimizers/evaluation.py)."""

    served: float
    """Part of the forecast."""
    accuracy: float | None
    """Mean, of what is served; None where nothing is."""
    load: dict[str, float]
    """By worker type."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One side over one interval."""

    offered: int
    completed: int
    accuracy_sum: float
    planned: Planned | None = None
    kind: str = ""
    reason: str = ""
    loads: int = 0
    failure: str = ""
    """Why the optimizer proposed nothing."""

    @property
    def attainment(self) -> float:
        return self.completed / self.offered if self.offered else 1.0

    @property
    def accuracy_served(self) -> float | None:
        return self.accuracy_sum / self.completed if self.completed else None

    @property
    def worth(self) -> float:
        """Accuracy over all that was offered, misses counting as nothing: what the control policy's hysteresis weighs, too."""
        return self.accuracy_sum / self.offered if self.offered else 0.0


class TrialArm:
    """Pure: follows its own plan from snapshot to snapshot."""

    def __init__(self, optimizer: str) -> None:
        self.optimizer = optimizer
        self._plan: Plan | None = None
        """None: nothing was rolled forward yet, the live plan is its own."""
        self._hosted: dict[str, tuple[str, ...]] = {}
        self._attainment: dict[str, float] = {}
        self._memory: dict[str, float] = {}

    def snapshot(self, live: Snapshot) -> Snapshot:
        """What this side's optimizer sees."""
        if self._plan is None:
            # The memory of whoever leads is not this optimizer's.
            return msgspec.structs.replace(live, memory={})
        known = {variant.key for variant in live.variants}
        bindings = {binding.worker: binding for binding in self._plan.bindings}
        workers = tuple(self._worker(worker, bindings.get(worker.name), known) for worker in live.workers)
        endpoints = tuple(
            msgspec.structs.replace(endpoint, attainment=self._attainment.get(endpoint.endpoint, endpoint.attainment)) for endpoint in live.endpoints
        )
        present = {worker.name for worker in workers}
        plan = msgspec.structs.replace(
            self._plan, epoch=live.plan.epoch, bindings=tuple(binding for binding in self._plan.bindings if binding.worker in present)
        )
        return msgspec.structs.replace(live, workers=workers, endpoints=endpoints, plan=plan, memory=self._memory)

    def rolled(self, rolled: Rolled, proposal: Proposal | None) -> None:
        """Go on from there."""
        self._plan, self._hosted, self._attainment = rolled.plan, dict(rolled.hosted), rolled.attainment
        if proposal is not None:
            # Chosen is chosen, also where its first proposal left all bindings as they were.
            self._plan = msgspec.structs.replace(rolled.plan, optimizer=self.optimizer)
            self._memory = dict(proposal.memory)

    def _worker(self, live: Worker, binding: Binding | None, known: set[str]) -> Worker:
        """A worker that this side has never had is as it is; of a lost one, what was loaded is gone."""
        hosted = self._hosted.get(live.name, live.hosted)
        kept = tuple(key for key in hosted if key in known and key not in live.refused) if live.state == READY else ()
        if live.state != READY:
            self._hosted[live.name] = ()
        return msgspec.structs.replace(live, binding=binding, hosted=kept)


def planned_of(rolled: Rolled, snapshot: Snapshot) -> Planned:
    """What the plan in force after a proposal is expected to do for the snapshot's forecast."""
    known = {variant.key for variant in snapshot.variants}
    bindings = [msgspec.structs.replace(binding, variants=tuple(key for key in binding.variants if key in known)) for binding in rolled.plan.bindings]
    ready = {worker.name for worker in snapshot.workers if worker.state == READY}
    flows = flows_of([binding for binding in bindings if binding.worker in ready], snapshot, Capacity(snapshot))
    rates = {endpoint.endpoint: endpoint.forecast_rps for endpoint in snapshot.endpoints}
    total = sum(rates.values())
    served = {name: rate * flows.served.get(name, 0.0) for name, rate in rates.items()}
    answered = sum(served.values())
    gained = sum(rate * flows.accuracy.get(name, 0.0) for name, rate in served.items())
    return Planned(served=answered / total if total > 0.0 else 1.0, accuracy=gained / answered if answered > 0.0 else None, load=flows.load)


def measured_of(rolled: Rolled, snapshot: Snapshot, failure: str) -> Measured:
    """One side's figures of one interval."""
    return Measured(
        offered=rolled.offered,
        completed=rolled.completed,
        accuracy_sum=rolled.accuracy_sum,
        planned=planned_of(rolled, snapshot),
        kind=rolled.kind,
        reason=rolled.reason,
        loads=rolled.loads,
        failure=failure,
    )

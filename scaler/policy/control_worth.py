"""Whether a proposal is worth its loads: both plans are measured by the same yardstick on the same snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.evaluation import Flows, flows_of
from scaler.optimizers.snapshot import READY, Snapshot
from scaler.policy.control_settings import ControlSettings
from scaler.policy.rebinding import Rebound
from scaler.policy.rebinding_steps import Level
from schemas.plan import Binding

SERVED_TELLS = 0.002
"""Plans that serve the same part but for this are told apart by accuracy."""
PART_MAX = 0.5
"""Of the workers' time, that loads are taken to cost at most."""
NEEDED_MARGIN = 1.1
"""Of the forecast, that must stay while workers change."""


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a change brings, and what it costs."""

    gain: float
    """Part of the forecast served in time, or (where that is the same) accuracy of what is served."""
    cost: float
    """What the loads take of that; not looked at where the gain is too little even so."""
    least: float
    """The hysteresis."""
    text: str

    def enough(self, settings: ControlSettings, *, blind: bool) -> bool:
        """What was bound `blind`, while nothing was asked, is no plan to hold on to."""
        return self.gain - self.cost >= self.least or (blind and self.gain >= settings.blind_gain_min)


def worth(rebound: Rebound, present: Sequence[Binding], snapshot: Snapshot, settings: ControlSettings) -> Worth:
    """Of going from the present bindings to these."""
    snapshot = _with_headroom(snapshot, settings.headroom)
    capacity = Capacity(snapshot)
    hosted = {variant.key for variant in snapshot.variants}
    ready = {worker.name for worker in snapshot.workers if worker.state == READY}
    usable = [
        msgspec.structs.replace(binding, variants=tuple(key for key in binding.variants if key in hosted))
        for binding in present
        if binding.worker in ready
    ]
    flows = flows_of(usable, snapshot, capacity)
    served, accuracy = _value(flows, snapshot)
    then_served, then_accuracy = _value(flows_of(rebound.bindings, snapshot, capacity), snapshot)
    # What a worker does while it would have nothing else to do costs nobody anything.
    busy = max(flows.load.values(), default=1.0) if flows.solved else 1.0
    # The part of all workers' time that goes into loading and is asked for, over the intervals for which a plan is expected to stay.
    part = busy * rebound.load_ms / (max(len(ready), 1) * max(settings.load_intervals * snapshot.interval_ms, 1.0))
    loads = f"{rebound.loads} loads cost {part:.1%} of the workers' time"
    if abs(then_served - served) > SERVED_TELLS:
        text = f"serves {then_served:.1%} of {settings.headroom:g} times the forecast, now {served:.1%}; {loads}"
        return Worth(gain=then_served - served, cost=part, least=settings.gain_min, text=text)
    gain, least, cost = then_accuracy - accuracy, settings.accuracy_gain_min, 0.0
    if gain >= least and part > 0.0:
        # Less time is not as much less accuracy: as much as the plan would lose by that much more demand.
        crowded = _with_headroom(snapshot, 1.0 / (1.0 - min(part, PART_MAX)))
        cost = max(then_accuracy - _value(flows_of(rebound.bindings, crowded, capacity), crowded)[1], 0.0)
    return Worth(gain=gain, cost=cost, least=least, text=f"accuracy {then_accuracy:.4f}, now {accuracy:.4f}; {loads}")


def _with_headroom(snapshot: Snapshot, factor: float) -> Snapshot:
    endpoints = tuple(
        msgspec.structs.replace(
            endpoint, floors=tuple(msgspec.structs.replace(floor, forecast_rps=factor * floor.forecast_rps) for floor in endpoint.floors)
        )
        for endpoint in snapshot.endpoints
    )
    return msgspec.structs.replace(snapshot, endpoints=endpoints)


def _value(flows: Flows, snapshot: Snapshot) -> tuple[float, float]:
    """(part of all forecasts that is served, mean accuracy of that); an endpoint of which nothing is asked counts for nothing."""
    rates = {endpoint.endpoint: endpoint.forecast_rps for endpoint in snapshot.endpoints}
    total = sum(rates.values())
    if total <= 0.0 or not flows.solved:
        return 1.0, 0.0
    served = {name: rate * flows.served.get(name, 0.0) for name, rate in rates.items()}
    answered = sum(served.values())
    accuracy = sum(rate * flows.accuracy.get(name, 0.0) for name, rate in served.items()) / answered if answered > 0.0 else 0.0
    return answered / total, accuracy


def needed(snapshot: Snapshot) -> dict[Level, float]:
    """Rows/s that must be possible at each level of accuracy of each task, for the forecast as it is.

    Each stage of a path must be at least as accurate as the path's floor, so that this is the least that is needed.
    """
    levels: dict[str, list[float]] = {}
    for variant in snapshot.variants:
        levels.setdefault(variant.task, []).append(variant.accuracy)
    found: dict[Level, float] = {(task, accuracy): 0.0 for task, accuracies in levels.items() for accuracy in accuracies}
    for endpoint in snapshot.endpoints:
        rows: dict[str | None, float] = {None: 1.0}
        for stage in endpoint.stages:
            reaching = rows.get(stage.after, 1.0) * max(stage.rows.values(), default=1.0)
            rows[stage.name] = reaching
            accuracies = levels.get(stage.task, [])
            for demand in endpoint.floors:
                least = min((accuracy for accuracy in accuracies if accuracy >= demand.floor - 1e-9), default=None)
                for accuracy in _up_to(accuracies, least):
                    found[stage.task, accuracy] += demand.forecast_rps * reaching * NEEDED_MARGIN
    return found


def _up_to(accuracies: Iterable[float], most: float | None) -> set[float]:
    return set() if most is None else {accuracy for accuracy in accuracies if accuracy <= most}


def alike(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> bool:
    """Shares that differ by less than two hundredths each."""
    if one.keys() != other.keys():
        return False
    return all(abs(one[task].get(key, 0.0) - other[task].get(key, 0.0)) < 0.02 for task in one for key in one[task].keys() | other[task].keys())


def hosts_all(bindings: Sequence[Binding], shares: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether somebody hosts all that gets a share."""
    hosted = {key for binding in bindings for key in binding.variants}
    return all(key in hosted for by_variant in shares.values() for key, part in by_variant.items() if part > 0.0)

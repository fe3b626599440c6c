"""The simulator's prediction of a scenario that is also measured: the same catalog, profiles, arrivals in steps and optimizer, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import fmean

import msgspec

from deploy.bench.scaling_load import FLOOR, TIMEOUTS_MS, Came, Second, Step
from deploy.bench.scaling_models import Ladder
from deploy.bench.scaling_parts import Simulated, reasons
from deploy.bench.scaling_stack import WORKERS
from deploy.simulation.execution import simulated
from scaler.optimizers.registry import create_optimizer
from scaler.optimizers.snapshot import Cost, Variant
from scaler.simulator.result import Result
from scaler.simulator.scenario import Arrivals, Choice, Control, Load, Scenario, WorkerGroup
from schemas.catalog import Catalog, variant_key

CLASS = "cpu"
SETTLE_S = 20.0
"""Before the measured part: the first step's rates, so that a plan is in force as it is on the live stack."""


def scenario(ladder: Ladder, steps: Sequence[Step], optimizer: str, *, settle_s: float = SETTLE_S, memory_bytes: int = 0) -> Scenario:
    """As `headrace simulate` would read it of a file. Steps must be of one length where an endpoint's rate changes."""
    catalog = Catalog({task.name: task for task in ladder.catalog.tasks}, {endpoint.name: endpoint for endpoint in ladder.catalog.endpoints})
    asked = list(dict.fromkeys(endpoint for step in steps for endpoint in step.rates_rps))
    unit_s = _unit_s([settle_s, *(step.seconds for step in steps)])
    group = WorkerGroup(type=CLASS, accelerator=CLASS, count=len(WORKERS), memory_bytes=memory_bytes)
    return Scenario(
        name="scaling",
        catalog=Catalog(catalog.tasks, {name: catalog.endpoints[name] for name in asked}),
        variants=_variants(ladder, catalog),
        workers=(group,),
        loads=tuple(_load(endpoint, steps, settle_s, unit_s) for endpoint in asked),
        duration_s=settle_s + sum(step.seconds for step in steps),
        warm_up_s=settle_s,
        control=Control(optimizer=optimizer),
    )


def _unit_s(lengths_s: Sequence[float]) -> float:
    """The longest step, in tenths of seconds, that all lengths are multiples of."""
    tenths = [round(length_s * 10) for length_s in lengths_s if length_s > 0]
    return max(unit for unit in range(1, min(tenths) + 1) if all(length % unit == 0 for length in tenths)) / 10


def _load(endpoint: str, steps: Sequence[Step], settle_s: float, unit_s: float) -> Load:
    before = (steps[0].rates_rps.get(endpoint, 0.0),) * round(settle_s / unit_s)
    rates = before + tuple(rate for step in steps for rate in (step.rates_rps.get(endpoint, 0.0),) * round(step.seconds / unit_s))
    return Load(
        endpoint=endpoint,
        arrivals=Arrivals(kind="steps", rates_rps=rates, hold_s=unit_s),
        floors=(Choice(FLOOR),),
        timeouts_ms=tuple(Choice(float(timeout_ms)) for timeout_ms in TIMEOUTS_MS),
    )


def _variants(ladder: Ladder, catalog: Catalog) -> tuple[Variant, ...]:
    costs = {
        profile.variant.partition("/")[2]: Cost(latency={1: profile.batches}, load_ms=profile.load_ms, memory_bytes=profile.memory_bytes)
        for profile in ladder.profiles
    }
    return tuple(
        Variant(key=variant_key(task.name, spec.name), task=task.name, accuracy=spec.accuracy, batch_size_max=8, costs={CLASS: costs[spec.name]})
        for task in catalog.tasks.values()
        for spec in task.variants
    )


async def predicted(asked: Scenario, seed: int) -> Came:
    """The same figures as a live offer gives."""
    result = await asyncio.to_thread(_run, asked, seed)
    return came_of(result, asked.warm_up_s)


def _run(asked: Scenario, seed: int) -> Result:
    return simulated(asked, seed, create_optimizer(asked.control.optimizer, asked.control.options))


def came_of(result: Result, from_s: float) -> Came:
    """Seconds count from the end of the settling."""
    total = result.total
    windows = [window for window in total.windows if window.at_s >= from_s]
    outcomes = {name: getattr(total, name) for name in ("completed", "expired", "rejected", "failed")}
    return Came(
        offered=total.offered,
        completed=total.completed,
        attainment=total.attainment,
        accuracy_served=total.accuracy_served or 0.0,
        outcomes=outcomes,
        variants=result.variants,
        seconds=tuple(Second(window.at_s - from_s, window.offered, window.completed) for window in windows),
        busy=fmean(result.utilisation.values()) if result.utilisation else 0.0,
    )


def reasons_of(lived: Came, expected: Came) -> tuple[str, ...]:
    """Why one is not the other, as measured; empty where nothing was computed."""
    seconds = sum(1 for second in expected.seconds if second.offered) or 1
    return () if lived.parts is None else reasons(lived.parts, Simulated(expected.completed / seconds, expected.busy))


def shown(came: Came) -> dict[str, object]:
    """For the details of a row."""
    return msgspec.to_builtins(came)

"""Random snapshots for contract suites and property tests: mixed clusters, chains and trees, floors, odd profiles, a plan in force."""

from __future__ import annotations

import msgspec
import numpy as np

from scaler.optimizers.snapshot import (
    ANY_VARIANT,
    LOST,
    READY,
    Cost,
    EndpointDemand,
    FloorDemand,
    MeasuredPath,
    Snapshot,
    StageDemand,
    Variant,
    Worker,
)
from schemas.plan import Binding, Plan
from schemas.profile import Latency

ACCELERATORS = ("cpu", "gpu", "vpu", "fpga")
MEGABYTE = 1 << 20
ODD = (float("nan"), float("inf"), 0.0)
BATCHES = (1, 2, 4, 8, 16, 32)


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How large, and how strange, the snapshots are."""

    types: int = 4
    workers: int = 24
    """At most, of each type."""
    tasks: int = 4
    variants: int = 6
    endpoints: int = 4
    stages: int = 4
    floors: int = 3
    odd: float = 0.15
    """The chance of each oddity: dead workers, refused variants, contradictory and impossible profiles, zero or impossible rates, nothing at all."""
    load: float = 1.5
    """Demand, at most, as a multiple of what the cluster does at its fastest variants, roughly."""


def random_snapshot(rng: np.random.Generator, shape: Shape | None = None) -> Snapshot:
    """Well formed, whatever is in it: names are consistent and stages stand after those that they wait for."""
    shape = shape or Shape()
    types = {f"type{number}": str(rng.choice(ACCELERATORS)) for number in range(_between(rng, 1, shape.types))}
    tasks = [f"task{number}" for number in range(_between(rng, 1, shape.tasks))]
    variants = tuple(variant for task in tasks for variant in _variants(rng, shape, task, tuple(types)))
    workers = _workers(rng, shape, types, variants)
    scale = len(workers) * 15.0 * shape.load
    endpoints = tuple(
        _endpoint(rng, shape, f"endpoint{number}", variants, scale / shape.endpoints) for number in range(_between(rng, 1, shape.endpoints))
    )
    return Snapshot(
        at_ms=float(rng.integers(0, 1_000_000)),
        endpoints=() if _odd(rng, shape.odd / 4) else endpoints,
        variants=() if _odd(rng, shape.odd / 4) else variants,
        workers=() if _odd(rng, shape.odd / 4) else workers,
        plan=Plan(epoch=1, bindings=tuple(worker.binding for worker in workers if worker.binding is not None)),
        hop_ms=float(rng.choice([0.0, 2.0, 8.0])),
        lanes_per_class=int(rng.choice([64, 256, 1 if _odd(rng, shape.odd) else 64])),
    )


def large_snapshot(rng: np.random.Generator, *, workers: int = 1_000, endpoints: int = 50, variants: int = 8, load: float = 1.0) -> Snapshot:
    """Regular and of a given size: five types, endpoints of one stage each, floors that some variant meets."""
    types = {"cpu-small": ("cpu", 1.0), "cpu-large": ("cpu", 3.0), "gpu-a": ("gpu", 12.0), "gpu-b": ("gpu", 30.0), "vpu": ("vpu", 2.0)}
    names = tuple(types)
    ladders: list[Variant] = []
    for number in range(endpoints):
        slow_ms = float(rng.uniform(20.0, 60.0))
        for step in range(variants):
            costs = {name: _large_cost(slow_ms * 0.72**step / speed) for name, (_, speed) in types.items()}
            accuracy = round(0.95 - 0.03 * step - float(rng.uniform(0.0, 0.01)), 4)
            ladders.append(Variant(key=f"task{number}/v{step}", task=f"task{number}", accuracy=accuracy, costs=costs))
    fleet = tuple(
        Worker(name=f"worker{number:05}", accelerator=types[name][0], type=name, memory_bytes_max=2048 * MEGABYTE)
        for number in range(workers)
        for name in (names[number % len(names)],)
    )
    each = load * workers / endpoints * 400.0
    asked = tuple(
        EndpointDemand(
            endpoint=f"endpoint{number}",
            stages=(StageDemand(name="", task=f"task{number}"),),
            floors=tuple(
                FloorDemand(floor=floor, rate_rps=part * each, forecast_rps=part * each * float(rng.uniform(0.6, 1.4)))
                for floor, part in ((0.0, 0.5), (0.8, 0.3), (0.88, 0.2))
            ),
            timeout_ms=float(rng.choice([250.0, 500.0, 1000.0])),
        )
        for number in range(endpoints)
    )
    return Snapshot(at_ms=0.0, endpoints=asked, variants=tuple(ladders), workers=fleet, lanes_per_class=workers)


def _large_cost(single_ms: float) -> Cost:
    batches = {size: single_ms * (0.35 + 0.65 * size) for size in BATCHES}
    return Cost(latency={1: {size: Latency(p50, p50 * 1.1) for size, p50 in batches.items()}}, load_ms=500.0, memory_bytes=200 * MEGABYTE)


def _variants(rng: np.random.Generator, shape: Shape, task: str, types: tuple[str, ...]) -> list[Variant]:
    speeds = {name: float(rng.uniform(0.3, 4.0)) for name in types}
    found: list[Variant] = []
    for number in range(_between(rng, 1, shape.variants)):
        single_ms = float(rng.uniform(1.0, 80.0))
        accuracy = float(np.clip(0.6 + 0.1 * np.log10(single_ms) + rng.normal(0.0, 0.05), 0.0, 1.0))
        costs = {
            name: _cost(rng, shape, single_ms / speeds[name], name)
            for name in types
            if rng.random() < 0.8  # some types cannot host it
        }
        found.append(
            Variant(
                key=f"{task}/v{number}",
                task=task,
                accuracy=float("nan") if _odd(rng, shape.odd / 8) else round(accuracy, 4),
                batch_size_max=int(rng.choice([1, 8, 32])),
                costs=costs,
            )
        )
    return found


def _cost(rng: np.random.Generator, shape: Shape, single_ms: float, type_: str) -> Cost:
    del type_
    share = float(rng.uniform(0.1, 0.9))
    latency: dict[int, dict[int, Latency]] = {}
    for threads in (1, 2, 4)[: _between(rng, 1, 3)]:
        sizes = BATCHES[: _between(rng, 1, len(BATCHES))]
        p50s = [single_ms / threads**0.7 * (1.0 - share + share * size) for size in sizes]
        if _odd(rng, shape.odd) and len(p50s) > 1:
            p50s[-1] = p50s[0] / 2.0  # contradicts itself: faster at the largest size
        if _odd(rng, shape.odd / 4):
            p50s[int(rng.integers(len(p50s)))] = float(rng.choice(ODD))
        spread = float(rng.uniform(1.0, 1.5))
        latency[threads] = {size: Latency(p50, p50 * spread, 100) for size, p50 in zip(sizes, p50s, strict=True)}
    return Cost(latency=latency, load_ms=float(rng.uniform(10.0, 3_000.0)), memory_bytes=int(rng.integers(10, 900)) * MEGABYTE)


def _workers(rng: np.random.Generator, shape: Shape, types: dict[str, str], variants: tuple[Variant, ...]) -> tuple[Worker, ...]:
    workers: list[Worker] = []
    lanes: dict[str, int] = {}
    keys = [variant.key for variant in variants]
    for type_, accelerator in types.items():
        memory = int(rng.choice([0, 256, 1024, 4096])) * MEGABYTE
        threads = int(rng.choice([1, 2, 4]))
        for number in range(_between(rng, 0, shape.workers)):
            lane = lanes[accelerator] = lanes.get(accelerator, -1) + 1
            name = f"{type_}-{number}"
            hosted = (str(rng.choice(keys)),) if rng.random() < 0.6 else ()
            bound = Binding(worker=name, accelerator=accelerator, lane=lane, variants=hosted) if rng.random() < 0.7 else None
            workers.append(
                Worker(
                    name=name,
                    accelerator=accelerator,
                    type=type_,
                    memory_bytes_max=memory,
                    threads_max=threads,
                    state=LOST if _odd(rng, shape.odd) else READY,
                    binding=bound,
                    hosted=hosted if bound is not None else (),
                    refused={str(rng.choice(keys)): "out of memory"} if _odd(rng, shape.odd / 2) else {},
                )
            )
    return tuple(workers)


def _endpoint(rng: np.random.Generator, shape: Shape, name: str, variants: tuple[Variant, ...], rate_rps: float) -> EndpointDemand:
    tasks = sorted({variant.task for variant in variants})
    stages: list[StageDemand] = []
    for number in range(_between(rng, 1, shape.stages)):
        before = None if not stages else stages[-1] if rng.random() < 0.6 else stages[int(rng.integers(len(stages)))]
        rows = {ANY_VARIANT: float(rng.uniform(0.3, 3.0))} if rng.random() < 0.7 else {}
        if before is not None and rng.random() < 0.5:
            rows |= {variant.key: float(rng.uniform(0.3, 4.0)) for variant in variants if variant.task == before.task}
        stages.append(StageDemand(name=f"s{number}", task=str(rng.choice(tasks)), after=before.name if before else None, rows=rows))
    if len(stages) == 1:
        stages = [StageDemand(name="", task=stages[0].task)]
    measured = [
        MeasuredPath(
            {stage.name: str(rng.choice([v.key for v in variants if v.task == stage.task])) for stage in stages}, float(rng.uniform(0.3, 1.0))
        )
        for _ in range(int(rng.integers(0, 3)) if len(stages) > 1 else 0)
    ]
    return EndpointDemand(
        endpoint=name,
        stages=tuple(stages),
        floors=tuple(_floor(rng, shape, rate_rps) for _ in range(_between(rng, 0, shape.floors))),
        timeout_ms=0.0 if _odd(rng, shape.odd / 4) else float(rng.uniform(50.0, 2_000.0)),
        backlog=int(rng.integers(0, 100)),
        measured=tuple(measured),
    )


def _floor(rng: np.random.Generator, shape: Shape, rate_rps: float) -> FloorDemand:
    rate = rate_rps * float(rng.uniform(0.0, 1.0)) ** 2
    if _odd(rng, shape.odd):
        rate = float(rng.choice([0.0, -1.0, float("nan")]))
    return FloorDemand(floor=float(rng.choice([0.0, 0.0, 0.3, 0.5, 0.7, 0.95])), rate_rps=rate, forecast_rps=rate * 1.2)


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _odd(rng: np.random.Generator, chance: float) -> bool:
    return bool(rng.random() < chance)

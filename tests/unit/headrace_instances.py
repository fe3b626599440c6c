"""Small random snapshots for the `headrace` optimizer, from a seed."""

from __future__ import annotations

from random import Random

from scaler.optimizers.snapshot import Cost, EndpointDemand, FloorDemand, Snapshot, StageDemand, Variant, Worker
from schemas.plan import Binding
from schemas.profile import Latency

SPEEDS = {"cpu": 1.0, "gpu": 6.0, "vpu": 2.5}
MEMORY = 1_000


def instance(seed: int) -> Snapshot:
    """Up to 6 workers of up to 3 types, up to 3 endpoints (some of two stages), up to 4 variants each; often too little of something."""
    chance = Random(seed)
    types = chance.sample(list(SPEEDS), chance.randint(1, 3))
    tasks = [f"task{number}" for number in range(chance.randint(1, 3))]
    variants = tuple(variant for task in tasks for variant in _ladder(chance, task, types))
    memory = chance.choice((0, MEMORY, MEMORY, 2 * MEMORY))
    workers = tuple(_worker(chance, number, chance.choice(types), variants, memory) for number in range(chance.randint(1, 6)))
    endpoints = tuple(_endpoint(chance, number, tasks, len(workers)) for number in range(chance.randint(1, 3)))
    return Snapshot(at_ms=0.0, endpoints=endpoints, variants=variants, workers=workers)


def _ladder(chance: Random, task: str, types: list[str]) -> list[Variant]:
    first_ms = chance.uniform(2.0, 10.0)
    return [
        Variant(
            key=f"{task}/v{step}",
            task=task,
            accuracy=round(0.95 - 0.25 * 0.6**step, 4),
            costs={kind: _cost(chance, first_ms * 1.8**step / SPEEDS[kind]) for kind in types if chance.random() < 0.9},
        )
        for step in range(chance.randint(2, 4))
    ]


def _cost(chance: Random, one_ms: float) -> Cost:
    shared = chance.uniform(0.1, 0.6)
    batches = {size: one_ms * (shared + (1.0 - shared) * size) for size in (1, 2, 4, 8)}
    return Cost(
        latency={1: {size: Latency(time_ms, 1.2 * time_ms, 50) for size, time_ms in batches.items()}},
        load_ms=chance.uniform(0.0, 3_000.0),
        memory_bytes=chance.randint(200, 900),
    )


def _worker(chance: Random, number: int, kind: str, variants: tuple[Variant, ...], memory: int) -> Worker:
    able = [variant for variant in variants if kind in variant.costs]
    hosted: tuple[str, ...] = ()
    if able and chance.random() < 0.5:
        hosted = (chance.choice(able).key,)
    binding = Binding(worker=f"w{number}", accelerator=kind, lane=number, variants=hosted) if hosted else None
    return Worker(name=f"w{number}", accelerator=kind, type=kind, memory_bytes_max=memory, hosted=hosted, binding=binding)


def _endpoint(chance: Random, number: int, tasks: list[str], workers: int) -> EndpointDemand:
    stages = (StageDemand(name="", task=chance.choice(tasks)),)
    if len(tasks) > 1 and chance.random() < 0.4:
        first, second = chance.sample(tasks, 2)
        stages = (StageDemand(name="a", task=first), StageDemand(name="b", task=second, after="a", rows={"*": chance.uniform(0.5, 3.0)}))
    rate_rps = workers * chance.uniform(5.0, 150.0)
    asked = [(floor, rate_rps * chance.random()) for floor in chance.sample((0.0, 0.6, 0.7, 0.85, 0.9), chance.randint(1, 2))]
    floors = tuple(FloorDemand(floor=floor, rate_rps=0.8 * rate, forecast_rps=rate) for floor, rate in asked)
    return EndpointDemand(endpoint=f"endpoint{number}", stages=stages, floors=floors, timeout_ms=chance.choice((60.0, 150.0, 400.0)))

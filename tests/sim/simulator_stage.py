"""Scenarios small enough to reckon with by hand."""

from __future__ import annotations

from scaler.optimizers.snapshot import Cost, Variant
from scaler.simulator.scenario import Arrivals, Choice, Fault, Hop, Load, Scenario, WorkerGroup
from schemas.catalog import Catalog, Defaults, EndpointSpec, TaskSpec, VariantSpec, variant_key
from schemas.profile import Latency

LADDER = (("small", 0.80, 1.0), ("middle", 0.90, 4.0), ("large", 0.95, 20.0))
"""(name, accuracy, milliseconds of a row)"""
SIZES = (1, 2, 4, 8, 16, 32)


def variants(ladder: tuple[tuple[str, float, float], ...] = LADDER, *, worker_type: str = "cpu", tail: float = 1.0) -> tuple[Variant, ...]:
    """Batches cost half a row more for each further row; `tail`: p95 over p50."""
    found: list[Variant] = []
    for name, accuracy, row_ms in ladder:
        times = {rows: row_ms * (1.0 + 0.5 * (rows - 1)) for rows in SIZES}
        latency = {1: {rows: Latency(ms, ms * tail, 50) for rows, ms in times.items()}}
        cost = Cost(latency=latency, load_ms=100.0, memory_bytes=1_000)
        found.append(Variant(key=variant_key("task", name), task="task", accuracy=accuracy, batch_size_max=32, costs={worker_type: cost}))
    return tuple(found)


def catalog(ladder: tuple[tuple[str, float, float], ...] = LADDER, *, batch_size_max: int = 32) -> Catalog:
    specs = tuple(VariantSpec(name=name, file="f", sha256=name, accuracy=accuracy, batch_size_max=batch_size_max) for name, accuracy, _ in ladder)
    endpoint = EndpointSpec(name="shop", task="task", defaults=Defaults(timeout_ms=500))
    return Catalog({"task": TaskSpec(name="task", variants=specs)}, {"shop": endpoint})


def scenario(
    *, rate_rps: float = 200.0, workers: int = 2, duration_s: float = 5.0, faults: tuple[Fault, ...] = (), floors: tuple[float, ...] = (0.5, 0.9)
) -> Scenario:
    load = Load(
        endpoint="shop",
        arrivals=Arrivals(rate_rps=rate_rps),
        floors=tuple(Choice(floor) for floor in floors),
        timeouts_ms=(Choice(300.0), Choice(1_000.0)),
    )
    return Scenario(
        name="shop",
        catalog=catalog(),
        variants=variants(tail=1.2),
        workers=(WorkerGroup(type="cpu", count=workers),),
        loads=(load,),
        duration_s=duration_s,
        hop=Hop(p50_ms=1.0, p99_ms=4.0),
        faults=faults,
    )

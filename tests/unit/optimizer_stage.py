"""Small clusters for the tests of optimizers: variants given by (accuracy, rows/s), workers of a type or two, endpoints of a stage or more."""

from __future__ import annotations

from scaler.optimizers.optimizer import Limits
from scaler.optimizers.snapshot import Cost, EndpointDemand, FloorDemand, Snapshot, StageDemand, Variant, Worker
from schemas.profile import Latency


def flat(latency_ms, sizes=(1,)):
    """Latencies of a device that takes as long for each row."""
    return {size: Latency(latency_ms * size, latency_ms * size) for size in sizes}


def variant(name, accuracy, rates, *, task="t", memory=0, batch_size_max=1):
    """`rates`: rows/s by worker type; a row takes 1000 / rate ms, whatever the batch."""
    costs = {type_: Cost(latency={1: flat(1000.0 / rate)}, memory_bytes=memory) for type_, rate in rates.items()}
    return Variant(key=f"{task}/{name}", task=task, accuracy=accuracy, costs=costs, batch_size_max=batch_size_max)


def workers(count, type_="a", accelerator="cpu", **more):
    return tuple(Worker(name=f"{type_}{number:03}", accelerator=accelerator, type=type_, **more) for number in range(count))


def endpoint(name, *stages, rate=10.0, floors=None, timeout_ms=10_000.0, **more):
    """`stages`: tasks of a chain, or StageDemand."""
    built = []
    for number, stage in enumerate(stages):
        single = len(stages) == 1
        before = built[-1].name if built else None
        built.append(stage if isinstance(stage, StageDemand) else StageDemand(name="" if single else f"s{number}", task=stage, after=before))
    asked = tuple(FloorDemand(floor=floor, rate_rps=each, forecast_rps=each) for floor, each in (floors or {0.0: rate}).items())
    return EndpointDemand(endpoint=name, stages=tuple(built), floors=asked, timeout_ms=timeout_ms, **more)


def snapshot(variants, fleet, *endpoints, hop_ms=0.0, **more):
    return Snapshot(at_ms=0.0, endpoints=tuple(endpoints), variants=tuple(variants), workers=tuple(fleet), hop_ms=hop_ms, **more)


def ample(time_s=20.0, seed=1):
    """Time on a clock that stands."""
    return Limits(time_s=time_s, seed=seed, clock_s=lambda: 0.0)


def hosted(proposal):
    """How many workers host each set of variants."""
    counts = {}
    for binding in proposal.bindings:
        counts[binding.variants] = counts.get(binding.variants, 0) + 1
    return counts

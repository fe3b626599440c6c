"""From a proposal's bindings to bindings that need the fewest and cheapest loads: workers of one type are interchangeable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaler.optimizers.lanes import give_lanes
from scaler.optimizers.snapshot import READY, Snapshot, Variant, Worker
from scaler.policy.rebinding_transport import transport
from schemas.plan import Binding

FORBIDDEN = 1e5
"""Loads that a binding counts as, where the worker cannot host it."""


class Shape(NamedTuple):
    """What two bindings have in common that differ by worker and lane only."""

    variants: frozenset[str]
    batch_size_max: int
    threads: int
    clock_mhz: float | None


class Kind(NamedTuple):
    """What is alike of workers between which a binding can be exchanged freely."""

    held: frozenset[str]
    """Variants that need no load."""
    shape: Shape | None
    """Of its present binding."""
    refused: frozenset[str]
    memory_bytes_max: int
    threads_max: int


class Rebound(msgspec.Struct, frozen=True, kw_only=True):
    """The same bindings on other workers."""

    bindings: tuple[Binding, ...]
    """By worker; on each worker's own lane."""
    loads: int
    """Variants that have to be loaded, over all workers."""
    load_ms: float
    """Sum of their load times."""


def rebind(bindings: Sequence[Binding], snapshot: Snapshot) -> Rebound:
    """Exchange bindings between workers of one type so that least is to be loaded, in number and then in time.

    For each type a transportation problem between kinds of bindings and kinds of workers: exact up to a few thousand of either. Never more loads
    than the bindings as they come. Raises KeyError for a binding of a worker that the snapshot does not have.
    """
    workers = {worker.name: worker for worker in snapshot.workers}
    variants = {variant.key: variant for variant in snapshot.variants}
    by_type: dict[tuple[str, str], list[Binding]] = {}
    for binding in bindings:
        worker = workers[binding.worker]
        by_type.setdefault((worker.accelerator, worker.type), []).append(binding)
    ready: dict[tuple[str, str], list[Worker]] = {}
    for worker in snapshot.workers:
        if worker.state == READY:
            ready.setdefault((worker.accelerator, worker.type), []).append(worker)
    placed: list[tuple[Worker, Binding]] = []
    for place, of_type in by_type.items():
        costs = _Costs(place[1], variants)
        named = [workers[binding.worker] for binding in of_type]
        crew = {worker.name: worker for worker in (*ready.get(place, ()), *named)}
        placed += _exchange(of_type, named, [crew[name] for name in sorted(crew)], costs)
    return _rebound(placed, snapshot, variants)


def loads_of(binding: Binding, worker: Worker) -> tuple[str, ...]:
    """The variants of a binding that this worker would have to load."""
    return _missing(shape_of(binding), _kind(worker))


def shape_of(binding: Binding) -> Shape:
    """All of a binding but its worker and lane."""
    return Shape(frozenset(binding.variants), binding.batch_size_max, binding.threads, binding.clock_mhz)


class _Costs:
    """Loads and milliseconds, of one worker type."""

    def __init__(self, type_: str, variants: Mapping[str, Variant]) -> None:
        self._type, self._variants = type_, variants

    def load_ms(self, key: str) -> float:
        variant = self._variants.get(key)
        cost = variant.costs.get(self._type) if variant is not None else None
        return max(cost.load_ms, 0.0) if cost is not None and isfinite(cost.load_ms) else 0.0

    def memory_bytes(self, keys: Iterable[str]) -> int:
        found = 0
        for key in keys:
            variant = self._variants.get(key)
            cost = variant.costs.get(self._type) if variant is not None else None
            found += max(cost.memory_bytes, 0) if cost is not None else 0
        return found

    def of(self, shape: Shape, kind: Kind) -> tuple[float, float]:
        """(loads, milliseconds)."""
        missing = _missing(shape, kind)
        loads = float(len(missing))
        no_room = kind.memory_bytes_max and self.memory_bytes(shape.variants) > kind.memory_bytes_max
        if shape.variants & kind.refused or shape.threads > max(kind.threads_max, 1) or no_room:
            loads += FORBIDDEN
        return loads, sum(self.load_ms(key) for key in missing)

    def table(self, shapes: Sequence[Shape], kinds: Sequence[Kind]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`of` for each shape with each kind: thousands of both are millions of pairs."""
        keys = sorted(frozenset[str]().union(*(shape.variants for shape in shapes)))
        columns = {key: at for at, key in enumerate(keys)}
        wanted = _membership([shape.variants for shape in shapes], columns)
        lacking = 1.0 - _membership([kind.held for kind in kinds], columns)
        each_ms = np.array([self.load_ms(key) for key in keys])
        before = [kind.shape for kind in kinds]
        threads = np.array([[shape.threads] for shape in shapes])
        renewed = np.array([shape is not None for shape in before]) & (
            (threads != np.array([shape.threads if shape else 0 for shape in before]))
            | (np.array([[shape.batch_size_max] for shape in shapes]) > np.array([shape.batch_size_max if shape else 0 for shape in before]))
        )
        loads = np.where(renewed, wanted.sum(axis=1, keepdims=True), wanted @ lacking.T)
        load_ms = np.where(renewed, (wanted @ each_ms)[:, None], (wanted * each_ms) @ lacking.T)
        memory = np.array([[self.memory_bytes(shape.variants)] for shape in shapes])
        room = np.array([kind.memory_bytes_max for kind in kinds])
        refused = wanted @ _membership([kind.refused for kind in kinds], columns).T > 0.0
        cannot = refused | (threads > np.array([max(kind.threads_max, 1) for kind in kinds])) | ((room > 0) & (memory > room))
        return loads + FORBIDDEN * cannot.astype(np.float64), load_ms


def _membership(sets: Sequence[frozenset[str]], columns: Mapping[str, int]) -> NDArray[np.float64]:
    """One row for each set."""
    found = np.zeros((len(sets), len(columns)))
    for row, keys in enumerate(sets):
        for key in keys:
            if key in columns:
                found[row, columns[key]] = 1.0
    return found


def _missing(shape: Shape, kind: Kind) -> tuple[str, ...]:
    before = kind.shape
    if before is not None and (shape.threads != before.threads or shape.batch_size_max > before.batch_size_max):
        return tuple(sorted(shape.variants))  # a new session beside the old one
    return tuple(sorted(shape.variants - kind.held))


def _kind(worker: Worker) -> Kind:
    binding = worker.binding
    held = {*worker.hosted, *(binding.variants if binding is not None else ())} - worker.refused.keys()
    shape = shape_of(binding) if binding is not None else None
    return Kind(frozenset(held), shape, frozenset(worker.refused), worker.memory_bytes_max, max(worker.threads_max, 1))


def _exchange(bindings: list[Binding], named: list[Worker], crew: list[Worker], costs: _Costs) -> list[tuple[Worker, Binding]]:
    """Each binding with its worker; as the proposal has it where nothing is gained."""
    by_kind: dict[Kind, list[Worker]] = {}
    kinds: dict[str, Kind] = {}
    for worker in crew:
        kind = kinds[worker.name] = _kind(worker)
        by_kind.setdefault(kind, []).append(worker)
    by_shape: dict[Shape, list[Binding]] = {}
    for binding in bindings:
        by_shape.setdefault(shape_of(binding), []).append(binding)
    free = {kind: list(reversed(workers)) for kind, workers in by_kind.items()}
    left = {shape: list(reversed(same)) for shape, same in by_shape.items()}
    placed: list[tuple[Worker, Binding]] = []
    if len({(kind.refused, kind.memory_bytes_max, kind.threads_max) for kind in by_kind}) == 1:
        # Whoever hosts just what a binding wants keeps it. Loads obey the triangle inequality, so that no exchange could be better.
        for kind, workers in free.items():
            same = left.get(kind.shape) if kind.shape is not None and kind.held == kind.shape.variants else None
            while same and workers:
                placed.append((workers.pop(), same.pop()))
    shapes, targets = [shape for shape in left if left[shape]], [kind for kind in free if free[kind]]
    if shapes:
        placed += _transported(shapes, targets, left, free, costs)
    before = [costs.of(shape_of(binding), kinds[worker.name]) for binding, worker in zip(bindings, named, strict=True)]
    after = [costs.of(shape_of(binding), kinds[worker.name]) for worker, binding in placed]
    if _sum(after) > _sum(before):
        return list(zip(named, bindings, strict=True))
    return placed


def _transported(
    shapes: list[Shape], kinds: list[Kind], left: Mapping[Shape, list[Binding]], free: Mapping[Kind, list[Worker]], costs: _Costs
) -> list[tuple[Worker, Binding]]:
    loads, load_ms = costs.table(shapes, kinds)
    wanted = [len(left[shape]) for shape in shapes]
    # Time only tells apart what is equal in number: all of it together is worth less than one load.
    worth = 0.5 / (float(load_ms.max()) * sum(wanted) + 1.0)
    placed: list[tuple[Worker, Binding]] = []
    for row, column, count in transport(loads + worth * load_ms, wanted, [len(free[kind]) for kind in kinds]):
        placed += [(free[kinds[column]].pop(), left[shapes[row]].pop()) for _ in range(count)]
    return placed


def _sum(costs: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(loads for loads, _ in costs), round(sum(load_ms for _, load_ms in costs), 6)


def _rebound(placed: list[tuple[Worker, Binding]], snapshot: Snapshot, variants: Mapping[str, Variant]) -> Rebound:
    lanes = give_lanes([worker for worker, _ in placed], snapshot)
    bindings: list[Binding] = []
    loads, load_ms = 0, 0.0
    for worker, binding in placed:
        if worker.name not in lanes:
            continue
        bindings.append(msgspec.structs.replace(binding, worker=worker.name, lane=lanes[worker.name]))
        missing = loads_of(binding, worker)
        costs = _Costs(worker.type, variants)
        loads += len(missing)
        load_ms += sum(costs.load_ms(key) for key in missing)
    return Rebound(bindings=tuple(sorted(bindings, key=lambda binding: binding.worker)), loads=loads, load_ms=load_ms)

"""Clusters with what they host now and what they are to host, for property tests of rebinding; and the life of a step, moment by moment."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from scaler.optimizers.snapshot import READY, Cost, Snapshot, Variant, Worker
from scaler.policy.rebinding import loads_of
from scaler.policy.rebinding_steps import Rates
from schemas.plan import Binding, Plan
from schemas.profile import Latency

KEYS = ("a/1", "a/2", "a/3", "b/1", "b/2")
ACCURACY = {"a/1": 0.7, "a/2": 0.8, "a/3": 0.9, "b/1": 0.6, "b/2": 0.95}
MEMORY = {"a/1": 10, "a/2": 20, "a/3": 40, "b/1": 30, "b/2": 50}
LOAD_MS = {"a/1": 100.0, "a/2": 400.0, "a/3": 1_500.0, "b/1": 50.0, "b/2": 3_000.0}
ROW_MS = {"a/1": 1.0, "a/2": 3.0, "a/3": 9.0, "b/1": 2.0, "b/2": 20.0}
TYPES = ("small", "large")

some_keys = st.sets(st.sampled_from(KEYS), min_size=1, max_size=3).map(sorted).map(tuple)
forms = st.tuples(some_keys, st.sampled_from((8, 32)), st.sampled_from((1, 1, 2)))
workers_drawn = st.lists(st.tuples(st.sampled_from(TYPES), st.none() | forms, forms | st.none()), min_size=1, max_size=14)


def variants() -> tuple[Variant, ...]:
    def cost(key: str, type_: str) -> Cost:
        row_ms = ROW_MS[key] * (2.0 if type_ == "small" else 1.0)
        return Cost(latency={1: {1: Latency(row_ms, row_ms), 8: Latency(6.0 * row_ms, 6.0 * row_ms)}}, load_ms=LOAD_MS[key], memory_bytes=MEMORY[key])

    return tuple(Variant(key=key, task=key[0], accuracy=ACCURACY[key], costs={type_: cost(key, type_) for type_ in TYPES}) for key in KEYS)


def world(
    drawn: list[tuple[str, tuple[tuple[str, ...], int, int] | None, tuple[tuple[str, ...], int, int] | None]], memory: int
) -> tuple[Snapshot, list[Binding]]:
    """(snapshot, bindings proposed). Each worker: its type, what it has, what it is to have."""
    workers: list[Worker] = []
    proposed: list[Binding] = []
    for at, (type_, has, wanted) in enumerate(drawn):
        name = f"w{at:02}"
        present = None if has is None else Binding(worker=name, accelerator="cpu", lane=at, variants=has[0], batch_size_max=has[1], threads=has[2])
        workers.append(
            Worker(name=name, accelerator="cpu", type=type_, memory_bytes_max=memory, threads_max=2, binding=present, hosted=has[0] if has else ())
        )
        if wanted is not None:
            proposed.append(Binding(worker=name, accelerator="cpu", lane=at, variants=wanted[0], batch_size_max=wanted[1], threads=wanted[2]))
    bindings = tuple(worker.binding for worker in workers if worker.binding is not None)
    snapshot = Snapshot(at_ms=0.0, endpoints=(), variants=variants(), workers=tuple(workers), plan=Plan(epoch=1, bindings=bindings))
    return snapshot, proposed


class Cluster:
    """Follows plans as workers do: what a binding has is kept, what is missing gets ready at the end of the step, what it has not is given up."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.types = {worker.name: worker.type for worker in snapshot.workers}
        self.room = {worker.name: worker.memory_bytes_max for worker in snapshot.workers}
        self.workers = {worker.name: worker for worker in snapshot.workers if worker.state == READY}
        self._rates = Rates(snapshot.variants)

    def serving(self) -> np.ndarray:
        """Rows/s by level: of what is bound and ready."""
        total = np.zeros(len(self._rates.levels))
        for worker in self.workers.values():
            bound = worker.binding.variants if worker.binding is not None else ()
            total += self._rates.of(worker.type, frozenset(worker.hosted) & frozenset(bound))
        return total

    def hear(self, bindings: tuple[Binding, ...]) -> set[str]:
        """The plan is read; nothing is loaded yet. Returns who has to load."""
        wanted = {binding.worker: binding for binding in bindings}
        loading = {name for name, binding in wanted.items() if loads_of(binding, self.workers[name])}
        for name, worker in self.workers.items():
            self.workers[name] = _with(worker, worker.hosted, wanted.get(name))
        return loading

    def load(self) -> None:
        """Everything that is bound is ready, and nothing else."""
        for name, worker in self.workers.items():
            self.workers[name] = _with(worker, worker.binding.variants if worker.binding is not None else (), worker.binding)

    def fits(self) -> bool:
        return all(
            not self.room[name] or sum(MEMORY[key] for key in (worker.binding.variants if worker.binding else ())) <= self.room[name]
            for name, worker in self.workers.items()
        )


def _with(worker: Worker, hosted: tuple[str, ...], binding: Binding | None) -> Worker:
    return Worker(
        name=worker.name,
        accelerator=worker.accelerator,
        type=worker.type,
        memory_bytes_max=worker.memory_bytes_max,
        threads_max=worker.threads_max,
        hosted=hosted,
        binding=binding,
    )

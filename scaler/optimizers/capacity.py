"""What a cluster can do: which workers can host which variants, at which batch, threads and rate, within a latency budget.

Shared by all optimizers. A profile that contradicts itself is made monotone, one that cannot be is refused with its reason; neither ends a proposal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, isfinite

import msgspec

from scaler.optimizers.snapshot import READY, Cost, Snapshot, Variant, Worker
from schemas.profile import Latency, latency_at

NOT_FINITE, NOT_POSITIVE, UNMEASURED, BAD_ACCURACY = "not_finite", "not_positive", "unmeasured", "bad_accuracy"
Curve = dict[int, Latency]
"""By batch size: latencies that never fall as the batch grows."""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A variant (on one worker type, where `type` says so) that cannot be planned with, and why."""

    variant: str
    type: str = ""
    code: str
    """not_finite, not_positive, unmeasured, too_many_threads or bad_accuracy."""
    reason: str


class Crew(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that are interchangeable: of one type, with the same memory and threads, and with the same variants in quarantine."""

    type: str
    accelerator: str
    memory_bytes_max: int
    """0: no limit is kept."""
    threads_max: int
    refused: frozenset[str] = frozenset()
    workers: tuple[Worker, ...] = ()
    """In the order of their names."""

    @property
    def size(self) -> int:
        return len(self.workers)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker runs one variant within a latency budget."""

    variant: str
    type: str
    threads: int
    batch_size: int
    latency_ms: float
    """95th percentile of one batch."""
    rate_rps: float
    """Rows/s of a worker that does nothing else: 1000 x batch size / latency."""


class Capacity:
    """The cluster of one snapshot: its crews, the variants that can be planned with, and what they do there. Built once for each proposal."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.lanes_per_class = snapshot.lanes_per_class
        self.notes: list[str] = []
        """What of the cluster cannot be used, for `Explanation.bound_by`."""
        self.crews = _crews(snapshot, self.notes)
        refused: list[Refused] = []
        self.variants = _usable(snapshot.variants, refused)
        """By key: those whose accuracy is one."""
        self._curves = {
            (key, type_): curves
            for key, variant in self.variants.items()
            for type_, cost in variant.costs.items()
            if (curves := _curves(key, type_, cost, refused))
        }
        self.refused = tuple(refused)
        self.notes += [f"{entry.variant}{' on ' + entry.type if entry.type else ''}: {entry.reason}" for entry in refused]
        self._counts: dict[tuple[int, str], tuple[int, ...]] = {}
        self._singles: dict[str, float] = {}
        self.tasks = self._by_task()
        """The variants of each task that some crew can host, most accurate first."""
        self._operations: dict[tuple[str, str, tuple[int, int], float], Operation | None] = {}
        self.paths: dict[tuple[int, int, frozenset[str] | None], tuple[object, object]] = {}
        """Kept by `paths_of`, which is asked for the same paths more than once."""

    def can_host(self, crew: Crew, key: str) -> bool:
        """Whether a worker of the crew can host the variant, alone."""
        variant = self.variants.get(key)
        if variant is None or key in crew.refused or not self._thread_counts(crew, key):
            return False
        return not crew.memory_bytes_max or variant.costs[crew.type].memory_bytes <= crew.memory_bytes_max

    def memory_bytes(self, crew: Crew, keys: Iterable[str]) -> int:
        """What these variants take together on a worker of the crew."""
        return sum(max(self.variants[key].costs[crew.type].memory_bytes, 0) for key in set(keys))

    def fits(self, crew: Crew, keys: Iterable[str]) -> bool:
        """Whether a worker of the crew can host all of these at once."""
        together = set(keys)
        if not all(self.can_host(crew, key) for key in together):
            return False
        return not crew.memory_bytes_max or self.memory_bytes(crew, together) <= crew.memory_bytes_max

    def load_ms(self, crew: Crew, key: str) -> float:
        """Time to make the variant ready there; 0 where that is not known."""
        load_ms = self.variants[key].costs[crew.type].load_ms
        return load_ms if isfinite(load_ms) and load_ms > 0.0 else 0.0

    def threads_of(self, crew: Crew, key: str) -> tuple[int, ...]:
        """The thread counts that the variant was measured with and the crew has, ascending."""
        place = (id(crew), key)
        if place not in self._counts:
            counts = self._thread_counts(crew, key) if self.can_host(crew, key) else ()
            if not any(crew is own for own in self.crews):
                return counts
            self._counts[place] = counts
        return self._counts[place]

    def curve(self, crew: Crew, key: str, threads: int) -> Curve:
        """Latencies by batch size, never falling. Raises KeyError where the variant was not measured so."""
        return self._curves[key, crew.type][threads]

    def latency_ms(self, crew: Crew, key: str, rows: int, threads: int) -> float:
        """95th percentile of a batch of so many rows. Raises KeyError as `curve`."""
        return latency_at(self._curves[key, crew.type][threads], rows).p95_ms

    def operation(self, crew: Crew, key: str, budget_ms: float, threads: int | None = None, batch_size_max: int | None = None) -> Operation | None:
        """The highest rate within the budget: over all thread counts (fewest where they are equal), or at one; None where a single row takes longer.

        `batch_size_max`: not more than this, nor than the variant's own.

        Where latency grows no faster than the batch, as it should, the best batch is the largest that fits.
        """
        counts = self.threads_of(crew, key)
        if threads is not None:
            counts = (threads,) if threads in counts else ()
        if not counts:
            return None
        largest = self.variants[key].batch_size_max
        if batch_size_max is not None:
            largest = min(largest, batch_size_max)
        found = [operation for count in counts if (operation := self._operation(crew, key, budget_ms, (count, largest))) is not None]
        return max(found, key=lambda operation: operation.rate_rps, default=None)

    def operation_at(self, crew: Crew, key: str, batch_size: int, threads: int) -> Operation:
        """The operation at one batch size and thread count. Raises KeyError as `curve`."""
        latency_ms = self.latency_ms(crew, key, batch_size, threads)
        return Operation(
            variant=key, type=crew.type, threads=threads, batch_size=batch_size, latency_ms=latency_ms, rate_rps=1000.0 * batch_size / latency_ms
        )

    def fastest_ms(self, task: str) -> float:
        """95th percentile of one row at the fastest variant of the task on the fastest crew; infinite where nobody can host any."""
        return min((self.single_ms(variant.key) for variant in self.tasks.get(task, ())), default=inf)

    def single_ms(self, key: str) -> float:
        """95th percentile of one row of the variant on the fastest crew; infinite where nobody can host it."""
        if key not in self._singles:
            times = (self.latency_ms(crew, key, 1, count) for crew in self.crews for count in self.threads_of(crew, key))
            self._singles[key] = min(times, default=inf)
        return self._singles[key]

    def _thread_counts(self, crew: Crew, key: str) -> tuple[int, ...]:
        return tuple(sorted(count for count in self._curves.get((key, crew.type), ()) if count <= crew.threads_max))

    def _operation(self, crew: Crew, key: str, budget_ms: float, bounds: tuple[int, int]) -> Operation | None:
        threads, batch_size_max = bounds
        place = (key, crew.type, bounds, budget_ms)
        if place not in self._operations:
            batch_size = best_batch(self._curves[key, crew.type][threads], budget_ms, batch_size_max)
            self._operations[place] = self.operation_at(crew, key, batch_size, threads) if batch_size else None
        return self._operations[place]

    def _by_task(self) -> dict[str, tuple[Variant, ...]]:
        tasks: dict[str, list[Variant]] = {}
        for key in sorted(self.variants, key=lambda key: (-self.variants[key].accuracy, key)):
            if any(self.can_host(crew, key) for crew in self.crews):
                tasks.setdefault(self.variants[key].task, []).append(self.variants[key])
        return {task: tuple(variants) for task, variants in tasks.items()}


def crew_alone(worker: Worker) -> Crew:
    """A crew for questions about one worker."""
    return Crew(
        type=worker.type,
        accelerator=worker.accelerator,
        memory_bytes_max=max(worker.memory_bytes_max, 0),
        threads_max=max(worker.threads_max, 1),
        refused=frozenset(worker.refused),
        workers=(worker,),
    )


def best_batch(curve: Curve, budget_ms: float, batch_size_max: int) -> int:
    """The batch size of the highest rate whose 95th percentile is within the budget, the larger of equals; 0 where none is.

    Latency is linear between measured sizes, so the rate is best at one of them or at the largest batch that fits.
    """
    sizes = sorted(curve)
    longest = batch_size_max
    if len(sizes) > 1 and curve[sizes[-1]].p95_ms <= curve[sizes[-2]].p95_ms:
        # The last slope says that more rows cost nothing: that holds as far as it was measured, and no further.
        longest = min(longest, sizes[-1])
    if longest < 1 or not latency_at(curve, 1).p95_ms <= budget_ms:
        return 0
    fits, beyond = 1, longest + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if latency_at(curve, middle).p95_ms <= budget_ms:
            fits = middle
        else:
            beyond = middle
    candidates = [size for size in sizes if 1 <= size <= fits] + [fits]
    return max(candidates, key=lambda size: (size / latency_at(curve, size).p95_ms, size))


def monotone(batches: Mapping[int, Latency]) -> Curve:
    """The same latencies, but that none is lower than that of a smaller batch, and no p95 below its p50."""
    curve: Curve = {}
    p50_ms = p95_ms = 0.0
    for size in sorted(batches):
        latency = batches[size]
        p50_ms = max(p50_ms, latency.p50_ms)
        p95_ms = max(p95_ms, latency.p95_ms, p50_ms)
        curve[size] = Latency(p50_ms, p95_ms, latency.samples)
    return curve


def _curves(key: str, type_: str, cost: Cost, refused: list[Refused]) -> dict[int, Curve]:
    """By thread count; what cannot be used goes to `refused`."""
    curves: dict[int, Curve] = {}
    for threads, batches in sorted(cost.latency.items()):
        fault = _fault(threads, batches)
        if fault is None:
            curves[threads] = monotone(batches)
        else:
            refused.append(Refused(variant=key, type=type_, code=fault[0], reason=fault[1]))
    if not cost.latency:
        refused.append(Refused(variant=key, type=type_, code=UNMEASURED, reason="its profile has no latency"))
    return curves


def _fault(threads: int, batches: Mapping[int, Latency]) -> tuple[str, str] | None:
    if threads < 1 or not batches or min(batches) < 1:
        return UNMEASURED, f"its profile with {threads} threads has no usable batch size"
    for size, latency in sorted(batches.items()):
        if not (isfinite(latency.p50_ms) and isfinite(latency.p95_ms)):
            return NOT_FINITE, f"its latency at batch {size} with {threads} threads is not a finite number"
        if latency.p95_ms <= 0.0 or latency.p50_ms < 0.0:
            return NOT_POSITIVE, f"its latency at batch {size} with {threads} threads is not above zero"
    return None


def _usable(variants: Iterable[Variant], refused: list[Refused]) -> dict[str, Variant]:
    usable: dict[str, Variant] = {}
    for variant in sorted(variants, key=lambda variant: variant.key):
        if 0.0 <= variant.accuracy <= 1.0:
            usable[variant.key] = variant
        else:
            refused.append(Refused(variant=variant.key, code=BAD_ACCURACY, reason=f"its accuracy {variant.accuracy} is not between 0 and 1"))
    return usable


def _crews(snapshot: Snapshot, notes: list[str]) -> tuple[Crew, ...]:
    crews: dict[tuple[str, str, int, int, frozenset[str]], list[Worker]] = {}
    for worker in _with_lanes(snapshot, notes):
        key = (worker.type, worker.accelerator, max(worker.memory_bytes_max, 0), max(worker.threads_max, 1), frozenset(worker.refused))
        crews.setdefault(key, []).append(worker)
    return tuple(
        Crew(type=type_, accelerator=accelerator, memory_bytes_max=memory_bytes, threads_max=threads, refused=refused, workers=tuple(workers))
        for (type_, accelerator, memory_bytes, threads, refused), workers in sorted(
            crews.items(), key=lambda item: (*item[0][:4], sorted(item[0][4]))
        )
    )


def _with_lanes(snapshot: Snapshot, notes: list[str]) -> list[Worker]:
    """The workers that are ready, as many of each class as it has lanes: those that hold one first, then the larger ones."""
    classes: dict[str, list[Worker]] = {}
    for worker in {worker.name: worker for worker in snapshot.workers}.values():
        if worker.state == READY:
            classes.setdefault(worker.accelerator, []).append(worker)
    kept: list[Worker] = []
    for accelerator, workers in sorted(classes.items()):
        ordered = sorted(workers, key=lambda worker: (worker.binding is None, -worker.threads_max, -worker.memory_bytes_max, worker.name))
        if len(ordered) > snapshot.lanes_per_class:
            notes.append(f"class {accelerator} has {snapshot.lanes_per_class} lanes for {len(ordered)} workers")
        kept += ordered[: max(snapshot.lanes_per_class, 0)]
    return sorted(kept, key=lambda worker: worker.name)

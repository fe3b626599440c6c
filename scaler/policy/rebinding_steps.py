"""How to get from one set of bindings to the next so that what can be served never falls below what is needed meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, inf, isfinite

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaler.optimizers.snapshot import READY, Snapshot, Variant, Worker
from scaler.policy.rebinding import Shape, loads_of, shape_of
from schemas.plan import Binding

FORCED_PART = 8
"""Where nothing can change without a loss, one in so many of those that are left change at once: it has to end."""
STEPS_MAX = 24
ROUNDING = 1e-6
"""Rows/s that sums of rates may be wrong by."""
Level = tuple[str, float]
"""(task, accuracy): what answers the task at least that accurately."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of a sequence."""

    bindings: tuple[Binding, ...]
    awaited: frozenset[str] = frozenset()
    """Workers that load something in this step: the next one follows when they are ready."""
    forced: bool = False
    """Something is lost meanwhile: memory leaves no other way."""


class _Change(msgspec.Struct, frozen=True):
    """A worker with what it has and what it is to have."""

    worker: Worker
    before: Binding | None
    after: Binding


class Rates:
    """What a worker of a type answers of each level, hosting some variants and doing nothing else: additive over workers, a yardstick, no promise."""

    def __init__(self, variants: Iterable[Variant]) -> None:
        self._variants = {variant.key: variant for variant in variants}
        self._rates: dict[tuple[str, str], float] = {}
        self.levels: tuple[Level, ...] = tuple(sorted({(variant.task, variant.accuracy) for variant in self._variants.values()}))
        self._at = {level: at for at, level in enumerate(self.levels)}
        self._vectors: dict[tuple[str, frozenset[str]], NDArray[np.float64]] = {}

    def of(self, type_: str, keys: frozenset[str]) -> NDArray[np.float64]:
        """Rows/s by level."""
        found = self._vectors.get((type_, keys))
        if found is None:
            found = np.zeros(len(self.levels))
            for key in keys & self._variants.keys():
                variant = self._variants[key]
                for level, at in self._at.items():
                    if level[0] == variant.task and level[1] <= variant.accuracy:
                        found[at] = max(found[at], self._rate(key, type_))
            self._vectors[type_, keys] = found
        return found

    def _rate(self, key: str, type_: str) -> float:
        rate = self._rates.get((key, type_))
        if rate is None:
            cost = self._variants[key].costs.get(type_)
            rates = [
                1000.0 * size / latency.p95_ms
                for sizes in (cost.latency.values() if cost is not None else ())
                for size, latency in sizes.items()
                if isfinite(latency.p95_ms) and latency.p95_ms > 0.0
            ]
            rate = self._rates[key, type_] = max(rates, default=0.0)
        return rate


def steps(bindings: Sequence[Binding], snapshot: Snapshot, needed: Mapping[Level, float] | None = None) -> list[Step]:
    """Plans to publish one after the other, the last of them with just these bindings; at every moment of each, loads included, every level keeps

    the least of what was there before, what is there after, and what is `needed` (rows/s; None: all of it). New variants are loaded beside the old
    ones where memory allows; elsewhere workers change in waves. A step that cannot keep to that is `forced`.
    """
    return _Sequence(bindings, snapshot, needed).steps()


class _Sequence:
    def __init__(self, bindings: Sequence[Binding], snapshot: Snapshot, needed: Mapping[Level, float] | None) -> None:
        workers = {worker.name: worker for worker in snapshot.workers}
        self._final = tuple(sorted(bindings, key=lambda binding: binding.worker))
        self._rates = Rates(snapshot.variants)
        self._variants = {variant.key: variant for variant in snapshot.variants}
        self._changes = [_Change(workers[binding.worker], _before(workers[binding.worker]), binding) for binding in self._final]
        bound = {binding.worker for binding in self._final}
        self._leaving = [worker for worker in snapshot.workers if worker.name not in bound and worker.binding is not None and worker.state == READY]
        before = self._total([(change.worker, _held(change.worker)) for change in self._changes])
        before = before + self._total([(worker, _held(worker)) for worker in self._leaving])
        after = self._total([(change.worker, frozenset(change.after.variants)) for change in self._changes])
        wanted = np.array([inf if needed is None else needed.get(level, 0.0) for level in self._rates.levels])
        self._least = np.minimum(np.minimum(before, after), wanted)
        self._now = before

    def steps(self) -> list[Step]:
        """All at once where nothing is lost by that."""
        loading = [change for change in self._changes if loads_of(change.after, change.worker)]
        if not loading:
            return [Step(bindings=self._final)]
        beside = {change.worker.name for change in loading if self._fits_beside(change)}
        waiting: list[_Change] = [change for change in loading if change.worker.name not in beside]
        found: list[Step] = []
        current = self._start(beside)
        if beside:
            self._now = self._now + self._gain([change for change in loading if change.worker.name in beside], current)
            found.append(Step(bindings=self._listed(current), awaited=frozenset(beside & current.keys())))
        while waiting:
            wave, forced = self._wave(waiting, last=len(found) >= STEPS_MAX)
            if forced and (roomy := [change for change in wave if self._has_room(change)]):
                # A load in vain for what leaves is better than a gap.
                wave, forced = roomy, False
                going = {change.worker.name: _both(change) for change in wave}
            else:
                going = {change.worker.name: change.after for change in wave}
            names = frozenset(going)
            waiting = [change for change in waiting if change.worker.name not in names]
            current |= going
            self._now = self._now + self._gain(wave, current)
            found.append(Step(bindings=self._listed(current), awaited=names, forced=forced))
        if found[-1].bindings == self._final:
            return found
        return [*found, Step(bindings=self._final)]

    def _start(self, beside: set[str]) -> dict[str, Binding]:
        """What everybody has before the waves: present bindings, new variants beside the old ones, and what costs nothing to anybody."""
        current = {worker.name: worker.binding for worker in self._leaving if worker.binding is not None}
        for change in self._changes:
            name = change.worker.name
            if change.before is None:
                current[name] = change.after
            elif name in beside:
                current[name] = _both(change)
            else:
                # What it hosts anew it hosts already; what leaves, leaves in the end. The lane is the worker's in any case.
                current[name] = msgspec.structs.replace(change.before, lane=change.after.lane)
        # A lane that was another's is given away only when that one has left it.
        taken = {(binding.accelerator, binding.lane) for worker in self._leaving if (binding := worker.binding) is not None}
        gone = {worker.name for worker in self._leaving}
        return {name: binding for name, binding in current.items() if name in gone or (binding.accelerator, binding.lane) not in taken}

    def _listed(self, current: Mapping[str, Binding]) -> tuple[Binding, ...]:
        return tuple(current[name] for name in sorted(current))

    def _fits_beside(self, change: _Change) -> bool:
        """Whether old and new find room together. A worker without a binding has nothing to lose."""
        before, after = change.before, change.after
        if before is None:
            return True
        if _renewed(before, after) and set(before.variants) - set(after.variants):
            return False  # a new session for what is about to leave would be a load in vain
        return self._has_room(change)

    def _has_room(self, change: _Change) -> bool:
        """Whether memory holds both, a new session beside each that is renewed."""
        most = change.worker.memory_bytes_max
        if not most or change.before is None:
            return True
        keys = [*change.before.variants, *loads_of(_both(change), change.worker)]
        costs = [self._variants[key].costs.get(change.worker.type) for key in keys if key in self._variants]
        return sum(max(cost.memory_bytes, 0) for cost in costs if cost is not None) <= most

    def _wave(self, waiting: list[_Change], *, last: bool) -> tuple[list[_Change], bool]:
        """Workers that can change now, while the others still serve; at least one."""
        if last:
            return waiting, True
        groups: dict[tuple[str, frozenset[str], Shape, Shape | None], list[_Change]] = {}
        for change in waiting:
            before = shape_of(change.before) if change.before is not None else None
            groups.setdefault((change.worker.type, _held(change.worker), shape_of(change.after), before), []).append(change)
        room = self._now - self._least
        wave: list[_Change] = []
        for group in sorted(groups.values(), key=self._worth, reverse=True):
            loss = self._loss(group[0])
            lost = loss > 0.0
            count = len(group) if not lost.any() else min(len(group), floor(float(np.min((room[lost] + ROUNDING) / loss[lost]))))
            if count > 0:
                wave += group[:count]
                room = room - count * loss
        if wave:
            return wave, False
        least = min(groups.values(), key=lambda group: float(np.max(self._loss(group[0]) / np.maximum(self._now, ROUNDING))))
        return least[: max(ceil(len(least) / FORCED_PART), 1)], True

    def _loss(self, change: _Change) -> NDArray[np.float64]:
        """While it loads it serves what it had and keeps."""
        held = _held(change.worker)
        kept = held & frozenset(change.after.variants)
        return self._vector(change.worker, held) - self._vector(change.worker, kept)

    def _worth(self, group: list[_Change]) -> float:
        """Who adds most to what is short goes first."""
        change = group[0]
        gain = self._vector(change.worker, frozenset(change.after.variants)) - self._vector(change.worker, _held(change.worker))
        short = np.maximum(1.0 - (self._now - self._least) / np.maximum(self._least, ROUNDING), 0.0)
        return float(np.sum(gain * short))

    def _gain(self, changes: list[_Change], current: Mapping[str, Binding]) -> NDArray[np.float64]:
        total = np.zeros(len(self._rates.levels))
        for change in changes:
            binding = current.get(change.worker.name)
            if binding is not None:
                total += self._vector(change.worker, frozenset(binding.variants)) - self._vector(change.worker, _held(change.worker))
        return total

    def _vector(self, worker: Worker, keys: frozenset[str]) -> NDArray[np.float64]:
        return self._rates.of(worker.type, keys)

    def _total(self, hosting: Iterable[tuple[Worker, frozenset[str]]]) -> NDArray[np.float64]:
        total = np.zeros(len(self._rates.levels))
        for worker, keys in hosting:
            total += self._vector(worker, keys)
        return total


def _both(change: _Change) -> Binding:
    """New variants, with the old ones beside them."""
    before = change.before.variants if change.before is not None else ()
    keys = (*change.after.variants, *(key for key in before if key not in change.after.variants))
    return msgspec.structs.replace(change.after, variants=keys)


def _renewed(before: Binding, after: Binding) -> bool:
    """Sessions of other threads, or for larger batches."""
    return before.threads != after.threads or after.batch_size_max > before.batch_size_max


def _before(worker: Worker) -> Binding | None:
    """Its present binding; none where that is of a class that the worker is not of any more."""
    binding = worker.binding
    return binding if binding is not None and binding.accelerator == worker.accelerator else None


def _held(worker: Worker) -> frozenset[str]:
    """What dispatchers send it work for now: bound and ready."""
    return frozenset(worker.hosted) & frozenset(worker.binding.variants if worker.binding is not None else ())

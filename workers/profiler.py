"""Measures what variants cost on a device: rounds over all variants and batch sizes, repeated, so that noise shows as spread and not as a verdict.

Measuring one variant after the other would charge a noisy minute to one of them; here every round visits each (variant, batch size) once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.catalog import TensorSpec, VariantSpec
from schemas.datatypes import BYTES, DATATYPES
from schemas.profile import Latency, Profile
from workers.backend import Backend, Loaded
from workers.buckets import batch_buckets
from workers.host import host_name

Progress = Callable[[float, str], None]
"""Called with the part that is done (0..1) and what is being measured."""


class ProfileSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how finely to measure. Slow variants get two rounds, however long they take."""

    budget_ms: float = 1_500.0
    """Measuring time of one variant, loading not included."""
    batch_sizes: tuple[int, ...] = ()
    """Row counts; empty: powers of two up to the batch limit. Where the backend takes some sizes only, those of them."""
    batch_size_max: int = 32
    threads: int = 1
    rounds_max: int = 20
    calls_max: int = 100
    """Calls of one batch size in one round."""
    free_axis: int = 64
    """Length given to free axes besides the rows."""
    seed: int = 0


QUICK = ProfileSettings(budget_ms=250.0)
"""For a worker that starts without a stored profile: what it reports later corrects this."""
_WARM_UP_PART = 0.25
_SIZES_MIN = 2
_ROUNDS_AIM = 5
_ROUNDS_MIN = 2


class _Cell:
    """One batch size of one variant: its inputs, and every call's time by round."""

    def __init__(self, key: str, rows: int, inputs: dict[str, NDArray[Any]]) -> None:
        self.key = key
        self.rows = rows
        self.inputs = inputs
        self.rounds: list[list[float]] = []

    def latency(self) -> Latency:
        pooled = np.concatenate([np.asarray(calls) for calls in self.rounds])
        p50, p95 = (float(value) for value in np.percentile(pooled, (50, 95)))
        return Latency(round(p50, 4), round(p95, 4), len(pooled))

    def spread(self) -> float:
        medians = [float(np.median(calls)) for calls in self.rounds]
        return (max(medians) - min(medians)) / max(float(np.median(medians)), 1e-9)


class Profiler:
    """Profiles variants on one backend. Blocks: call it from a worker thread, and from the one that uses the backend."""

    def __init__(
        self,
        backend: Backend,
        settings: ProfileSettings | None = None,
        *,
        host: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        now_ms: Callable[[], float] = lambda: time.time() * 1e3,
    ) -> None:
        self._backend = backend
        self._settings = settings or ProfileSettings()
        self._host = host or host_name()
        self._clock = clock
        self._now_ms = now_ms

    def profile(self, key: str, spec: VariantSpec, file: Path, on_progress: Progress | None = None) -> Profile:
        """Load, measure and unload one variant. Raises ModelRefused, or what the runtime raises."""
        return self.profile_variants({key: (spec, file)}, on_progress)[0]

    def profile_variants(self, variants: Mapping[str, tuple[VariantSpec, Path]], on_progress: Progress | None = None) -> list[Profile]:
        """Load all, measure them interleaved, unload them."""
        loaded: dict[str, Loaded] = {}
        try:
            for key, (spec, file) in variants.items():
                _report(on_progress, 0.0, f"loading {key}")
                limit = min(self._settings.batch_size_max, spec.batch_size_max)
                loaded[key] = self._backend.load(key, spec, file, batch_size_max=limit, threads=self._settings.threads)
            return self.measure(loaded, on_progress)
        finally:
            for key in loaded:
                self._backend.unload(key)

    def measure(self, loaded: Mapping[str, Loaded], on_progress: Progress | None = None) -> list[Profile]:
        """Measure variants that the backend holds already; one profile each, in their order."""
        spent_ms = dict.fromkeys(loaded, 0.0)
        cells = {key: self._warm_up(key, variant, spent_ms, on_progress) for key, variant in loaded.items()}
        for number in range(self._settings.rounds_max):
            due = [key for key in loaded if number < _ROUNDS_MIN or spent_ms[key] < self._settings.budget_ms]
            if not due:
                break
            for key in due:
                _report(on_progress, self._done(spent_ms, number), f"measuring {key}")
                self._round(cells[key], spent_ms)
        _report(on_progress, 1.0, "measured")
        return [self._profile(key, variant, cells[key]) for key, variant in loaded.items()]

    def _warm_up(self, key: str, loaded: Loaded, spent_ms: dict[str, float], on_progress: Progress | None) -> list[_Cell]:
        """First calls are up to ten times slower. Large batches that would eat the budget are left to be extrapolated."""
        random = np.random.default_rng(self._settings.seed)
        cells: list[_Cell] = []
        for rows in self._sizes(loaded):
            if len(cells) >= _SIZES_MIN and spent_ms[key] > self._settings.budget_ms * _WARM_UP_PART:
                break
            _report(on_progress, 0.0, f"warming {key}")
            cell = _Cell(key, rows, self._inputs(loaded.spec.inputs, rows, random))
            cells.append(cell)
            started = self._clock()
            self._backend.infer(key, cell.inputs, rows)
            spent_ms[key] += (self._clock() - started) * 1e3
        return cells

    def _sizes(self, loaded: Loaded) -> tuple[int, ...]:
        limit = min(self._settings.batch_size_max, loaded.spec.batch_size_max)
        wanted = self._settings.batch_sizes or batch_buckets(limit)
        if not loaded.batch_sizes:
            return tuple(sorted(set(wanted)))
        return tuple(rows for rows in loaded.batch_sizes if rows in wanted) or loaded.batch_sizes

    def _inputs(self, specs: Iterable[TensorSpec], rows: int, random: np.random.Generator) -> dict[str, NDArray[Any]]:
        return {spec.name: example_tensor(spec, rows, random, free_axis=self._settings.free_axis) for spec in specs}

    def _round(self, cells: list[_Cell], spent_ms: dict[str, float]) -> None:
        slice_ms = self._settings.budget_ms * (1 - _WARM_UP_PART) / (_ROUNDS_AIM * len(cells))
        for cell in cells:
            calls: list[float] = []
            begun = self._clock()
            while not calls or (len(calls) < self._settings.calls_max and (self._clock() - begun) * 1e3 < slice_ms):
                started = self._clock()
                self._backend.infer(cell.key, cell.inputs, cell.rows)
                calls.append((self._clock() - started) * 1e3)
            cell.rounds.append(calls)
            spent_ms[cell.key] += (self._clock() - begun) * 1e3

    def _done(self, spent_ms: Mapping[str, float], number: int) -> float:
        by_time = sum(min(spent / self._settings.budget_ms, 1.0) for spent in spent_ms.values()) / len(spent_ms)
        return min(max(by_time, number / self._settings.rounds_max), 1.0)

    def _profile(self, key: str, loaded: Loaded, cells: list[_Cell]) -> Profile:
        return Profile(
            variant=key,
            sha256=loaded.spec.sha256,
            accelerator=self._backend.describe().accelerator,
            device=loaded.device,
            host=self._host,
            threads=self._settings.threads,
            batches={cell.rows: cell.latency() for cell in cells},
            load_ms=round(loaded.load_ms, 3),
            memory_bytes=loaded.memory_bytes,
            spread=round(max(cell.spread() for cell in cells), 3),
            measured_ms=int(self._now_ms()),
        )


def profile_variants(
    backend: Backend,
    variants: Mapping[str, tuple[VariantSpec, Path]],
    settings: ProfileSettings | None = None,
    on_progress: Progress | None = None,
) -> list[Profile]:
    """What `headrace profile` does: all variants by key, measured interleaved on one device."""
    return Profiler(backend, settings).profile_variants(variants, on_progress)


def example_tensor(spec: TensorSpec, rows: int, random: np.random.Generator, *, free_axis: int) -> NDArray[Any]:
    """A tensor that a request could carry: random in its datatype's range (floats 0..1), empty strings for BYTES."""
    shape = (rows, *(free_axis if axis == -1 else axis for axis in spec.shape[1:]))
    datatype = DATATYPES[spec.datatype]
    if datatype is BYTES:
        return np.full(shape, b"", dtype=object)
    if datatype.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(datatype.dtype)
    if datatype.dtype.kind == "f":
        return random.random(shape).astype(datatype.dtype)
    # Integers are often indices into a table: small values are in range for most of them, pixels are the exception.
    return random.integers(0, 256 if datatype.dtype.itemsize == 1 and datatype.dtype.kind == "u" else 2, shape).astype(datatype.dtype)


def _report(on_progress: Progress | None, done: float, what: str) -> None:
    if on_progress is not None:
        on_progress(done, what)

"""Splits one ONNX model into parts that are served as stages: at given tensors, or where measuring says that the parts cost about the same.

The chained parts are compared with the whole on random inputs before anything is handed out. Blocks: it measures on the backend that it is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from schemas.catalog import TensorSpec, VariantSpec
from schemas.datatypes import Array
from schemas.errors import ModelRefused
from schemas.profile import Profile, latency_at
from workers.backend import Backend
from workers.onnx_cutting import Cut, CuttableModel, tensor_specs
from workers.onnx_files import parse_model, read_file
from workers.policy.splitting import choose_cuts, moves_towards
from workers.profiler import Profiler, ProfileSettings, Progress, example_tensor

TOLERANCE = 1e-5
PARTS_MAX = 16
_PLACES_MAX = 24
_CROSSING_MAX = 4
_CHECKED_ROWS = (1, 2, 5)
_WHOLE = "whole"
_MOVES_MAX = 8
_WORTH_MOVING = 0.97


class SplitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a split is measured."""

    rows: int = 1
    """Batch size that the parts' latencies are compared at."""
    threads: int = 1
    budget_ms: float = 300.0
    """Measuring time of each place, and of each part in the end."""
    crossing_max: int = _CROSSING_MAX
    seed: int = 0


class ModelPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part: a model of its own. `sources` says which part (from 1) computes each input, 0 for the request."""

    data: bytes
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sources: dict[str, int]
    latency_ms: float
    share: float
    """Of the sum over all parts."""


class SplitModel(msgspec.Struct, frozen=True, kw_only=True):
    """The parts in their order, with what was measured."""

    parts: tuple[ModelPart, ...]
    cuts: tuple[tuple[str, ...], ...]
    """Tensors that cross each cut, as the file calls them."""
    carried_row_bytes: tuple[int, ...]
    whole_ms: float
    difference: float
    """Largest difference between the chained parts and the whole, relative to the larger of 1 and the value."""
    device: str


class ModelSplitter:
    """Splits one model file on one backend."""

    def __init__(self, backend: Backend, settings: SplitSettings | None = None, on_progress: Progress | None = None) -> None:
        self._backend = backend
        self._settings = settings or SplitSettings()
        self._on_progress = on_progress

    def split_at(self, file: Path, places: Sequence[Sequence[str]]) -> SplitModel:
        """Cut at each group of tensors, in their order. Raises ModelRefused for what cannot be cut there, or not without changing the result."""
        whole, model = _read(file)
        cuts: list[Cut] = []
        for tensors in places:
            cuts.append(model.cut_at(tensors, cuts[-1] if cuts else None))
        with TemporaryDirectory() as folder:
            bench = _Bench(self._backend, Path(folder), whole, model, self._settings)
            difference = bench.difference(cuts)
            if difference > TOLERANCE:
                raise ModelRefused(f"{file.name}: the parts differ from the whole by {difference:.2g}: {self._advice(model, cuts)}")
            return self._measured(bench, model, cuts, difference)

    def split_evenly(self, file: Path, parts: int) -> SplitModel:
        """Cut into so many parts of about equal measured latency. Raises ModelRefused where there are not enough places."""
        whole, model = _read(file)
        places = _thinned(_preferred(model.cuts(self._settings.crossing_max), parts))
        if not 2 <= parts <= PARTS_MAX:
            raise ModelRefused(f"{parts} parts: 2 to {PARTS_MAX} are possible")
        if len(places) < parts - 1:
            raise ModelRefused(
                f"{file.name}: {parts} parts need {parts - 1} cuts, there are {len(places)} where at most {_CROSSING_MAX} tensors cross"
            )
        with TemporaryDirectory() as folder:
            bench = _Bench(self._backend, Path(folder), whole, model, self._settings)
            costs = bench.prefix_costs(places, self._on_progress)
            while len(places) >= parts - 1:
                chosen = choose_cuts([costs[place.tensors] for place in places], [place.row_bytes for place in places], costs[(_WHOLE,)], parts)
                cuts = [places[at] for at in chosen]
                if bench.difference(cuts) <= TOLERANCE:
                    cuts = [places[at] for at in self._refined(bench, places, chosen)]
                    return self._measured(bench, model, cuts, bench.difference(cuts))
                bad = [cut for cut in cuts if bench.difference([cut]) > TOLERANCE] or cuts
                places = [place for place in places if place not in bad]
        raise ModelRefused(f"{file.name}: cut anywhere, its parts differ from the whole by more than {TOLERANCE:g}")

    def _refined(self, bench: _Bench, places: Sequence[Cut], chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Moves cuts towards the slowest part while that makes it a smaller share: a prefix does not tell what is no longer fused across a cut."""

        def slowest(cuts: tuple[int, ...]) -> tuple[float, int]:
            costs = bench.part_costs([places[at] for at in cuts], self._on_progress)[1:]
            return max(costs) / sum(costs), costs.index(max(costs))

        tried = {chosen}
        share, number = slowest(chosen)
        for _ in range(_MOVES_MAX):
            moves = [move for move in moves_towards(chosen, number, len(places)) if move not in tried]
            if not moves:
                break
            tried.update(moves)
            measured = [(*slowest(move), move) for move in moves if bench.difference([places[at] for at in move]) <= TOLERANCE]
            if not measured or min(measured)[0] > share * _WORTH_MOVING:
                break
            share, number, chosen = min(measured)
        return chosen

    def _measured(self, bench: _Bench, model: CuttableModel, cuts: Sequence[Cut], difference: float) -> SplitModel:
        costs = bench.part_costs(cuts, self._on_progress)
        made: dict[str, int] = {}
        parts: list[ModelPart] = []
        for number, (data, cost) in enumerate(zip(bench.data(cuts), costs[1:], strict=True), start=1):
            inputs, outputs = tensor_specs(parse_model(data, f"part {number}"), f"part {number}")
            parts.append(
                ModelPart(
                    data=data,
                    sha256=hashlib.sha256(data).hexdigest(),
                    inputs=inputs,
                    outputs=outputs,
                    sources={tensor.name: made.get(tensor.name, 0) for tensor in inputs},
                    latency_ms=cost,
                    share=cost / sum(costs[1:]),
                )
            )
            made |= {tensor.name: number for tensor in outputs}
        return SplitModel(
            parts=tuple(parts),
            cuts=tuple(tuple(model.original(tensor) for tensor in cut.tensors) for cut in cuts),
            carried_row_bytes=tuple(cut.row_bytes for cut in cuts),
            whole_ms=costs[0],
            difference=difference,
            device=self._backend.describe().name,
        )

    def _advice(self, model: CuttableModel, cuts: Sequence[Cut]) -> str:
        if any(not cut.quantised for cut in cuts) and any(place.quantised for place in model.cuts(self._settings.crossing_max)):
            return "a quantised model is best cut behind a QuantizeLinear, where the runtime fuses nothing across"
        return "the runtime fuses operators across the cut: choose another"


class _Bench:
    """Loads wholes, prefixes and parts on the backend, from a folder that is thrown away."""

    def __init__(self, backend: Backend, folder: Path, whole: bytes, model: CuttableModel, settings: SplitSettings) -> None:
        self._backend, self._folder, self._model, self._settings = backend, folder, model, settings
        fixed = model.signature.inputs[0].shape[0]
        self._rows = settings.rows if fixed == -1 else fixed
        self._checked_rows = _CHECKED_ROWS if fixed == -1 else (fixed,)
        self._whole = self._variant(_WHOLE, whole)
        self._answers = self._whole_answers()

    def data(self, cuts: Sequence[Cut]) -> list[bytes]:
        """The parts' files."""
        return [part.SerializeToString(deterministic=True) for part in self._model.parts(cuts)]

    def prefix_costs(self, places: Sequence[Cut], on_progress: Progress | None) -> dict[tuple[str, ...], float]:
        """p50 in ms of the model up to each place, and of the whole."""
        variants = {
            ",".join(place.tensors): self._variant(f"prefix-{number}", self._model.prefix(place).SerializeToString())
            for number, place in enumerate(places)
        }
        costs = self._costs({**variants, _WHOLE: self._whole}, on_progress)
        return dict(zip([*(place.tensors for place in places), (_WHOLE,)], costs, strict=True))

    def part_costs(self, cuts: Sequence[Cut], on_progress: Progress | None) -> list[float]:
        """p50 in ms of the whole and of each part."""
        parts = {f"part {number}": self._variant(f"part-{number}", data) for number, data in enumerate(self.data(cuts), start=1)}
        return self._costs({_WHOLE: self._whole, **parts}, on_progress)

    def difference(self, cuts: Sequence[Cut]) -> float:
        """The largest difference of the chained parts from the whole; infinite where shapes, datatypes or anything but floats differ."""
        parts = [(f"check-{number}", *self._variant(f"check-{number}", data)) for number, data in enumerate(self.data(cuts))]
        try:
            for key, spec, path in parts:
                self._backend.load(key, spec, path, batch_size_max=self._batch_size_max, threads=self._settings.threads)
            return max(self._chained(parts, rows) for rows in self._checked_rows)
        finally:
            for key, _, _ in parts:
                self._backend.unload(key)

    def _chained(self, parts: Sequence[tuple[str, VariantSpec, Path]], rows: int) -> float:
        inputs, expected = self._answers[rows]
        known: dict[str, Array] = dict(inputs)
        for key, spec, _ in parts:
            known |= dict(self._backend.infer(key, {tensor.name: known[tensor.name] for tensor in spec.inputs}, rows))
        return max(_difference(known[name], tensor) for name, tensor in expected.items())

    @property
    def _batch_size_max(self) -> int:
        return max(self._rows, *self._checked_rows)

    def _variant(self, name: str, data: bytes) -> tuple[VariantSpec, Path]:
        path = self._folder / f"{name}.onnx"
        path.write_bytes(data)
        inputs, outputs = tensor_specs(parse_model(data, name), f"{self._model.name} ({name})")
        return VariantSpec(name=name, file=path.name, accuracy=0.0, inputs=inputs, outputs=outputs, batch_size_max=self._batch_size_max), path

    def _whole_answers(self) -> dict[int, tuple[Mapping[str, Array], Mapping[str, Array]]]:
        spec, path = self._whole
        random = np.random.default_rng(self._settings.seed)
        found: dict[int, tuple[Mapping[str, Array], Mapping[str, Array]]] = {}
        self._backend.load(_WHOLE, spec, path, batch_size_max=self._batch_size_max, threads=self._settings.threads)
        try:
            for rows in self._checked_rows:
                inputs = {tensor.name: example_tensor(tensor, rows, random, free_axis=ProfileSettings().free_axis) for tensor in spec.inputs}
                answer = self._backend.infer(_WHOLE, inputs, rows)
                found[rows] = inputs, {name: np.array(tensor) for name, tensor in answer.items()}
        finally:
            self._backend.unload(_WHOLE)
        return found

    def _costs(self, variants: Mapping[str, tuple[VariantSpec, Path]], on_progress: Progress | None) -> list[float]:
        settings = ProfileSettings(
            budget_ms=self._settings.budget_ms, batch_sizes=(self._rows,), batch_size_max=self._batch_size_max, threads=self._settings.threads
        )
        profiles: list[Profile] = Profiler(self._backend, settings).profile_variants(variants, on_progress)
        return [latency_at(profile.batches, self._rows).p50_ms for profile in profiles]


def _read(file: Path) -> tuple[bytes, CuttableModel]:
    data = read_file(file)
    return data, CuttableModel(parse_model(data, file.name), file.name)


def _preferred(places: list[Cut], parts: int) -> list[Cut]:
    """Of a quantised model the places between its quantised operators, where there are enough of them."""
    quantised = [place for place in places if place.quantised]
    return quantised if len(quantised) >= parts - 1 else places


def _thinned(places: list[Cut]) -> list[Cut]:
    """At most _PLACES_MAX places, spread over the model, each the one that carries least of its neighbours."""
    groups = min(len(places), _PLACES_MAX)
    bounds = [len(places) * number // groups for number in range(groups + 1)] if groups else [0]
    return [min(places[start:end], key=lambda place: place.row_bytes) for start, end in pairwise(bounds)]


def _difference(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    wide, right = found.astype(np.float64), expected.astype(np.float64)
    apart = np.where((wide == right) | (np.isnan(wide) & np.isnan(right)), 0.0, np.abs(wide - right) / np.maximum(1.0, np.abs(right)))
    worst = float(apart.max(initial=0.0))
    return float("inf") if np.isnan(worst) else worst

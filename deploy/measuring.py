"""Measures the end-to-end accuracy of an endpoint's graph on labelled data, for every combination of its model stages' variants.

Everything is computed here, through the workers' backends and the dispatcher's own graph code: no Kafka, no deadline, one request for each row.
What a variant gives for an input is computed once, however many combinations share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np

from graphs.advance import advance
from graphs.commands import Fail, Finish, RunStage
from graphs.compiled import Graph, compile_graph
from graphs.events import StageDone, StageFailed, Started
from graphs.run import Run
from graphs.tensor import Tensor
from schemas.catalog import TaskSpec, VariantSpec, split_variant_key
from schemas.datatypes import Array, datatype_of, to_raw
from schemas.errors import BackendError, CatalogError, HeadraceError
from schemas.graph import GraphSpec
from schemas.terminal import PathStep
from workers.backend import Backend, Loaded
from workers.cpu.python_tasks.loading import NotLoadable, load_function

COMBINATIONS_MAX = 1_000
KEPT_BYTES_MAX = 512 << 20
"""Of computed outputs that other combinations may use again."""
Progress = Callable[[float, str], None]
_parameters = msgspec.msgpack.Decoder(dict[str, Any]).decode


class MeasuredCombination(msgspec.Struct, frozen=True, kw_only=True):
    """What one combination did on the data."""

    variants: dict[str, str]
    """Model stage -> the variant's name."""
    accuracy: float
    declared: float
    """Mean of what the answers would have said without a measured table."""
    requests: int
    failed: int
    """These count as wrong."""
    failure: str = ""
    """Why the first of them failed."""

    @property
    def key(self) -> str:
        """As in `measured` of the graph."""
        return ",".join(f"{stage}={variant}" for stage, variant in sorted(self.variants.items()))


class LabelledData(msgspec.Struct, frozen=True):
    """Tensors of the requests by name, and labels; one request for each row."""

    inputs: dict[str, Array]
    labels: Array


class StageComputer:
    """Computes stages on one backend (Python tasks in this process), and remembers what came out."""

    def __init__(self, backend: Backend, tasks: Mapping[str, TaskSpec], models: Mapping[str, Path], *, threads: int = 1) -> None:
        self._backend, self._tasks, self._models, self._threads = backend, tasks, models, threads
        self._loaded: dict[str, Loaded] = {}
        self._kept: dict[bytes, dict[str, Array]] = {}
        self._kept_bytes = 0

    def compute(self, key: str, inputs: dict[str, Array], parameters: bytes) -> dict[str, Array]:
        """Outputs of a variant (by its key). Raises BackendError."""
        digest = _digest(key, inputs, parameters)
        kept = self._kept.get(digest)
        if kept is not None:
            return kept
        spec = self.spec(key)
        outputs = self._call(spec, inputs, parameters) if spec.call else self._infer(key, spec, inputs)
        size = sum(array.nbytes for array in outputs.values())
        if self._kept_bytes + size <= KEPT_BYTES_MAX:
            self._kept[digest] = outputs
            self._kept_bytes += size
        return outputs

    def spec(self, key: str) -> VariantSpec:
        """Raises CatalogError for a variant that is not in the files."""
        task, name = split_variant_key(key)
        found = self._tasks[task].variant(name) if task in self._tasks else None
        if found is None:
            raise CatalogError(f"variant {key!r} is not in these files: name the file of its task too")
        return found

    def close(self) -> None:
        """Free the models."""
        for key in self._loaded:
            self._backend.unload(key)
        self._loaded.clear()

    def _call(self, spec: VariantSpec, inputs: dict[str, Array], parameters: bytes) -> dict[str, Array]:
        try:
            function = load_function(spec.call)
        except NotLoadable as error:
            raise CatalogError(str(error)) from None
        try:
            returned: Any = function(dict(inputs), _parameters(parameters) if parameters else {})
            return {str(name): np.asarray(array) for name, array in returned.items()}
        except Exception as error:  # it is somebody's code: a request that it cannot compute has failed
            raise BackendError(f"{spec.call} raised {type(error).__name__}: {error}") from error

    def _infer(self, key: str, spec: VariantSpec, inputs: dict[str, Array]) -> dict[str, Array]:
        loaded = self._loaded.get(key)
        if loaded is None:
            file = self._models[spec.sha256]
            loaded = self._backend.load(key, spec, file, batch_size_max=spec.batch_size_max, threads=self._threads)
            self._loaded[key] = loaded
        rows = len(next(iter(inputs.values())))
        most = loaded.batch_sizes[-1] if loaded.batch_sizes else spec.batch_size_max
        parts = [self._batch(key, loaded, inputs, start, min(start + most, rows)) for start in range(0, rows, most)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _batch(self, key: str, loaded: Loaded, inputs: dict[str, Array], start: int, end: int) -> dict[str, Array]:
        rows = end - start
        size = next((size for size in loaded.batch_sizes if size >= rows), rows)
        batch = {name: np.concatenate([array[start:end], np.repeat(array[end - 1 : end], size - rows, axis=0)]) for name, array in inputs.items()}
        try:
            outputs = self._backend.infer(key, batch, size)
        except Exception as error:  # runtimes raise what they like
            raise BackendError(f"{key}: {type(error).__name__}: {error}") from error
        return {name: np.array(array[:rows]) for name, array in outputs.items()}


class AccuracyMeasurer:
    """Runs one graph over labelled data."""

    def __init__(self, graph: GraphSpec, tasks: Mapping[str, TaskSpec], computer: StageComputer) -> None:
        """Raises GraphInvalid."""
        self._graph: Graph = compile_graph(msgspec.structs.replace(graph, measured={}), tasks)
        self._computer = computer
        self._stages = {path: stage for path, stage in sorted(self._graph.stages.items()) if stage.model and not stage.shadow}

    def combinations(self, only: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, str]]:
        """Every choice of variants (names) for the model stages; `only` narrows stages to some of their variants. Raises CatalogError."""
        chosen = {path: [split_variant_key(key)[1] for key in stage.variants] for path, stage in self._stages.items()}
        for path, names in (only or {}).items():
            if path not in chosen:
                raise CatalogError(f"the graph has no model stage {path!r}: it has {', '.join(chosen)}")
            unknown = [name for name in names if name not in chosen[path]]
            if unknown:
                raise CatalogError(f"stage {path!r} has no variant {unknown[0]!r}: it has {', '.join(chosen[path])}")
            chosen[path] = list(names)
        count = math.prod(len(names) for names in chosen.values())
        if count > COMBINATIONS_MAX:
            raise CatalogError(
                f"{count} combinations, at most {COMBINATIONS_MAX}: narrow stages with --only STAGE=VARIANT, or by `variants` in the graph"
            )
        return [dict(zip(chosen, choice, strict=True)) for choice in product(*chosen.values())]

    def measure(self, data: LabelledData, combinations: Sequence[dict[str, str]], on_progress: Progress | None = None) -> list[MeasuredCombination]:
        """Row by row, all combinations of a row one after the other."""
        tallies = [_Tally(variants) for variants in combinations]
        for at, (inputs, label) in enumerate(_requests(data)):
            if on_progress is not None:
                on_progress(at / len(data.labels), f"request {at + 1} of {len(data.labels)}")
            for tally in tallies:
                self._answer(tally, at, inputs, label)
        if on_progress is not None:
            on_progress(1.0, "measured")
        return [tally.result() for tally in tallies]

    def _answer(self, tally: _Tally, at: int, inputs: dict[str, Tensor], label: Array) -> None:
        tally.requests += 1
        ended = self._run(str(at), inputs, tally.variants)
        if isinstance(ended, Finish):
            tally.right += agrees(ended.tensors[0].values(), label)
            tally.declared += ended.accuracy
        else:
            tally.failed += 1
            tally.failure = tally.failure or f"{ended.stage}: {ended.message}"

    def _run(self, request_id: str, inputs: dict[str, Tensor], variants: Mapping[str, str]) -> Finish | Fail:
        """One request to its end; shadows do not run."""
        run = Run(self._graph, request_id, "", 0.0, math.inf)
        waiting = list(advance(run, Started({}, inputs), 0.0))
        while waiting:
            command = waiting.pop(0)
            if isinstance(command, Finish | Fail):
                return command
            if isinstance(command, RunStage) and not command.shadow:
                waiting.extend(advance(run, self._stage(command, inputs, variants), 0.0))
        raise HeadraceError(f"request {request_id}: the graph came to no end")

    def _stage(self, command: RunStage, request: Mapping[str, Tensor], variants: Mapping[str, str]) -> StageDone | StageFailed:
        stage = command.stage
        wanted = variants.get(stage.path)
        key = next((key for key in stage.variants if split_variant_key(key)[1] == wanted), stage.variants[0])
        missing = [name for name in command.request_inputs.values() if name not in request]
        if missing:
            raise CatalogError(f"stage {stage.path!r} needs the request's tensor {missing[0]!r}: the data has {', '.join(request)}")
        inputs = {name: tensor.values() for name, tensor in command.tensors.items()}
        inputs |= {name: request[tensor].values() for name, tensor in command.request_inputs.items()}
        try:
            outputs = self._computer.compute(key, inputs, stage.parameters)
        except BackendError as error:
            return StageFailed(command.instance, error.code, str(error))
        accuracy = self._computer.spec(key).accuracy if stage.model else 1.0
        step = PathStep(stage=stage.path, variant=key, accuracy=accuracy, accelerator="", device="", queued_ms=0, computed_ms=0, batch_size=1)
        tensors = {name: Tensor.of(name, array) for name, array in outputs.items()}
        return StageDone(command.instance, tensors, key, accuracy, step)


class _Tally:
    def __init__(self, variants: dict[str, str]) -> None:
        self.variants = variants
        self.requests = self.right = self.failed = 0
        self.declared = 0.0
        self.failure = ""

    def result(self) -> MeasuredCombination:
        answered = self.requests - self.failed
        return MeasuredCombination(
            variants=self.variants,
            accuracy=self.right / self.requests if self.requests else 0.0,
            declared=self.declared / answered if answered else 0.0,
            requests=self.requests,
            failed=self.failed,
            failure=self.failure,
        )


def agrees(answer: Array, label: Array) -> bool:
    """Whether the argmax of scores (over the last axis), or the value of anything else, is the label."""
    found = answer.argmax(axis=-1) if answer.dtype.kind == "f" and answer.ndim > 1 else answer
    if found.dtype.kind == "O":
        found = np.array([item.decode(errors="replace") if isinstance(item, bytes) else item for item in found.ravel().tolist()])
    flat, expected = found.ravel(), label.ravel()
    return flat.shape == expected.shape and bool((flat == expected).all())


def read_data(file: Path, wanted: Sequence[str], named: Mapping[str, str], rows_max: int = 0) -> LabelledData:
    """`labels` and one array for each of the request's tensors in an .npz file; `named` says other names (tensor -> array).

    The one array of a file is the one tensor of a graph, whatever it is called. Raises HeadraceError.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        # A TypeError: one array (.npy), which is no archive.
        raise HeadraceError(f"{file}: is not an .npz file that can be read: {error}") from None
    labels = arrays.pop("labels", None)
    if labels is None:
        raise HeadraceError(f"{file} has no array `labels`: it has {', '.join(arrays)}")
    inputs: dict[str, Array] = {}
    for tensor in wanted:
        name = named.get(tensor, next(iter(arrays)) if len(arrays) == len(wanted) == 1 else tensor)
        if name not in arrays:
            raise HeadraceError(
                f"{file} has no array {name!r} for the request's tensor {tensor!r}: it has {', '.join(arrays)}; say --input TENSOR=ARRAY"
            )
        if len(arrays[name]) != len(labels):
            raise HeadraceError(f"{file}: {len(arrays[name])} rows of {name!r}, {len(labels)} labels")
        inputs[tensor] = arrays[name]
    most = rows_max or len(labels)
    return LabelledData({name: array[:most] for name, array in inputs.items()}, labels[:most])


def request_tensors(graph: Graph) -> list[str]:
    """What a request has to bring: what stages read of it, and what conditions and for_eaches look at."""
    read = {source.partition(".")[2] for stage in graph.stages.values() for source in stage.inputs.values() if source.startswith("request.")}
    return sorted(read | graph.request_tensors)


def _requests(data: LabelledData) -> Iterator[tuple[dict[str, Tensor], Array]]:
    for at in range(len(data.labels)):
        yield {name: Tensor.of(name, array[at : at + 1]) for name, array in data.inputs.items()}, data.labels[at : at + 1]


def _digest(key: str, inputs: Mapping[str, Array], parameters: bytes) -> bytes:
    digest = blake2b(key.encode() + b"\x00" + parameters, digest_size=16)
    for name, array in sorted(inputs.items()):
        datatype = datatype_of(array)
        digest.update(f"\x00{name}\x00{datatype.name}{array.shape}".encode())
        digest.update(to_raw(array, datatype))
    return digest.digest()

"""Runs one batch on the backend: decodes, joins, pads, infers, splits, and keeps one request's fault from the others."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from schemas.datatypes import Array
from schemas.errors import BackendError, BadRequest, DeviceUnavailable, RequestError
from schemas.limits import Limits
from schemas.tensors import DecodedRequest, decode_inputs
from workers.backend import Backend, Loaded, Tensors
from workers.inputs import decode_rows
from workers.policy.batcher import Batch, BatchRules, QueuedOrder

MESSAGE_CHARACTERS_MAX = 500


class Served(msgspec.Struct, eq=False):
    """A variant that can compute: its name in the backend, what was loaded, how it is batched."""

    variant: str
    handle: str
    loaded: Loaded
    rules: BatchRules


class Computed(msgspec.Struct, eq=False):
    """What came of one order: `outputs` (those asked for), or the error that it is answered with."""

    queued: QueuedOrder
    outputs: dict[str, Array] | None = None
    error: RequestError | None = None
    computed_ms: float = 0.0
    rows: int = 0
    """Rows that were computed together."""


class ComputedBatch(msgspec.Struct, eq=False):
    """The batch's answers, and what it cost from the first decode to the last split."""

    results: list[Computed]
    rows: int
    """As computed, padding included; 0 where nothing ran."""
    spent_ms: float
    ended_s: float
    """By `time.perf_counter`."""

    def wait_for(self, before_s: float) -> float:
        """Milliseconds of it in which the batch that ended at `before_s` had the device: they are taken off what it cost."""
        waited_ms = max((min(before_s, self.ended_s) - self.ended_s) * 1e3 + self.spent_ms, 0.0)
        if waited_ms:
            self.spent_ms -= waited_ms
            for result in self.results:
                result.computed_ms = min(result.computed_ms, self.spent_ms)
        return waited_ms


class _Member(msgspec.Struct, eq=False):
    result: Computed
    decoded: DecodedRequest


def compute(backend: Backend, served: Served, batch: Batch, limits: Limits) -> ComputedBatch:
    """Blocks: runs on the device thread. Whatever is wrong with a request, or raised by the backend, ends in its result."""
    started = time.perf_counter()
    results = [Computed(queued) for queued in batch.orders]
    groups: dict[tuple[tuple[int, ...], ...], list[_Member]] = {}
    spec = served.loaded.spec
    for result in results:
        try:
            queued = result.queued
            part = queued.order.part
            if part is None:
                decoded = decode_inputs(queued.body, queued.content_type, spec.inputs, limits, outputs=spec.outputs)
            else:
                decoded = decode_rows(queued, part, spec, limits)
        except RequestError as error:
            result.error = error
        else:
            # Free axes beside the rows may differ between requests; only equal ones can be one array.
            form = tuple(array.shape[1:] for array in decoded.inputs.values())
            groups.setdefault(form, []).append(_Member(result, decoded))
    rows = sum(_run(backend, served, group) for group in groups.values())
    ended = time.perf_counter()
    return ComputedBatch(results, rows, (ended - started) * 1e3, ended)


def _run(backend: Backend, served: Served, members: list[_Member]) -> int:
    """Compute members together, or one by one where together they fail; the rows that were computed."""
    rows = sum(member.decoded.rows for member in members)
    started = time.perf_counter()
    try:
        outputs = _infer(backend, served, _joined(members), rows)
        split = list(_split(outputs, members, rows))
    except DeviceUnavailable:
        # Nobody's fault but the device's: all of the batch may be computed elsewhere.
        raise
    except Exception as error:
        if len(members) > 1:
            return sum(_run(backend, served, [member]) for member in members)
        members[0].result.error = BackendError(described(served.variant, error))
        return 0
    computed_ms = (time.perf_counter() - started) * 1e3
    for member, own in zip(members, split, strict=True):
        result = member.result
        result.computed_ms, result.rows = computed_ms, rows
        try:
            result.outputs = asked(own, member.decoded.outputs)
        except BadRequest as error:
            result.error = error
    return served.rules.padded(rows)


def described(variant: str, error: Exception) -> str:
    """What a runtime raised, as an answer says it."""
    return f"{variant}: {type(error).__name__}: {error}"[:MESSAGE_CHARACTERS_MAX]


def asked(outputs: dict[str, Array], names: list[str] | None) -> dict[str, Array]:
    """The outputs that the request asks for; a variant that declares none is only checked here."""
    if names is None:
        return outputs
    unknown = [name for name in names if name not in outputs]
    if unknown:
        raise BadRequest(f"unknown output {unknown[0][:64]!r}; the model gives {', '.join(outputs)}")
    return {name: outputs[name] for name in names}


def _joined(members: Sequence[_Member]) -> dict[str, Array]:
    first = members[0].decoded.inputs
    if len(members) == 1:
        return first
    return {name: np.concatenate([member.decoded.inputs[name] for member in members]) for name in first}


def _infer(backend: Backend, served: Served, inputs: dict[str, Array], rows: int) -> Tensors:
    """One call, or several where the request is larger than a batch."""
    limit = served.rules.rows_max
    if rows <= limit:
        return _infer_chunk(backend, served, inputs, rows)
    chunks = [
        _infer_chunk(backend, served, {name: array[at : at + limit] for name, array in inputs.items()}, min(limit, rows - at))
        for at in range(0, rows, limit)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _infer_chunk(backend: Backend, served: Served, inputs: dict[str, Array], rows: int) -> Tensors:
    size = served.rules.size_for(rows)
    if size > rows:
        # Padded with the last row: zeros or empty strings may be no valid input.
        inputs = {name: np.concatenate([array, np.repeat(array[-1:], size - rows, axis=0)]) for name, array in inputs.items()}
    outputs = backend.infer(served.handle, inputs, size)
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != size:
            raise ValueError(f"output {name!r} has shape {list(array.shape)}, expected {size} rows (first axis)")
    return {name: array[:rows] for name, array in outputs.items()} if size > rows else outputs


def _split(outputs: Tensors, members: Sequence[_Member], rows: int) -> list[dict[str, Array]]:
    if len(members) == 1:
        return [dict(outputs)]
    split: list[dict[str, Array]] = []
    at = 0
    for member in members:
        end = at + member.decoded.rows
        split.append({name: array[at:end] for name, array in outputs.items()})
        at = end
    assert at == rows
    return split

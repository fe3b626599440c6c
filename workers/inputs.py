"""What an order is computed on: the tensors of the request's body, and the raw tensors that earlier stages left behind it."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.catalog import TensorSpec, VariantSpec
from schemas.datatypes import Array
from schemas.errors import BackendError, BadRequest, RequestError, TooLarge
from schemas.limits import Limits
from schemas.raw_tensors import decode_raw
from schemas.tensors import DecodedRequest, decode_inputs, decode_selected
from schemas.work import StagePart
from workers.policy.batcher import QueuedOrder

_encode = msgspec.msgpack.Encoder().encode


def decode_rows(queued: QueuedOrder, part: StagePart, spec: VariantSpec, limits: Limits) -> DecodedRequest:
    """The inputs of a model: all have the same number of rows. Raises BadRequest or TooLarge for what the client sent, BackendError for the rest."""
    inputs, parameters = _decode_part(queued, part, spec, limits)
    try:
        rows = _rows(inputs, limits)
    except ValueError as error:
        raise BackendError(f"stage {queued.order.stage!r}: {error}") from None
    return DecodedRequest(inputs, rows, parameters, None)


def decode_call(queued: QueuedOrder, spec: VariantSpec, limits: Limits) -> tuple[DecodedRequest, bytes]:
    """The inputs of a Python task, each of a shape of its own, and its parameters: a request's own where the task is all of the endpoint."""
    part = queued.order.part
    if part is None:
        decoded = decode_inputs(queued.body, queued.content_type, spec.inputs, limits, outputs=spec.outputs)
        return decoded, _encode(decoded.parameters) if decoded.parameters else b""
    inputs, parameters = _decode_part(queued, part, spec, limits)
    return DecodedRequest(inputs, queued.order.rows, parameters, None), part.parameters


def _decode_part(queued: QueuedOrder, part: StagePart, spec: VariantSpec, limits: Limits) -> tuple[dict[str, Array], dict[str, Any]]:
    stage = queued.order.stage
    inputs: dict[str, Array] = {}
    parameters: dict[str, Any] = {}
    if part.request_inputs:
        body = queued.body[: part.request_bytes]
        try:
            inputs, parameters = decode_selected(body, queued.content_type, part.request_inputs, spec.inputs, limits)
        except (BadRequest, TooLarge) as error:
            raise _of_stage(error, stage) from None
    try:
        raw = decode_raw(queued.body, part.request_bytes, part.tensors, limits, specs=spec.inputs)
    except ValueError as error:
        raise BackendError(f"stage {stage!r}: {error}") from None
    reason = _wrong_names(inputs, raw, spec.inputs)
    if reason:
        raise BackendError(f"stage {stage!r}: {reason}")
    return inputs | raw, parameters


def _of_stage(error: RequestError, stage: str) -> RequestError:
    return type(error)(f"stage {stage!r}: {error}")


def _wrong_names(inputs: dict[str, Array], raw: dict[str, Array], specs: tuple[TensorSpec, ...]) -> str:
    twice = [name for name in raw if name in inputs]
    if twice:
        return f"input {twice[0]!r} is given more than once"
    if not specs:
        return ""
    takes = ", ".join(f"{spec.name!r} ({spec.datatype} {list(spec.shape)})" for spec in specs)
    missing = [spec.name for spec in specs if spec.name not in inputs and spec.name not in raw]
    if missing:
        return f"input {missing[0]!r} is missing; the task takes {takes}"
    known = {spec.name for spec in specs}
    unknown = [name for name in (*inputs, *raw) if name not in known]
    return f"unknown input {unknown[0]!r}; the task takes {takes}" if unknown else ""


def _rows(inputs: dict[str, Array], limits: Limits) -> int:
    """Rows of a model's batch. Raises ValueError naming the tensor that has others."""
    rows = -1
    for name, array in inputs.items():
        own = array.shape[0] if array.ndim else -1
        if not 1 <= own <= limits.rows_max:
            raise ValueError(f"input {name!r} (shape {list(array.shape)}): expected 1 to {limits.rows_max} rows (first axis)")
        if rows not in (-1, own):
            first = next(iter(inputs))
            raise ValueError(f"input {name!r} (shape {list(array.shape)}): expected {rows} rows (first axis) as in input {first!r}")
        rows = own
    if rows < 0:
        raise ValueError("the order has no inputs")
    return rows

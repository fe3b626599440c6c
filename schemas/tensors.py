"""The Open Inference Protocol v2 tensor codec: every check of names, shapes, datatypes and sizes is made before an array exists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from typing import Any, NoReturn

import msgspec

from schemas.catalog import TensorSpec
from schemas.datatypes import BYTES, DATATYPES, Array, Datatype, datatype_of, elements_of, from_list, from_raw, to_list, to_raw
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.terminal import MSGPACK_TYPE, OutputTensor


class InputTensor(msgspec.Struct):
    """An input as it stands in the body; `data` stays undecoded until name, shape and datatype have been checked."""

    name: str = ""
    shape: list[int] | None = None
    datatype: str = ""
    data: msgspec.Raw = msgspec.Raw()


class RequestedOutput(msgspec.Struct):
    """An output that the request asks for."""

    name: str


class InferenceRequest(msgspec.Struct):
    """The tensors of a request body; the routing fields beside them were read before."""

    inputs: list[InputTensor] = []
    outputs: list[RequestedOutput] | None = None
    parameters: dict[str, Any] = {}


class DecodedRequest(msgspec.Struct):
    """What a worker computes on: arrays by name, and the outputs asked for (None: all)."""

    inputs: dict[str, Array]
    rows: int
    parameters: dict[str, Any]
    outputs: list[str] | None


SHOWN_CHARACTERS_MAX = 64
SHOWN_AXES_MAX = 8
_json_request = msgspec.json.Decoder(InferenceRequest).decode
_msgpack_request = msgspec.msgpack.Decoder(InferenceRequest).decode
_Reader = Callable[[msgspec.Raw, Datatype, list[int], int], Array]
_NESTED_JSON = re.compile(rb"\s*\[\s*\[")
# msgpack type bytes: bin 8/16/32 with the length of their headers, and arrays.
_BINARY_HEADER_BYTES = {0xC4: 2, 0xC5: 3, 0xC6: 5}
_ARRAY_HEADER_BYTES = {0xDC: 3, 0xDD: 5} | dict.fromkeys(range(0x90, 0xA0), 1)


def encode_tensor(name: str, values: Array, *, raw: bool) -> dict[str, object]:
    """An input of a request body: `data` as raw little-endian bytes (msgpack) or a flat list (JSON).

    Raises BadRequest for an array without datatype (complex, dates), and for BYTES that are not text where the data is a list.
    """
    datatype, data = _encoded(name, values, raw=raw)
    return {"name": name, "shape": list(values.shape), "datatype": datatype, "data": data}


def encode_output(name: str, values: Array, *, raw: bool) -> OutputTensor:
    """An output of a terminal record, in the same forms as encode_tensor. In JSON, NaN and infinities become null."""
    datatype, data = _encoded(name, values, raw=raw)
    return OutputTensor(name, list(values.shape), datatype, data)


def _encoded(name: str, values: Array, *, raw: bool) -> tuple[str, Any]:
    try:
        datatype = datatype_of(values)
        return datatype.name, to_raw(values, datatype) if raw else to_list(values, datatype)
    except ValueError as error:
        raise BadRequest(f"tensor {_shown(name)}: {error}") from None


def decode_output(tensor: OutputTensor) -> Array:
    """The array of an output, from raw bytes or a flat list (null is NaN). Raises BadRequest where data and shape do not fit."""
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None:
        raise BadRequest(f"output {tensor.name!r}: unknown datatype {tensor.datatype!r}")
    data, count = tensor.data, elements_of(tensor.shape)
    try:
        if isinstance(data, bytes | bytearray | memoryview):
            return from_raw(data, 0, datatype, count).reshape(tensor.shape)
        if datatype.element is float:
            data = [float("nan") if value is None else value for value in data]
        return from_list(data, datatype).reshape(tensor.shape)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"output {tensor.name!r} (datatype {tensor.datatype}, shape {tensor.shape}): {error}") from None


def decode_inputs(
    body: bytes, content_type: str, specs: tuple[TensorSpec, ...], limits: Limits, *, outputs: tuple[TensorSpec, ...] = ()
) -> DecodedRequest:
    """The arrays of a request body, checked against the variant's inputs (and the outputs asked for against its outputs).

    Without `specs` every name, datatype and shape is taken. Arrays may be read-only views of the body.
    Raises BadRequest naming the tensor, its datatype and shape, what was expected and what came; TooLarge for payload and element limits.
    """
    if len(body) > limits.payload_bytes_max:
        raise TooLarge(f"the body has {len(body)} bytes, the limit is {limits.payload_bytes_max}")
    packed = content_type == MSGPACK_TYPE
    request = _envelope(body, content_type)
    _check_names([tensor.name for tensor in request.inputs], specs, limits)
    expected = {spec.name: spec for spec in specs}
    checked = [_check_head(tensor, expected.get(tensor.name), limits) for tensor in request.inputs]
    rows = _rows(request.inputs, limits)
    asked = None if request.outputs is None else _requested(request.outputs, outputs)
    read = _read_msgpack if packed else _read_json
    inputs: dict[str, Array] = {}
    for tensor, (datatype, shape, count) in zip(request.inputs, checked, strict=True):
        inputs[tensor.name] = _read(read, tensor, datatype, shape, count)
    return DecodedRequest(inputs, rows, request.parameters, asked)


def decode_selected(
    body: bytes, content_type: str, wanted: Mapping[str, str], specs: Sequence[TensorSpec], limits: Limits
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors of a request body that one stage takes (`wanted`: its input -> the request's tensor), and the request's parameters.

    The request's other tensors stay undecoded. The same checks as decode_inputs; each input is checked against the spec of its name.
    """
    if len(body) > limits.payload_bytes_max:
        raise TooLarge(f"the body has {len(body)} bytes, the limit is {limits.payload_bytes_max}")
    request = _envelope(body, content_type)
    _check_names([tensor.name for tensor in request.inputs], (), limits)
    given = {tensor.name: tensor for tensor in request.inputs}
    expected = {spec.name: spec for spec in specs}
    read = _read_msgpack if content_type == MSGPACK_TYPE else _read_json
    inputs: dict[str, Array] = {}
    for name, source in wanted.items():
        tensor = given.get(source)
        if tensor is None:
            raise BadRequest(f"input {_shown(source)} is missing{_near(source, list(given))}; the request has {', '.join(map(_shown, given))}")
        datatype, shape, count = _check_head(tensor, expected.get(name), limits)
        inputs[name] = _read(read, tensor, datatype, shape, count)
    return inputs, request.parameters


def _read(read: _Reader, tensor: InputTensor, datatype: Datatype, shape: list[int], count: int) -> Array:
    try:
        return read(tensor.data, datatype, shape, count).reshape(shape)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        _refuse(tensor, str(error).replace("`$", "`data"))


def _envelope(body: bytes, content_type: str) -> InferenceRequest:
    try:
        return (_msgpack_request if content_type == MSGPACK_TYPE else _json_request)(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a valid {content_type} inference request: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def _check_names(names: list[str], specs: tuple[TensorSpec, ...], limits: Limits) -> None:
    if not names:
        raise BadRequest("the request has no `inputs`")
    if len(names) > limits.tensors_max:
        raise BadRequest(f"{len(names)} input tensors, the limit is {limits.tensors_max}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"input {_shown(twice)} is given more than once")
    if "" in names:
        raise BadRequest(f"input number {names.index('') + 1} has no `name`")
    if not specs:
        return
    expected = [spec.name for spec in specs]
    for name in names:
        if name not in expected:
            raise BadRequest(f"unknown input {_shown(name)}{_near(name, expected)}; the model takes {_listed(specs)}")
    missing = [spec for spec in specs if spec.name not in names]
    if missing:
        raise BadRequest(f"input {missing[0].name!r} is missing; the model takes {_listed(specs)}")


def _near(name: str, known: list[str]) -> str:
    close = get_close_matches(name[:SHOWN_CHARACTERS_MAX], known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name!r} ({spec.datatype} {list(spec.shape)})" for spec in specs)


def _refuse(tensor: InputTensor, reason: str) -> NoReturn:
    raise BadRequest(f"input {_shown(tensor.name)} (datatype {tensor.datatype[:16] or 'missing'}, shape {_shape(tensor.shape)}): {reason}")


def _shown(name: str) -> str:
    """A name for a message; a client's mistake must not make the answer as large as the request."""
    return repr(name if len(name) <= SHOWN_CHARACTERS_MAX else name[:SHOWN_CHARACTERS_MAX] + "...")


def _shape(shape: list[int] | None) -> str:
    if shape is None:
        return "missing"
    axes = [str(size) if abs(size) < 1 << 63 else "over 64 bits" for size in shape[:SHOWN_AXES_MAX]]
    return f"[{', '.join(axes)}{', ...' if len(shape) > SHOWN_AXES_MAX else ''}]"


def _check_head(tensor: InputTensor, spec: TensorSpec | None, limits: Limits) -> tuple[Datatype, list[int], int]:
    """(datatype, shape, number of elements) of an input that may be decoded."""
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None:
        _refuse(
            tensor, f"unknown `datatype`{_near(tensor.datatype[:SHOWN_CHARACTERS_MAX].upper(), list(DATATYPES))}; it is one of {', '.join(DATATYPES)}"
        )
    shape = tensor.shape
    if shape is None:
        _refuse(tensor, "`shape` is missing")
    if not 1 <= len(shape) <= limits.rank_max:
        _refuse(tensor, f"expected a shape of 1 to {limits.rank_max} axes (the first counts rows), got {len(shape)}")
    if min(shape) < 0:
        _refuse(tensor, "an axis of a shape cannot be negative")
    # Axis by axis first: the product of eight 4,000-digit sizes is a number that Python refuses even to print.
    if max(shape) > limits.elements_max or elements_of(shape) > limits.elements_max:
        raise TooLarge(f"input {_shown(tensor.name)} has a shape of {_shape(shape)}, the limit is {limits.elements_max} elements")
    if spec is not None:
        _check_spec(tensor, shape, spec)
    return datatype, shape, elements_of(shape)


def _check_spec(tensor: InputTensor, shape: list[int], spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        _refuse(tensor, f"expected datatype {spec.datatype}, got {tensor.datatype}")
    fits = len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True))
    if not fits:
        _refuse(tensor, f"expected shape {list(spec.shape)} (-1 is free), got {_shape(shape)}")


def _rows(inputs: list[InputTensor], limits: Limits) -> int:
    """Rows of the request, after each shape was checked."""
    first = inputs[0].shape or [0]
    rows = first[0]
    for tensor in inputs:
        if tensor.shape and tensor.shape[0] != rows:
            _refuse(tensor, f"expected {rows} rows (first axis) as in input {_shown(inputs[0].name)}, got {tensor.shape[0]}")
    if not 1 <= rows <= limits.rows_max:
        _refuse(inputs[0], f"expected 1 to {limits.rows_max} rows (first axis), got {rows}")
    return rows


def _requested(outputs: list[RequestedOutput], specs: tuple[TensorSpec, ...]) -> list[str]:
    known = [spec.name for spec in specs]
    for output in outputs:
        if known and output.name not in known:
            raise BadRequest(f"unknown output {_shown(output.name)}{_near(output.name, known)}; the model gives {_listed(specs)}")
    return [output.name for output in outputs]


@lru_cache(maxsize=256)
def _list_decoder(datatype: str, depth: int, packed: bool) -> Any:  # noqa: FBT001 - a cache key, not an operation
    """Decoder of lists nested `depth` deep; there are at most datatypes x ranks x encodings of them."""
    # msgspec has no union of str and bytes: in msgpack, from_list looks at what BYTES elements are.
    kind: Any = Any if packed and datatype == BYTES.name else DATATYPES[datatype].element
    for _ in range(depth):
        kind = list[kind]
    return (msgspec.msgpack.Decoder(kind) if packed else msgspec.json.Decoder(kind)).decode


def _read_json(data: msgspec.Raw, datatype: Datatype, shape: list[int], count: int) -> Array:
    if len(memoryview(data)) == 0:
        raise ValueError("`data` is missing")
    nested = len(shape) > 1 and _NESTED_JSON.match(data) is not None
    return _from_lists(data, datatype, shape, count, nested=nested, packed=False)


def _read_msgpack(data: msgspec.Raw, datatype: Datatype, shape: list[int], count: int) -> Array:
    view = memoryview(data)
    if len(view) == 0:
        raise ValueError("`data` is missing")
    binary = _BINARY_HEADER_BYTES.get(view[0])
    if binary is not None:
        return from_raw(data, binary, datatype, count)
    header = _ARRAY_HEADER_BYTES.get(view[0])
    if header is None:
        raise ValueError("`data` is neither an array nor raw bytes")
    nested = len(shape) > 1 and len(view) > header and view[header] in _ARRAY_HEADER_BYTES
    return _from_lists(data, datatype, shape, count, nested=nested, packed=True)


def _from_lists(data: msgspec.Raw, datatype: Datatype, shape: list[int], count: int, *, nested: bool, packed: bool) -> Array:
    values = _list_decoder(datatype.name, len(shape) if nested else 1, packed)(data)
    if nested:
        for axis, expected in enumerate(shape[:-1]):
            if len(values) != elements_of(shape[: axis + 1]):
                raise ValueError(f"expected {expected} entries along axis {axis}, the nesting of `data` has others")
            if any(len(value) != shape[axis + 1] for value in values):
                raise ValueError(f"expected {shape[axis + 1]} entries along axis {axis + 1}, the nesting of `data` has others")
            values = list(chain.from_iterable(values))
    if len(values) != count:
        raise ValueError(f"expected {count} elements, got {len(values)}")
    return from_list(values, datatype)


__all__ = ["BYTES", "DATATYPES", "DecodedRequest", "decode_inputs", "decode_output", "decode_selected", "encode_output", "encode_tensor"]

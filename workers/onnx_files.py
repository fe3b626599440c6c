# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# (protobuf's message classes carry no types)
"""What may be loaded: reads a model file once, and refuses whatever is not a self-contained ONNX model that fits its variant.

A model file is input from outside. The bytes returned here are the bytes that were hashed and checked, so a backend
that hands *them* to its runtime cannot be given another file in between (no time of check, time of use).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx
from google.protobuf.message import DecodeError, Message

from schemas.catalog import TensorSpec, VariantSpec
from schemas.errors import ModelRefused
from schemas.limits import Limits

_DATATYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.STRING: "BYTES",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
}
_SHOWN_NAMES_MAX = 16


class Signature(NamedTuple):
    """Inputs and outputs as the model file states them; -1 for an axis that is free or named."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class FittedModel(NamedTuple):
    """A model that fits its variant: the verified bytes, the variant with inputs and outputs filled in, and its row count where that is fixed."""

    data: bytes
    spec: VariantSpec
    rows: int | None

    def rows_within(self, batch_size_max: int) -> int | None:
        """The fixed row count. Raises ModelRefused where the batch limit is below it."""
        if self.rows is not None and self.rows > batch_size_max:
            raise ModelRefused(f"{self.spec.name}: the model takes exactly {self.rows} rows, the binding allows at most {batch_size_max}")
        return self.rows


def read_file(file: Path, *, sha256: str | None = None, bytes_max: int = Limits().model_bytes_max) -> bytes:
    """The bytes of a regular file without links, hashed as they were read.

    Raises ModelRefused, saying why: missing, a link, not a regular file, too large, or another hash than `sha256`.
    """
    try:
        # A FIFO must not block the open; a link in the last place must not be followed.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ModelRefused(f"{file} is a symbolic link: models are plain files") from None
        raise ModelRefused(f"{file} cannot be read: {error.strerror}") from None
    try:
        _refuse_unusual(file, os.fstat(descriptor), bytes_max)
        with os.fdopen(descriptor, "rb", closefd=False) as handle:
            data = handle.read(bytes_max + 1)
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        raise ModelRefused(f"{file} grew while it was read: over the limit of {bytes_max} bytes")
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ModelRefused(f"{file} has SHA-256 {found}, expected {sha256}")
    return data


def _refuse_unusual(file: Path, status: os.stat_result, bytes_max: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ModelRefused(f"{file} is not a regular file")
    if status.st_nlink > 1:
        raise ModelRefused(f"{file} is a hard link ({status.st_nlink} names for one file): copy it, so that nobody else can write to it")
    if status.st_size > bytes_max:
        raise ModelRefused(f"{file} has {status.st_size} bytes, the limit is {bytes_max}")


def parse_model(data: bytes, name: str) -> onnx.ModelProto:
    """The model, without loading anything beside it.

    Raises ModelRefused for what is not ONNX protobuf, for external data anywhere in it (subgraphs, attributes, functions, sparse tensors),
    and for nodes that load a compiled blob by path.
    """
    if data[4:8] == b"ORTM":
        raise ModelRefused(f"{name} is in ORT format: give the ONNX model it was made from")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelRefused(f"{name} is not an ONNX model: it cannot be read as ONNX protobuf") from None
    if model.ir_version < 1 or not model.opset_import or not model.graph.output:
        raise ModelRefused(f"{name} is not an ONNX model: it states no version, no operator set or no output")
    _refuse_references(model, name)
    return model


def _refuse_references(model: onnx.ModelProto, name: str) -> None:
    """Walks every message of the file, whatever field it hangs on: a field of a later ONNX version cannot slip through."""
    waiting: list[Message] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):
            if message.data_location == onnx.TensorProto.EXTERNAL or len(message.external_data):
                raise ModelRefused(f"{name} keeps tensor {message.name!r} in another file (external data): save the model as one file")
            continue
        if isinstance(message, onnx.NodeProto) and message.op_type == "EPContext":
            raise ModelRefused(f"{name} holds a compiled EPContext node, which may load another file: give the model it was compiled from")
        for field, value in message.ListFields():
            if isinstance(value, Message):
                waiting.append(value)
            elif field.message_type is not None:
                waiting.extend(value)


def signature_of(model: onnx.ModelProto, name: str, *, outputs: Collection[str] = ()) -> Signature:
    """Inputs (without those that initializers supply) and outputs (all, or those named). Raises ModelRefused for types that no request can carry."""
    supplied = {tensor.name for tensor in model.graph.initializer} | {tensor.values.name for tensor in model.graph.sparse_initializer}
    return Signature(
        tuple(_tensor_spec(value, name) for value in model.graph.input if value.name not in supplied),
        tuple(_tensor_spec(value, name) for value in model.graph.output if not outputs or value.name in outputs),
    )


def _tensor_spec(value: onnx.ValueInfoProto, name: str) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise ModelRefused(
            f"{name}: {value.name!r} is a {value.type.WhichOneof('value') or 'value without a type'}, only dense tensors can be served"
        )
    tensor = value.type.tensor_type
    datatype = _DATATYPES.get(tensor.elem_type)
    if datatype is None:
        known = dict(zip(onnx.TensorProto.DataType.values(), onnx.TensorProto.DataType.keys(), strict=True))
        kind = known.get(tensor.elem_type, tensor.elem_type)
        raise ModelRefused(f"{name}: {value.name!r} is of type {kind}, which the Open Inference Protocol cannot carry")
    if not tensor.HasField("shape"):
        raise ModelRefused(f"{name}: {value.name!r} states no shape")
    if not tensor.shape.dim:
        raise ModelRefused(f"{name}: {value.name!r} is a scalar, but the first axis of every tensor counts rows")
    return TensorSpec(value.name, datatype, tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim))


def model_signature(file: Path) -> Signature:
    """What a model file takes and gives. Raises ModelRefused for a file that could not be loaded either."""
    return signature_of(parse_model(read_file(file), file.name), file.name)


def read_variant(spec: VariantSpec, file: Path, *, bytes_max: int = Limits().model_bytes_max) -> FittedModel:
    """What every backend starts from: the variant's model, verified by its SHA-256 (where one is stated) and fitted to its inputs and outputs.

    The variant's outputs may be some of the model's. Raises ModelRefused with the reason; for a model that does not fit, with each difference.
    """
    if spec.call:
        raise ModelRefused(f"{spec.name} is a Python task ({spec.call}): only CPU workers run those")
    data = read_file(file, sha256=spec.sha256 or None, bytes_max=bytes_max)
    model = parse_model(data, file.name)
    signature = signature_of(model, spec.name, outputs={tensor.name for tensor in spec.outputs})
    _refuse_differences(spec, signature, [value.name for value in model.graph.output])
    fixed = {tensor.shape[0] for tensor in (*signature.inputs, *spec.inputs) if tensor.shape[0] != -1}
    if len(fixed) > 1:
        raise ModelRefused(f"{spec.name}: the first axis counts rows, but inputs fix it at {', '.join(map(str, sorted(fixed)))}")
    filled = msgspec.structs.replace(
        spec,
        inputs=spec.inputs or tuple(_with_free_rows(tensor) for tensor in signature.inputs),
        outputs=spec.outputs or tuple(_with_free_rows(tensor) for tensor in signature.outputs),
    )
    return FittedModel(data, filled, fixed.pop() if fixed else None)


def _with_free_rows(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.datatype, (-1, *tensor.shape[1:]))


def _refuse_differences(spec: VariantSpec, signature: Signature, output_names: Sequence[str]) -> None:
    if not signature.inputs:
        raise ModelRefused(f"{spec.name}: the model has no input, so that there are no rows to count")
    differences: list[str] = []
    if spec.inputs:
        input_names = [tensor.name for tensor in signature.inputs]
        differences += _differences("input", spec.inputs, signature.inputs, input_names)
        stated = {tensor.name for tensor in spec.inputs}
        differences += [f"input {tensor.name!r} of the model is not in the catalog" for tensor in signature.inputs if tensor.name not in stated]
    differences += _differences("output", spec.outputs, signature.outputs, output_names)
    if differences:
        raise ModelRefused(f"{spec.name}: the model differs from the catalog: {'; '.join(differences)}")


def _differences(role: str, stated: Sequence[TensorSpec], actual: Sequence[TensorSpec], names: Sequence[str]) -> list[str]:
    by_name = {tensor.name: tensor for tensor in actual}
    differences: list[str] = []
    for tensor in stated:
        model = by_name.get(tensor.name)
        if model is None:
            known = ", ".join(names[:_SHOWN_NAMES_MAX])
            differences.append(f"{role} {tensor.name!r} is not in the model, which has {known}")
            continue
        if tensor.datatype != model.datatype:
            differences.append(f"{role} {tensor.name!r} is {model.datatype} in the model, {tensor.datatype} in the catalog")
        if not _compatible(tensor.shape, model.shape, narrower_model_allowed=role == "output"):
            differences.append(f"{role} {tensor.name!r} has shape {list(model.shape)} in the model, {list(tensor.shape)} in the catalog")
    return differences


def _compatible(stated: Sequence[int], model: Sequence[int], *, narrower_model_allowed: bool) -> bool:
    """The model takes all that the catalog promises; its first axis may be fixed all the same (workers then pad)."""
    if len(stated) != len(model):
        return False
    for axis, (promised, taken) in enumerate(zip(stated, model, strict=True)):
        free_is_fine = axis == 0 or narrower_model_allowed
        if taken not in (-1, promised) and not (promised == -1 and free_is_fine):
            return False
    return True

# pyright: reportUnknownMemberType=false
# (protobuf's message classes carry no types)
"""Small ONNX models with known answers: ready-made cases for the contract suite of any backend that runs ONNX."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from schemas.catalog import TensorSpec, VariantSpec
from schemas.datatypes import DATATYPES
from workers.backend_contract import Arrays, ContractCase

_OPERATOR_SET = 17
_IR_VERSION = 8
_ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def build_model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], initializers: Sequence[onnx.TensorProto] = ()
) -> onnx.ModelProto:
    """A model of these nodes; -1 in a shape is a free axis."""
    graph = helper.make_graph(nodes, "contract", [_value(spec) for spec in inputs], [_value(spec) for spec in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPERATOR_SET)], ir_version=_IR_VERSION)


def save_variant(
    folder: Path, name: str, model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[VariantSpec, Path]:
    """Write the model, and say what it is."""
    data = model.SerializeToString()
    file = folder / f"{name}.onnx"
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return VariantSpec(name=name, file=file.name, sha256=digest, accuracy=0.5, inputs=tuple(inputs), outputs=tuple(outputs)), file


def affine(folder: Path, *, datatype: str = "FP32", rows: int = -1) -> ContractCase:
    """y = 2 x + 1 in one datatype, optionally with a fixed number of rows."""
    dtype = DATATYPES[datatype].dtype
    x, y = TensorSpec("x", datatype, (rows, 3)), TensorSpec("y", datatype, (rows, 3))
    two, one = numpy_helper.from_array(np.array(2, dtype), "two"), numpy_helper.from_array(np.array(1, dtype), "one")
    nodes = [helper.make_node("Mul", ["x", "two"], ["scaled"]), helper.make_node("Add", ["scaled", "one"], ["y"])]
    name = f"affine-{datatype}" + (f"-{rows}" if rows > 0 else "")
    spec, file = save_variant(folder, name, build_model(nodes, [x], [y], [two, one]), [x], [y])

    def inputs(count: int) -> Arrays:
        return {"x": (np.arange(count * 3) % 50).reshape(count, 3).astype(dtype)}

    def expected(batch: Arrays) -> Arrays:
        return {"y": (batch["x"] * np.array(2, dtype) + np.array(1, dtype)).astype(dtype)}

    return ContractCase(spec=spec, file=file, inputs=inputs, expected=expected, batch_size_max=rows if rows > 0 else 6)


def product(folder: Path, *, size: int = 64, tolerance: float = 1e-5) -> ContractCase:
    """y = x W in FP32, with a tolerance that half precision misses."""
    x, y = TensorSpec("x", "FP32", (-1, size)), TensorSpec("y", "FP32", (-1, size))
    weights = np.random.default_rng(0).random((size, size)).astype(np.float32)
    model = build_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [x], [y], [numpy_helper.from_array(weights, "w")])
    spec, file = save_variant(folder, "product", model, [x], [y])

    def inputs(count: int) -> Arrays:
        return {"x": np.random.default_rng(count).random((count, size)).astype(np.float32)}

    def expected(batch: Arrays) -> Arrays:
        return {"y": batch["x"] @ weights}

    return ContractCase(spec=spec, file=file, inputs=inputs, expected=expected, tolerance=tolerance)


def selection(folder: Path) -> ContractCase:
    """Two inputs of different datatypes and two outputs: picks integers where a BOOL says so, and the truth of the opposite."""
    chosen, numbers = TensorSpec("chosen", "BOOL", (-1, 2)), TensorSpec("numbers", "INT32", (-1, 2))
    picked, others = TensorSpec("picked", "INT32", (-1, 2)), TensorSpec("others", "BOOL", (-1, 2))
    zero = numpy_helper.from_array(np.array(0, np.int32), "zero")
    nodes = [helper.make_node("Where", ["chosen", "numbers", "zero"], ["picked"]), helper.make_node("Not", ["chosen"], ["others"])]
    model = build_model(nodes, [chosen, numbers], [picked, others], [zero])
    spec, file = save_variant(folder, "selection", model, [chosen, numbers], [picked, others])

    def inputs(count: int) -> Arrays:
        places = np.arange(count * 2).reshape(count, 2)
        return {"chosen": places % 3 == 0, "numbers": (places + 1).astype(np.int32)}

    def expected(batch: Arrays) -> Arrays:
        return {"picked": np.where(batch["chosen"], batch["numbers"], np.int32(0)), "others": ~batch["chosen"]}

    return ContractCase(spec=spec, file=file, inputs=inputs, expected=expected)


def echo(folder: Path) -> ContractCase:
    """BYTES in, the same BYTES out."""
    text, same = TensorSpec("text", "BYTES", (-1, 2)), TensorSpec("same", "BYTES", (-1, 2))
    model = build_model([helper.make_node("Identity", ["text"], ["same"])], [text], [same])
    spec, file = save_variant(folder, "echo", model, [text], [same])

    def inputs(count: int) -> Arrays:
        return {"text": np.array([[f"grün {row}".encode(), b""] for row in range(count)], dtype=object)}

    def expected(batch: Arrays) -> Arrays:
        return {"same": batch["text"]}

    return ContractCase(spec=spec, file=file, inputs=inputs, expected=expected)


CASES: dict[str, Callable[[Path], ContractCase]] = {
    "FP32": affine,
    "FP16": lambda folder: affine(folder, datatype="FP16"),
    "FP64": lambda folder: affine(folder, datatype="FP64"),
    "INT64": lambda folder: affine(folder, datatype="INT64"),
    "static": lambda folder: affine(folder, rows=4),
    "selection": selection,
    "BYTES": echo,
}
"""Builds each case in a folder; a backend leaves out what its device cannot do (and refuses it at load)."""


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        spec.name, _ELEMENTS[spec.datatype], [axis if axis > 0 else f"axis{at}" for at, axis in enumerate(spec.shape)]
    )

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# (protobuf's message classes carry no types)
"""Makes a quantised dense network of a float one: int8 weights, uint8 activations, scales between layers that are powers of two."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from schemas.errors import ModelRefused
from workers.fpga.manifest import SOFTMAX, PostProcessing, TensorLayout
from workers.fpga.network import Layer, Network
from workers.fpga.onnx_network import QuantizedModel

LARGEST_WEIGHT, LARGEST_ACTIVATION = 127, 255
CALIBRATION_PERCENTILE = 99.9
Floats = NDArray[np.float64]


def quantize(model: onnx.ModelProto, name: str, calibration: NDArray[np.uint8]) -> QuantizedModel:
    """A model of (Cast, Sub, Mul, Flatten) and layers of Gemm and Relu, behind them perhaps Softmax. Raises ModelRefused for others.

    `calibration` are example inputs: they say how large activations get.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    mean, factor, dense, softmax = 0.0, 1.0, list[tuple[Floats, Floats]](), False
    for node in model.graph.node:
        if node.op_type == "Sub" and not dense:
            mean = float(constants[node.input[1]])
        elif node.op_type == "Mul" and not dense:
            factor = float(constants[node.input[1]])
        elif node.op_type == "Gemm" and not any(attribute.name.startswith("trans") and attribute.i for attribute in node.attribute):
            dense.append((constants[node.input[1]].astype(np.float64), constants[node.input[2]].astype(np.float64)))
        elif node.op_type == "Softmax":
            softmax = True
        elif node.op_type not in ("Cast", "Flatten", "Relu"):
            raise ModelRefused(f"{name}: {node.op_type} is in it: dense networks of Gemm and Relu can be quantised here")
    if not dense:
        raise ModelRefused(f"{name}: it has no dense layer")
    # The network takes pixels as they come: what normalises them goes into the first layer.
    weights, bias = dense[0]
    dense[0] = (weights * factor, bias - mean * factor * weights.sum(0))
    network, scale = _quantized(dense, calibration)
    given = model.graph.input[0]
    shape = tuple(axis.dim_value for axis in given.type.tensor_type.shape.dim)[1:]
    source = TensorLayout(name=given.name, datatype="UINT8", shape=shape, inner=1)
    sink = TensorLayout(name=model.graph.output[0].name, datatype="INT32", shape=(network.outputs,), inner=1)
    return QuantizedModel(network, source, sink, PostProcessing(scale=scale, then=SOFTMAX if softmax else ""))


def _quantized(dense: list[tuple[Floats, Floats]], calibration: NDArray[np.uint8]) -> tuple[Network, float]:
    """The network, and what one unit of its results is worth."""
    layers: list[Layer] = []
    values: NDArray[Any] = calibration.reshape(len(calibration), -1).astype(np.float64)
    unit = 1.0
    for number, (weights, bias) in enumerate(dense):
        step = float(np.abs(weights).max()) / LARGEST_WEIGHT
        whole = np.rint(weights / step).astype(np.int8)
        added = np.rint(bias / (step * unit)).astype(np.int32)
        accumulators = values @ whole.astype(np.float64) + added
        unit *= step
        if number + 1 == len(dense):
            layers.append(Layer(whole, added))
            break
        high = float(np.percentile(np.maximum(accumulators, 0), CALIBRATION_PERCENTILE))
        shift = max(math.ceil(math.log2(max(high, 1.0) / LARGEST_ACTIVATION)), 0)
        layers.append(Layer(whole, added, shift, LARGEST_ACTIVATION))
        values = np.clip(np.rint(accumulators / 2**shift), 0, LARGEST_ACTIVATION)
        unit *= 2**shift
    return Network(tuple(layers)), unit

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# (protobuf's message classes carry no types)
"""Reads binarised networks as FINN's tests export them (TFC-w1a1): what lies between two layers of -1 and 1 becomes one integer threshold an output.

A threshold is found by trying: the floating-point operators are evaluated, in float32 as exported, for every accumulator that can occur.
So the integers decide exactly as the exported model does, rounding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from schemas.errors import ModelRefused
from workers.fpga.network import Layer, Network

Floats = NDArray[np.float32]
_SHAPING = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")
_THRESHOLD, _PRODUCT = "MultiThreshold", "MatMul"
_PIXELS = 256


def is_binarized(model: onnx.ModelProto) -> bool:
    """Whether the model has thresholds, as FINN writes them."""
    return any(node.op_type == _THRESHOLD for node in model.graph.node)


def read_binarized(model: onnx.ModelProto, name: str) -> Network:
    """Pixels in, the index of the largest class out. Raises ModelRefused."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    groups: list[list[Any]] = [[]]
    weights: list[NDArray[Any]] = []
    for node in model.graph.node:
        if node.op_type == _PRODUCT:
            weights.append(constants[node.input[1]])
            groups.append([])
        elif node.op_type not in _SHAPING:
            groups[-1].append(node)
    if not weights or not groups[-1] or groups[-1][-1].op_type != "TopK":
        raise ModelRefused(f"{name}: it is no binarised dense network that ends in TopK")
    if any(not np.all(np.abs(matrix) == 1) for matrix in weights):
        raise ModelRefused(f"{name}: its weights are not all -1 or 1")
    layers: list[Layer] = []
    for number, matrix in enumerate(weights):
        whole = matrix.astype(np.int8)
        bias = np.zeros(whole.shape[1], np.int32)
        if number + 1 == len(weights):
            _check_order(groups[-1][:-1], constants, name, whole)
            layers.append(Layer(whole, bias))
            break
        thresholds, flipped = _thresholds(groups[number + 1], constants, name, whole)
        layers.append(Layer(whole, bias, thresholds=thresholds[:, None], flipped=flipped, bipolar=True))
    pixels = np.arange(_PIXELS, dtype=np.float32)[:, None]
    reached = _evaluate(groups[0], constants, name, pixels)[:, 0] > 0
    return Network(tuple(layers), input_threshold=int(reached.argmax()), argmax=True)


def _thresholds(nodes: Sequence[Any], constants: dict[str, Any], name: str, weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each output: the accumulator from which on (or, flipped, up to which) it is 1."""
    inputs, outputs = weights.shape
    span = np.arange(-inputs, inputs + 1, dtype=np.float32)
    ones = _evaluate(nodes, constants, name, np.repeat(span[:, None], outputs, axis=1)) > 0
    if np.any(np.abs(np.diff(ones.astype(np.int8), axis=0)).sum(0) > 1):
        raise ModelRefused(f"{name}: an output changes more than once with its accumulator")
    flipped = ones[0] & ~ones[-1]
    rising = np.where(ones.any(0), ones.argmax(0), len(span)) - inputs
    falling = ones.sum(0) - 1 - inputs
    return np.where(flipped, falling, rising).astype(np.int32), flipped


def _check_order(nodes: Sequence[Any], constants: dict[str, Any], name: str, weights: NDArray[Any]) -> None:
    """What comes behind the last layer must not change which class is the largest."""
    span = np.arange(-weights.shape[0], weights.shape[0] + 1, dtype=np.float32)
    after = _evaluate(nodes, constants, name, np.repeat(span[:, None], weights.shape[1], axis=1))
    if np.any(np.diff(after, axis=0) <= 0) or np.any(after != after[:, :1]):
        raise ModelRefused(f"{name}: what follows its last layer changes the order of classes")


def _evaluate(nodes: Sequence[Any], constants: dict[str, Any], name: str, values: Floats) -> Floats:
    """Elementwise operators, in float32."""
    for node in nodes:
        given = [constants[key] for key in node.input[1:]]
        stated = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in ("Div", "Mul", "Sub", "Add"):
            operation = {"Div": np.divide, "Mul": np.multiply, "Sub": np.subtract, "Add": np.add}[node.op_type]
            values = operation(values, given[0])
        elif node.op_type == "BatchNormalization":
            scale, bias, mean, variance = given
            values = (values - mean) / np.sqrt(variance + np.float32(stated["epsilon"].f)) * scale + bias
        elif node.op_type == _THRESHOLD and given[0].shape == (1, 1):
            values = np.where(values >= given[0][0, 0], np.float32(1), np.float32(-1))
        else:
            raise ModelRefused(f"{name}: {node.op_type} is in it: binarised dense networks as FINN's tests have them can be read")
        values = values.astype(np.float32)
    return values

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# (protobuf's message classes carry no types)
"""Quantised dense networks as ONNX models, both ways: what `headrace fpga package` reads, and what runs on ONNX Runtime with the same integers.

A layer is MatMulInteger (uint8 weights around 128: every processor computes those exactly) and Add; between layers the accumulators are multiplied
by a power of two, rounded, clipped and cast to uint8. Behind the last one may come ArgMax, or Cast, Mul and Softmax.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.errors import ModelRefused
from workers.fpga.manifest import ARGMAX, SOFTMAX, PostProcessing, TensorLayout
from workers.fpga.network import Layer, Network

ZERO = 128
_SHAPING = ("Flatten", "Reshape")


class QuantizedModel(msgspec.Struct, frozen=True, eq=False):
    """A network with its tensors' names and shapes, and what is done with the result."""

    network: Network
    source: TensorLayout
    sink: TensorLayout
    post: PostProcessing


class _Nodes:
    """A model's nodes, one after the other."""

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self.name = name
        self._nodes = list(model.graph.node)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._at = 0

    def comes(self, *kinds: str) -> bool:
        """Whether these are next."""
        return [node.op_type for node in self._nodes[self._at : self._at + len(kinds)]] == list(kinds)

    def take(self, kind: str) -> Any:
        if not self.comes(kind):
            found = self._nodes[self._at].op_type if self._at < len(self._nodes) else "the end"
            raise ModelRefused(f"{self.name}: node {self._at} is {found}, expected {kind}: it is no quantised dense network (headrace fpga quantize)")
        self._at += 1
        return self._nodes[self._at - 1]

    def constant(self, node: Any, index: int) -> NDArray[Any]:
        found = self._constants.get(node.input[index]) if index < len(node.input) else None
        if found is None:
            raise ModelRefused(f"{self.name}: input {index} of {node.op_type} is no constant")
        return found

    @property
    def over(self) -> bool:
        return self._at == len(self._nodes)


def read_network(model: onnx.ModelProto, name: str) -> QuantizedModel:
    """Raises ModelRefused where it is no such network."""
    nodes = _Nodes(model, name)
    if any(nodes.comes(kind) for kind in _SHAPING):
        nodes.take("Flatten" if nodes.comes("Flatten") else "Reshape")
    layers = [_layer(nodes)]
    while nodes.comes("Cast", "Mul", "Round", "Clip", "Cast", "MatMulInteger"):
        layers[-1] = _requantized(layers[-1], nodes)
        layers.append(_layer(nodes))
    post = _post(nodes)
    if not nodes.over:
        nodes.take("the end of the model")
    given = model.graph.input[0]
    signed = given.type.tensor_type.elem_type == TensorProto.INT8
    network = Network(tuple(layers), input_signed=signed)
    try:
        network.check()
    except ValueError as error:
        raise ModelRefused(f"{name}: {error}") from None
    shape = tuple(axis.dim_value for axis in given.type.tensor_type.shape.dim)[1:]
    if math.prod(shape) != network.inputs:
        raise ModelRefused(f"{name}: input {given.name!r} has rows of shape {list(shape)}, the first layer takes {network.inputs}")
    source = TensorLayout(name=given.name, datatype="INT8" if signed else "UINT8", shape=shape, inner=1)
    sink = TensorLayout(name=model.graph.output[0].name, datatype="INT32", shape=(network.outputs,), inner=1)
    return QuantizedModel(network, source, sink, post)


def _layer(nodes: _Nodes) -> Layer:
    product = nodes.take("MatMulInteger")
    weights = nodes.constant(product, 1)
    zero = int(nodes.constant(product, 3)) if len(product.input) > 3 else 0
    signed = weights.astype(np.int16) - zero
    if signed.min(initial=0) < -128 or signed.max(initial=0) > 127:
        raise ModelRefused(f"{nodes.name}: weights of {product.name or 'a layer'} are not within -128..127 of their zero point")
    bias = nodes.constant(nodes.take("Add"), 1) if nodes.comes("Add") else np.zeros(weights.shape[1], np.int32)
    return Layer(signed.astype(np.int8), bias.astype(np.int32).reshape(-1))


def _requantized(layer: Layer, nodes: _Nodes) -> Layer:
    nodes.take("Cast")
    factor = float(nodes.constant(nodes.take("Mul"), 1))
    shift = -math.log2(factor) if factor > 0 else math.nan
    nodes.take("Round")
    clip = nodes.take("Clip")
    low, high = float(nodes.constant(clip, 1)), float(nodes.constant(clip, 2))
    nodes.take("Cast")
    if not shift.is_integer() or low != 0 or not 0 < high <= 255:
        raise ModelRefused(f"{nodes.name}: a layer is multiplied by {factor} and clipped to {low}..{high}: use a power of two, and 0..255 at most")
    return msgspec.structs.replace(layer, shift=int(shift), high=int(high))


def _post(nodes: _Nodes) -> PostProcessing:
    if nodes.comes("ArgMax"):
        nodes.take("ArgMax")
        return PostProcessing(then=ARGMAX)
    if nodes.comes("Identity"):
        nodes.take("Identity")
    if not nodes.comes("Cast", "Mul"):
        return PostProcessing()
    nodes.take("Cast")
    scale = float(nodes.constant(nodes.take("Mul"), 1))
    if nodes.comes("Softmax"):
        nodes.take("Softmax")
        return PostProcessing(scale=scale, then=SOFTMAX)
    return PostProcessing(scale=scale)


def write_network(quantized: QuantizedModel) -> onnx.ModelProto:
    """The ONNX model of the same integers. Raises ValueError for thresholds, which ONNX has no operator for."""
    nodes: list[onnx.NodeProto] = [helper.make_node("Flatten", [quantized.source.name], ["flat"], axis=1)]
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    at = "flat"
    layers = quantized.network.layers
    for number, layer in enumerate(layers):
        if layer.thresholds is not None or quantized.network.input_threshold is not None:
            raise ValueError("thresholds have no operator in ONNX")
        weights = constant(f"weights{number}", (layer.weights.astype(np.int16) + ZERO).astype(np.uint8))
        zero = constant(f"zero{number}", np.array(0, np.int8 if number == 0 and quantized.network.input_signed else np.uint8))
        middle = constant(f"middle{number}", np.array(ZERO, np.uint8))
        nodes.append(helper.make_node("MatMulInteger", [at, weights, zero, middle], [f"product{number}"]))
        nodes.append(helper.make_node("Add", [f"product{number}", constant(f"bias{number}", layer.bias.astype(np.int32))], [f"sum{number}"]))
        at = f"sum{number}"
        if number + 1 < len(layers):
            nodes += _requantize_nodes(number, at, layer, constant)
            at = f"activation{number}"
    nodes += _post_nodes(at, quantized, constant)
    source, sink = quantized.source, quantized.sink
    given = helper.make_tensor_value_info(source.name, getattr(TensorProto, source.datatype), ["rows", *source.shape])
    then, scaled = quantized.post.then, not quantized.post.as_it_is
    element = TensorProto.INT64 if then == ARGMAX else TensorProto.FLOAT if scaled else TensorProto.INT32
    gives = helper.make_tensor_value_info(sink.name, element, ["rows", 1 if then == ARGMAX else sink.shape[-1]])
    graph = helper.make_graph(nodes, "quantized", [given], [gives], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="headrace")


def _requantize_nodes(number: int, at: str, layer: Layer, constant: Any) -> list[onnx.NodeProto]:
    factor = constant(f"factor{number}", np.array(2.0**-layer.shift, np.float32))
    low, high = constant(f"low{number}", np.array(0, np.float32)), constant(f"high{number}", np.array(layer.high, np.float32))
    return [
        helper.make_node("Cast", [at], [f"float{number}"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"float{number}", factor], [f"scaled{number}"]),
        helper.make_node("Round", [f"scaled{number}"], [f"rounded{number}"]),
        helper.make_node("Clip", [f"rounded{number}", low, high], [f"clipped{number}"]),
        helper.make_node("Cast", [f"clipped{number}"], [f"activation{number}"], to=TensorProto.UINT8),
    ]


def _post_nodes(at: str, quantized: QuantizedModel, constant: Any) -> list[onnx.NodeProto]:
    name, post = quantized.sink.name, quantized.post
    if post.then == ARGMAX:
        return [helper.make_node("ArgMax", [at], [name], axis=1, keepdims=1)]
    if post.as_it_is:
        return [helper.make_node("Identity", [at], [name])]
    scale = constant("scale", np.array(post.scale, np.float32))
    scaled = "scaled" if post.then == SOFTMAX else name
    nodes = [helper.make_node("Cast", [at], ["logits"], to=TensorProto.FLOAT), helper.make_node("Mul", ["logits", scale], [scaled])]
    if post.then == SOFTMAX:
        nodes.append(helper.make_node("Softmax", ["scaled"], [name], axis=1))
    return nodes

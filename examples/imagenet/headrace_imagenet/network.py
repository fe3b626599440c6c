"""Builds EfficientNet-Lite as ONNX from its weights: colours, resizing and normalising in front, batch normalisation folded into the convolutions.

A variant is weights x the side of the square that the network sees; each takes the same photo, so that the dispatcher may choose late. A photo is
planes as cameras and JPEG have them (I420): brightness in full, both colours in half the side; half the bytes of three channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PHOTO_SIDE = 260
"""Pixels of a request's photo: what the largest variant sees."""
CLASSES = 1_000
CHROMA_SIDE = PHOTO_SIDE // 2
PHOTO_ROWS = PHOTO_SIDE + 2 * CHROMA_SIDE**2 // PHOTO_SIDE
"""Of PHOTO_SIDE bytes: the brightness plane, then the blue and the red one."""
MEAN, DEVIATION = 127.0, 128.0
COLOURS = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])
"""Red, green and blue of brightness, blue and red difference, as JFIF has them."""
GREY = np.array([0.0, 128.0, 128.0])
"""What is taken off the planes first."""
EPSILON = 1e-3
STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
OPSET, IR_VERSION = 18, 8

Weights = Mapping[str, NDArray[Any]]


class _Graph:
    """Nodes and constants in the order of their making; `add` names what the node gives."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.convolutions = 0

    def constant(self, value: Any, datatype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, datatype), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{kind}_{len(self.nodes)}", **attributes))
        return output

    def convolve(self, tensor: str, weight: str, norm: str, *, stride: int = 1, depthwise: bool = False) -> str:
        """A convolution with the batch normalisation behind it folded in; padded as TensorFlow's SAME."""
        kernel = self.weights[f"{weight}.weight"]
        scale = self.weights[f"{norm}.weight"] / np.sqrt(self.weights[f"{norm}.running_var"] + EPSILON)
        bias = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * scale
        inputs = [tensor, self.constant(kernel * scale[:, None, None, None]), self.constant(bias)]
        return self.add(
            "Conv",
            inputs,
            auto_pad="SAME_UPPER",
            strides=[stride, stride],
            group=kernel.shape[0] if depthwise else 1,
            kernel_shape=list(kernel.shape[2:]),
        )

    def clip(self, tensor: str) -> str:
        """ReLU6."""
        return self.add("Clip", [tensor, "zero", "six"])


def build_network(weights: Weights, side: int, name: str) -> bytes:
    """`image` UINT8 (rows, PHOTO_ROWS, PHOTO_SIDE) to `probs` FP32 (rows, CLASSES), as an ONNX file.

    The same bytes for the same weights, whatever machine builds them.
    """
    graph = _Graph(weights)
    graph.constants += [numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(np.float32(6), "six")]
    tensor = _seen(graph, side)
    tensor = graph.clip(graph.convolve(tensor, "_conv_stem", "_bn0", stride=2))
    tensor = _blocks(graph, tensor)
    tensor = graph.clip(graph.convolve(tensor, "_conv_head", "_bn1"))
    tensor = graph.add("Flatten", [graph.add("GlobalAveragePool", [tensor])])
    tensor = graph.add("Gemm", [tensor, graph.constant(weights["_fc.weight"]), graph.constant(weights["_fc.bias"])], transB=1)
    graph.add("Softmax", [tensor], "probs", axis=1)
    described = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["rows", PHOTO_ROWS, PHOTO_SIDE])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["rows", CLASSES])],
        graph.constants,
    )
    model = helper.make_model(described, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="headrace-imagenet")
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _seen(graph: _Graph, side: int) -> str:
    """What the network sees: the planes brought to its size, turned into normalised red, green and blue by one small convolution."""
    values = graph.add("Cast", ["image"], to=TensorProto.FLOAT)
    planes: list[str] = []
    first = 0
    for length in (PHOTO_SIDE, CHROMA_SIDE, CHROMA_SIDE):
        last = first + length**2 // PHOTO_SIDE
        bounds = [graph.constant([bound], np.int64) for bound in (first, last, 1)]
        shape = graph.constant([-1, 1, length, length], np.int64)
        planes.append(_resized(graph, graph.add("Reshape", [graph.add("Slice", [values, *bounds]), shape]), length, side))
        first = last
    matrix = graph.constant((COLOURS / DEVIATION).reshape(3, 3, 1, 1))
    bias = graph.constant((-COLOURS @ GREY - MEAN) / DEVIATION)
    return graph.add("Conv", [graph.add("Concat", planes, axis=1), matrix, bias], kernel_shape=[1, 1])


def _resized(graph: _Graph, plane: str, length: int, side: int) -> str:
    """Linear; what shrinks is averaged over."""
    if length == side:
        return plane
    # The length is rounded down: a hair above the ratio, so that it comes out as meant.
    ratio = (side + 1e-3) / length
    return graph.add("Resize", [plane, "", graph.constant([1.0, 1.0, ratio, ratio])], mode="linear", antialias=int(side < length))


def _blocks(graph: _Graph, tensor: str) -> str:
    """Inverted bottlenecks; the first of each stage changes the width, the others add what they were given."""
    weights = graph.weights
    count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("_blocks."))
    stage, width_before = -1, 0
    for number in range(count):
        block = f"_blocks.{number}"
        width = weights[f"{block}._project_conv.weight"].shape[0]
        first = width != width_before
        stage += first
        inner = tensor
        if f"{block}._expand_conv.weight" in weights:
            inner = graph.clip(graph.convolve(inner, f"{block}._expand_conv", f"{block}._bn0"))
        stride = STAGE_STRIDES[stage] if first else 1
        inner = graph.clip(graph.convolve(inner, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride, depthwise=True))
        inner = graph.convolve(inner, f"{block}._project_conv", f"{block}._bn2")
        tensor = inner if first else graph.add("Add", [inner, tensor])
        width_before = width
    return tensor

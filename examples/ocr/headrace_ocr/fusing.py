"""Builds the variants: PP-OCR networks with resizing, normalising and decoding fused around them, so that every stage speaks in small, fixed shapes.

The weights of a task's variants are the same; what differs is the size that the network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from headrace_ocr.layout import LINE_HEIGHT, LINE_STEPS, LINE_WIDTH, PAGE_SIDE

MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSIFIER_WIDTH = 192
CLASSIFIER_SEES = 384
"""The direction of a line shows in its beginning: so many columns, at half their width."""
TURNED_FROM = 0.9
"""A line is turned where the classifier is surer than this, as in PP-OCR."""
ROWS = "rows"


class _Fusion:
    """A network to which nodes are added before and after; the first output of `add` names what it gives."""

    def __init__(self, weights: bytes, name: str) -> None:
        self.network = onnx.load_model_from_string(weights)
        self.name = name
        self.input = self.network.graph.input[0].name
        self.output = self.network.graph.output[0].name
        self._before: list[onnx.NodeProto] = []
        self._after: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self.nodes = self._before

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"headrace/constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"headrace/{len(self._before)}_{len(self._after)}_{kind}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def resize(self, tensor: str, sizes: tuple[int, int], target: tuple[int, int]) -> str:
        """Linear, of the last two axes of four."""
        if sizes == target:
            return tensor
        # The length is rounded down: a hair above the ratio, so that it comes out as meant.
        scales = [1.0, 1.0, *((length + 1e-3) / before for length, before in zip(target, sizes, strict=True))]
        return self.add("Resize", [tensor, self.constant([], np.float32), self.constant(scales, np.float32)], mode="linear")

    def three_channels(self, tensor: str, means: Sequence[float], deviations: Sequence[float], output: str) -> None:
        """Grey (rows, 1, height, width) in 0..255 to three normalised channels."""
        means_constant = self.constant(255 * np.array(means).reshape(1, 3, 1, 1), np.float32)
        scale_constant = self.constant(1 / (255 * np.array(deviations)).reshape(1, 3, 1, 1), np.float32)
        self.add("Mul", [self.add("Sub", [tensor, means_constant]), scale_constant], output)

    def then(self) -> None:
        """What is added from here on stands behind the network."""
        self.nodes = self._after

    def model(self, inputs: Sequence[tuple[str, int, list[Any]]], outputs: Sequence[tuple[str, int, list[Any]]]) -> bytes:
        """The same bytes for the same weights, whatever machine builds them."""
        graph = helper.make_graph(
            [*self._before, *self.network.graph.node, *self._after],
            self.name,
            [helper.make_tensor_value_info(*described) for described in inputs],
            [helper.make_tensor_value_info(*described) for described in outputs],
            [*self.network.graph.initializer, *self._constants],
        )
        opsets = [helper.make_opsetid(opset.domain, opset.version) for opset in self.network.opset_import]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.network.ir_version, producer_name="headrace-ocr")
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)


def build_detector(weights: bytes, side: int) -> bytes:
    """`page` UINT8 (rows, PAGE_SIDE, PAGE_SIDE) to `map` UINT8 (rows, side, side): probability of text x 255."""
    fusion = _Fusion(weights, f"detect-{side}")
    grey = _grey(fusion, "page")
    small = fusion.resize(grey, (PAGE_SIDE, PAGE_SIDE), (side, side))
    fusion.three_channels(small, MEANS, DEVIATIONS, fusion.input)
    fusion.then()
    scaled = fusion.add("Mul", [fusion.add("Squeeze", [fusion.output], axes=[1]), fusion.constant(255, np.float32)])
    fusion.add("Cast", [scaled], "map", to=TensorProto.UINT8)
    page = ("page", TensorProto.UINT8, [ROWS, PAGE_SIDE, PAGE_SIDE])
    return fusion.model([page], [("map", TensorProto.UINT8, [ROWS, side, side])])


def build_classifier(weights: bytes) -> bytes:
    """`line` UINT8 (rows, LINE_HEIGHT, LINE_WIDTH) to `turned` FP32 (rows): the probability that it is upside down."""
    fusion = _Fusion(weights, "orient")
    beginning = _slice(fusion, _grey(fusion, "line"), axis=3, start=0, end=CLASSIFIER_SEES)
    small = fusion.resize(beginning, (LINE_HEIGHT, CLASSIFIER_SEES), (LINE_HEIGHT, CLASSIFIER_WIDTH))
    fusion.three_channels(small, [0.5] * 3, [0.5] * 3, fusion.input)
    fusion.then()
    fusion.add("Squeeze", [_slice(fusion, fusion.output, axis=1, start=1, end=2)], "turned", axes=[1])
    line = ("line", TensorProto.UINT8, [ROWS, LINE_HEIGHT, LINE_WIDTH])
    return fusion.model([line], [("turned", TensorProto.FLOAT, [ROWS])])


def build_recogniser(weights: bytes, width: int) -> bytes:
    """`line` UINT8 (rows, LINE_HEIGHT, LINE_WIDTH) and `turned` FP32 (rows) to code points.

    Gives `codes` INT32 (rows, LINE_STEPS; 0: none), `confidence` FP32 (rows: mean over the characters) and `upside_down` FP32 (rows).
    The line is turned, and CTC decoded (repeats and blanks dropped), in the model: 480 bytes a line leave it instead of nine megabytes.
    """
    fusion = _Fusion(weights, f"recognise-{width}")
    grey = _grey(fusion, "line")
    reversed_line = fusion.add(
        "Slice",
        [grey, *(fusion.constant(value, np.int64) for value in ([-1, -1], [-(2**31), -(2**31)], [2, 3], [-1, -1]))],
    )
    is_turned = fusion.add("Greater", ["turned", fusion.constant(TURNED_FROM, np.float32)])
    upright = fusion.add("Where", [fusion.add("Unsqueeze", [is_turned], axes=[1, 2, 3]), reversed_line, grey])
    small = fusion.resize(upright, (LINE_HEIGHT, LINE_WIDTH), (LINE_HEIGHT, width))
    fusion.three_channels(small, [0.5] * 3, [0.5] * 3, fusion.input)
    fusion.then()
    _decode(fusion, _code_points(fusion.network), width // 8)
    fusion.add("Cast", [is_turned], "upside_down", to=TensorProto.FLOAT)
    rows = [ROWS]
    return fusion.model(
        [("line", TensorProto.UINT8, [ROWS, LINE_HEIGHT, LINE_WIDTH]), ("turned", TensorProto.FLOAT, rows)],
        [
            ("codes", TensorProto.INT32, [ROWS, LINE_STEPS]),
            ("confidence", TensorProto.FLOAT, rows),
            ("upside_down", TensorProto.FLOAT, rows),
        ],
    )


def _decode(fusion: _Fusion, code_points: NDArray[np.int32], steps: int) -> None:
    """CTC, greedily: the likeliest class of each step, where it is neither blank nor the step before's."""
    classes = fusion.add("ArgMax", [fusion.output], axis=2, keepdims=0)
    likelihoods = fusion.add("ReduceMax", [fusion.output], axes=[2], keepdims=0)
    before = fusion.add(
        "Pad", [_slice(fusion, classes, axis=1, start=0, end=-1), fusion.constant([0, 1, 0, 0], np.int64), fusion.constant(-1, np.int64)]
    )
    dropped = fusion.add("Or", [fusion.add("Equal", [classes, before]), fusion.add("Equal", [classes, fusion.constant(0, np.int64)])])
    codes = fusion.add(
        "Where",
        [dropped, fusion.constant(0, np.int32), fusion.add("Gather", [fusion.constant(code_points, np.int32), classes], axis=0)],
    )
    if steps < LINE_STEPS:
        codes = fusion.add("Pad", [codes, fusion.constant([0, 0, 0, LINE_STEPS - steps], np.int64), fusion.constant(0, np.int32)])
    fusion.add("Identity", [codes], "codes")
    kept = fusion.add("Cast", [fusion.add("Not", [dropped])], to=TensorProto.FLOAT)
    count = fusion.add("Max", [fusion.add("ReduceSum", [kept], axes=[1], keepdims=0), fusion.constant(1, np.float32)])
    total = fusion.add("ReduceSum", [fusion.add("Mul", [kept, likelihoods])], axes=[1], keepdims=0)
    fusion.add("Div", [total, count], "confidence")


def _grey(fusion: _Fusion, tensor: str) -> str:
    return fusion.add("Unsqueeze", [fusion.add("Cast", [tensor], to=TensorProto.FLOAT)], axes=[1])


def _slice(fusion: _Fusion, tensor: str, *, axis: int, start: int, end: int) -> str:
    return fusion.add("Slice", [tensor, *(fusion.constant([value], np.int64) for value in (start, end, axis))])


def _code_points(network: onnx.ModelProto) -> NDArray[np.int32]:
    """By class: blank, the characters that the model's own metadata lists, a space."""
    listed = {entry.key: entry.value for entry in network.metadata_props}["character"].split("\n")
    return np.array([0, *(ord(character) for character in listed), ord(" ")], np.int32)

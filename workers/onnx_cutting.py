# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# (protobuf's message classes carry no types)
"""Cuts ONNX models at tensors: finds what crosses a cut, and takes the parts out with onnx.utils.Extractor.

A cut is a set of nodes closed upwards; what crosses is every tensor that one side computes from the model's inputs and the other side reads.
What depends on no input (weights, their dequantisation, constants) never crosses: each part has its own copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec
import onnx
from onnx import helper, shape_inference
from onnx.utils import Extractor

from schemas.catalog import TensorSpec
from schemas.datatypes import BYTES, DATATYPES, elements_of
from schemas.errors import ModelRefused
from workers.onnx_files import signature_of

SAFE_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")
"""What a graph can name as `node.tensor` without doubt."""
_SHOWN_MAX = 8
_FREE_AXIS = 64


class Cut(msgspec.Struct, frozen=True):
    """A place to cut: how many of the computing nodes lie before it, and which tensors cross."""

    nodes_before: frozenset[int]
    tensors: tuple[str, ...]
    row_bytes: int
    quantised: bool
    """All that crosses comes out of a QuantizeLinear: cut here, the runtime fuses both sides as it fused the whole."""


class CuttableModel:
    """A model with its shapes inferred.

    Inner tensors whose names no graph could state are called `tNUMBER_...`; the model's own inputs and outputs keep their names.

    Raises ModelRefused for models that cannot be cut: control flow, sparse weights, inputs that do not count rows.
    """

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self.name = name
        self._model, self._renamings = _prepared(model, name)
        graph = self._model.graph
        self.signature = signature_of(self._model, name)
        self._inputs = [tensor.name for tensor in self.signature.inputs]
        self._types = {value.name: value for value in graph.value_info}
        self._outputs = {value.name for value in graph.output}
        self._producers: dict[str, int] = {}
        live = set(self._inputs)
        for at, node in enumerate(graph.node):
            if any(tensor in live for tensor in node.input):
                live.update(tensor for tensor in node.output if tensor)
                self._producers.update((tensor, at) for tensor in node.output if tensor)
        self._live = sorted(set(self._producers.values()))
        self._readers: dict[str, set[int]] = {}
        for at in self._live:
            for tensor in graph.node[at].input:
                self._readers.setdefault(tensor, set()).add(at)

    def cuts(self, crossing_max: int) -> list[Cut]:
        """Every cut along the order of the nodes across which at most so many tensors go, each with a type, a shape and rows on its first axis."""
        found: list[Cut] = []
        for count in range(1, len(self._live)):
            nodes = frozenset(self._live[:count])
            crossing = self._crossing(nodes)
            if 0 < len(crossing) <= crossing_max and not any(self._unfit(tensor) for tensor in crossing):
                if found and found[-1].tensors == crossing:
                    found.pop()
                found.append(self._cut(nodes, crossing))
        return found

    def cut_at(self, tensors: Iterable[str], after: Cut | None = None) -> Cut:
        """The cut behind what computes these tensors (and behind `after`); whatever else crosses there is carried too. Raises ModelRefused."""
        wanted = list(tensors)
        for tensor in wanted:
            if self.renamed(tensor) not in self._producers:
                raise ModelRefused(f"{self.name}: no tensor {tensor!r} is computed from the inputs; some that are: {self._shown()}")
        nodes = self._before([self.renamed(tensor) for tensor in wanted]) | (after.nodes_before if after else frozenset())
        crossing = self._crossing(nodes)
        if len(nodes) == len(self._live) or not crossing:
            raise ModelRefused(f"{self.name}: nothing is left to compute behind {', '.join(wanted)}")
        if after is not None and len(nodes) == len(after.nodes_before):
            raise ModelRefused(f"{self.name}: nothing is computed between {', '.join(after.tensors)} and {', '.join(wanted)}")
        for tensor in crossing:
            reason = self._unfit(tensor)
            if reason:
                raise ModelRefused(f"{self.name}: {tensor!r} crosses the cut at {', '.join(wanted)}, but {reason}")
        return self._cut(nodes, crossing)

    def parts(self, cuts: Sequence[Cut]) -> list[onnx.ModelProto]:
        """One model for each part; `cuts` ascend."""
        extractor = Extractor(self._model)
        found: list[onnx.ModelProto] = []
        before: frozenset[int] = frozenset()
        for nodes in (*(cut.nodes_before for cut in cuts), frozenset(self._live)):
            found.append(self._part(extractor, before, nodes))
            before = nodes
        return found

    def prefix(self, cut: Cut) -> onnx.ModelProto:
        """The model up to a cut."""
        return self._part(Extractor(self._model), frozenset(), cut.nodes_before)

    def renamed(self, tensor: str) -> str:
        """What a tensor of the file is called here."""
        return self._renamings.get(tensor, tensor)

    def original(self, tensor: str) -> str:
        """What a tensor is called in the file."""
        return next((old for old, new in self._renamings.items() if new == tensor), tensor)

    def _part(self, extractor: Extractor, before: frozenset[int], nodes: frozenset[int]) -> onnx.ModelProto:
        mine = nodes - before
        read = dict.fromkeys(tensor for at in sorted(mine) for tensor in self._model.graph.node[at].input)
        inputs = [tensor for tensor in read if tensor in self._inputs or self._producers.get(tensor, -1) in before]
        outputs = self._crossing(nodes, mine) if len(nodes) < len(self._live) else [value.name for value in self._model.graph.output]
        try:
            part = extractor.extract_model(inputs, list(outputs))
        except ValueError as error:
            raise ModelRefused(f"{self.name}: cannot be cut: {error}") from None
        del part.graph.value_info[:]
        part.producer_name = self._model.producer_name
        return part

    def _crossing(self, nodes: frozenset[int], of: frozenset[int] | None = None) -> tuple[str, ...]:
        """Tensors computed inside (by `of`, where given) and read or answered outside."""
        found: list[str] = []
        for tensor, at in self._producers.items():
            if at in (of or nodes) and (tensor in self._outputs or any(reader not in nodes for reader in self._readers.get(tensor, ()))):
                found.append(tensor)
        return tuple(found)

    def _before(self, tensors: Sequence[str]) -> frozenset[int]:
        found: set[int] = set()
        waiting = [self._producers[tensor] for tensor in tensors]
        while waiting:
            at = waiting.pop()
            if at not in found:
                found.add(at)
                waiting.extend(self._producers[tensor] for tensor in self._model.graph.node[at].input if tensor in self._producers)
        return frozenset(found)

    def _cut(self, nodes: frozenset[int], crossing: tuple[str, ...]) -> Cut:
        quantised = all(self._model.graph.node[self._producers[tensor]].op_type == "QuantizeLinear" for tensor in crossing)
        return Cut(nodes, crossing, sum(self._row_bytes(tensor) for tensor in crossing), quantised)

    def _row_bytes(self, tensor: str) -> int:
        spec = self._spec(tensor)
        size = 1 if DATATYPES[spec.datatype] is BYTES else DATATYPES[spec.datatype].dtype.itemsize
        return size * elements_of([_FREE_AXIS if axis == -1 else axis for axis in spec.shape[1:]])

    def _spec(self, tensor: str) -> TensorSpec:
        single = onnx.ModelProto()
        single.graph.output.append(self._types[tensor])
        return signature_of(single, self.name).outputs[0]

    def _unfit(self, tensor: str) -> str:
        """Why a tensor cannot travel between stages; empty where it can."""
        if tensor in self._outputs:
            return "it is an output of the model"
        if tensor not in self._types:
            return "its type and shape cannot be inferred"
        try:
            rows = self._spec(tensor).shape[0]
        except ModelRefused as refused:
            return str(refused).partition(" ")[2]
        expected = self.signature.inputs[0].shape[0]
        return "" if rows in (-1, expected) and not (rows == -1 and expected != -1) else "its first axis does not count rows"

    def _shown(self) -> str:
        names = [self.original(tensor) for tensor in self._producers]
        step = max(1, len(names) // _SHOWN_MAX)
        return ", ".join(names[::step][:_SHOWN_MAX])


def tensor_specs(part: onnx.ModelProto, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) of a part, rows free."""
    signature = signature_of(part, name)
    return signature.inputs, signature.outputs


def _prepared(model: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy that can be cut, and old names of tensors with their new ones.

    Shapes are inferred, inner tensors have names that graphs can state, and every output is computed by the last part.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        raise ModelRefused(f"{name}: models with control flow (If, Loop, Scan) cannot be cut")
    if model.graph.sparse_initializer:
        raise ModelRefused(f"{name}: models with sparse weights cannot be cut")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.quantization_annotation[:]
    _compute_outputs_last(copy.graph)
    inferred = shape_inference.infer_shapes(copy, data_prop=True)
    _free_rows(inferred, name)
    return inferred, _rename(inferred)


def _compute_outputs_last(graph: onnx.GraphProto) -> None:
    """An output computed early, or read again inside, would have to pass through the parts behind it.

    An Identity at the end makes it cross like any other tensor.
    """
    if len(graph.output) == 1 and not any(graph.output[0].name in node.input for node in graph.node):
        return
    taken = {tensor for node in graph.node for tensor in (*node.input, *node.output)}
    for value in graph.output:
        inner = _unused(f"{value.name}_inside", taken)
        for node in graph.node:
            for tensors in (node.input, node.output):
                for at, tensor in enumerate(tensors):
                    if tensor == value.name:
                        tensors[at] = inner
        graph.node.append(helper.make_node("Identity", [inner], [value.name], name=f"{inner}_answered"))


def _free_rows(model: onnx.ModelProto, name: str) -> None:
    """Where inference lost the name of the rows' axis (behind a Reshape to -1), it gets it back; a check of the parts at several sizes follows."""
    signature = signature_of(model, name)
    rows = {tensor.shape[0] for tensor in signature.inputs}
    if len(rows) != 1:
        raise ModelRefused(f"{name}: its inputs count different rows ({', '.join(map(str, sorted(rows)))})" if rows else f"{name}: it has no input")
    first = next(value for value in model.graph.input if value.name == signature.inputs[0].name)
    axis = first.type.tensor_type.shape.dim[0]
    for value in model.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].CopyFrom(axis)


def _rename(model: onnx.ModelProto) -> dict[str, str]:
    """Renames inner tensors that are computed; returns what they were called with what they are called now."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    taken = kept | {tensor for node in graph.node for tensor in node.output}
    renamed: dict[str, str] = {}
    for node in graph.node:
        for tensor in node.output:
            if tensor and tensor not in kept and not SAFE_NAME.match(tensor):
                renamed[tensor] = _unused(f"t{len(renamed)}_{re.sub(r'[^A-Za-z0-9]+', '_', tensor).strip('_')}"[:96], taken)
    for node in graph.node:
        for tensors in (node.input, node.output):
            for at, tensor in enumerate(tensors):
                tensors[at] = renamed.get(tensor, tensor)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    return renamed


def _unused(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it; taken from now on."""
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free

"""Whether what one stage gives fits what the next one takes: names, datatypes, shapes."""

from __future__ import annotations

from collections.abc import Iterator

from graphs.declared import Declared, End, Given
from graphs.errors import Problem
from graphs.names import Sight, near, split_reference
from schemas.catalog import TensorSpec, VariantSpec
from schemas.graph import GraphSpec, StageNode


def reference_problems(declared: Declared, sight: Sight, reference: str) -> Iterator[str]:
    """Whether the node of a reference (which there is) gives the tensor."""
    _, tensor = split_reference(reference, sight)
    for end in declared.source(reference, sight):
        if end.tensors is not None and tensor not in end.tensors:
            yield f"node {end.path!r} gives no tensor {tensor!r}{near(tensor, end.tensors)}"


def answer_problems(declared: Declared, sight: Sight, spec: GraphSpec) -> Iterator[Problem]:
    """Whether the output gives what the answer is made of."""
    for answer, tensor in spec.outputs.items():
        for end in declared.ends(spec.output, sight):
            if end.tensors is not None and tensor not in end.tensors:
                yield Problem((), f"outputs.{answer}", f"node {end.path!r} gives no tensor {tensor!r}{near(tensor, end.tensors)}")


def input_problems(declared: Declared, sight: Sight, spec: StageNode) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of a stage's inputs, against each variant that may run it."""
    told: set[str] = set()
    for variant in declared.variants(spec):
        if variant.inputs:
            for key, message in _variant_problems(declared, sight, spec, variant):
                if key not in told:
                    told.add(key)
                    yield key, message


def _variant_problems(declared: Declared, sight: Sight, spec: StageNode, variant: VariantSpec) -> Iterator[tuple[str, str]]:
    wanted = {tensor.name: tensor for tensor in variant.inputs}
    key = f"{spec.task}/{variant.name}"
    for name in wanted:
        if name not in spec.inputs:
            yield "inputs", f"{key} needs the input {name!r}, which nothing gives{near(name, spec.inputs) if spec.inputs else ''}"
    for name, reference in spec.inputs.items():
        if name not in wanted:
            yield f"inputs.{name}", f"{key} has no input {name!r}{near(name, wanted)}"
        else:
            problem = _misfit(declared.source(reference, sight), split_reference(reference, sight)[1], wanted[name], key)
            if problem:
                yield f"inputs.{name}", f"{reference}: {problem}"


def _misfit(ends: list[End], tensor: str, wanted: TensorSpec, key: str) -> str:
    for end in ends:
        for given in (end.tensors or {}).get(tensor, []):
            if not _fits(given, wanted):
                shown = f"{given.spec.datatype}{list(given.spec.shape)}"
                return f"{given.by} gives {shown}, {key} takes {wanted.datatype}{list(wanted.shape)} as {wanted.name!r}"
    return ""


def _fits(given: Given, wanted: TensorSpec) -> bool:
    if not given.sure:
        return True
    ours, theirs = given.spec.shape, wanted.shape
    if given.spec.datatype != wanted.datatype or len(ours) != len(theirs):
        return False
    return all(one == other or -1 in (one, other) for one, other in zip(ours, theirs, strict=True))

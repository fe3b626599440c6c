"""Which tensors a node of a graph gives, as far as the catalog's tasks declare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from graphs.combiners import ANSWERED
from graphs.fanout import ALL, MISSING
from graphs.names import Sight, split_reference
from schemas.catalog import TaskSpec, TensorSpec, VariantSpec
from schemas.graph import REQUEST, ROW, CanaryNode, EnsembleNode, ForEachNode, Node, ShadowNode, SplitterNode, StageNode, SwitchNode


class Given(NamedTuple):
    """A tensor that a node gives: as some variant declares it; `sure`: its datatype and shape are that."""

    spec: TensorSpec
    sure: bool
    by: str
    """Who declares it."""


class End(NamedTuple):
    """A node that a name can come to stand for, and what it gives; None: nobody declares that."""

    path: str
    tensors: dict[str, list[Given]] | None


class Declared:
    """Looks outputs up in the catalog; whatever is not there or goes in circles is unknown."""

    def __init__(self, tasks: Mapping[str, TaskSpec]) -> None:
        self._tasks = tasks

    def variants(self, spec: StageNode) -> list[VariantSpec]:
        """The variants that may run a stage."""
        task = self._tasks.get(spec.task)
        return [variant for variant in task.variants if not spec.variants or variant.name in spec.variants] if task else []

    def ends(self, name: str, sight: Sight, seen: frozenset[tuple[str, ...]] = frozenset()) -> list[End]:
        """What the node of this name can turn out to be; aliases are followed."""
        found = sight.find(name)
        if found is None:
            return []
        _, level = found
        path = (*level.path, name)
        if path in seen:
            return []
        spec, seen = level.nodes[name], seen | {path}
        aliases = branch_names(spec)
        if aliases:
            return [end for alias in dict.fromkeys(aliases) for end in self.ends(alias, level, seen)]
        return [End("/".join(path), self._tensors(spec, level, path, seen))]

    def source(self, reference: str, sight: Sight) -> list[End]:
        """What a reference can look at; of the request nothing is known."""
        node, _ = split_reference(reference, sight)
        if node == REQUEST:
            return []
        if node == ROW:
            return self._row(reference, sight)
        return self.ends(node, sight)

    def _tensors(self, spec: Node, sight: Sight, path: tuple[str, ...], seen: frozenset[tuple[str, ...]]) -> dict[str, list[Given]] | None:
        if isinstance(spec, StageNode):
            return self._of_stage(spec)
        if isinstance(spec, EnsembleNode):
            return self._of_ensemble(spec, sight, seen)
        assert isinstance(spec, ForEachNode)
        return self._of_for_each(spec, Sight(spec.nodes, sight, path, spec), seen)

    def _of_stage(self, spec: StageNode) -> dict[str, list[Given]] | None:
        variants = self.variants(spec)
        if not variants or any(not variant.outputs for variant in variants):
            return None
        tensors: dict[str, list[Given]] = {}
        for variant in variants:
            for output in variant.outputs:
                tensors.setdefault(output.name, []).append(Given(output, sure=True, by=f"{spec.task}/{variant.name}"))
        return {name: given for name, given in tensors.items() if len(given) == len(variants)}

    def _of_ensemble(self, spec: EnsembleNode, sight: Sight, seen: frozenset[tuple[str, ...]]) -> dict[str, list[Given]] | None:
        ends = [end for member in spec.members for end in self.ends(member, sight, seen)]
        if not ends or any(end.tensors is None for end in ends):
            return None
        known = [end.tensors for end in ends if end.tensors is not None]
        names = spec.tensors or tuple(name for name in known[0] if all(name in tensors for tensors in known))
        # What a combiner makes of its tensors is the combiner's business.
        merged = {name: [Given(known[0][name][0].spec, sure=False, by=spec.combiner)] for name in names if name in known[0]}
        return merged | {ANSWERED: [Given(TensorSpec(ANSWERED, "INT64", (-1, len(spec.members))), sure=False, by=spec.combiner)]}

    def _of_for_each(self, spec: ForEachNode, inner: Sight, seen: frozenset[tuple[str, ...]]) -> dict[str, list[Given]] | None:
        ends = self.ends(spec.output, inner, seen)
        if not ends or any(end.tensors is None for end in ends):
            return None
        known = [end.tensors for end in ends if end.tensors is not None]
        joined = {
            name: [given._replace(spec=_reshaped(given.spec, name, -1)) for tensors in known for given in tensors[name]]
            for name in known[0]
            if all(name in tensors for tensors in known)
        }
        if spec.policy != ALL:
            joined[MISSING] = [Given(TensorSpec(MISSING, "INT64", (-1,)), sure=True, by="for_each")]
        return joined

    def _row(self, reference: str, sight: Sight) -> list[End]:
        _, name = split_reference(reference, sight)
        for level in sight.levels():
            if level.owner is not None and level.parent is not None and name in level.owner.over:
                whole = level.owner.over[name]
                _, tensor = split_reference(whole, level.parent)
                return [_row_of(end, name, tensor) for end in self.source(whole, level.parent)]
        return []


def _row_of(end: End, name: str, tensor: str) -> End:
    if end.tensors is None or tensor not in end.tensors:
        return End(end.path, None)
    return End(end.path, {name: [given._replace(spec=_reshaped(given.spec, name, 1)) for given in end.tensors[tensor]]})


def _reshaped(spec: TensorSpec, name: str, rows: int) -> TensorSpec:
    return TensorSpec(name, spec.datatype, (rows, *spec.shape[1:]))


def branch_names(spec: Node) -> list[str]:
    """The nodes that this one may stand for."""
    if isinstance(spec, SwitchNode):
        return [*(case.then for case in spec.cases), spec.otherwise]
    if isinstance(spec, SplitterNode):
        return [branch.then for branch in spec.branches]
    if isinstance(spec, CanaryNode):
        return [spec.stable, spec.candidate]
    return [spec.primary] if isinstance(spec, ShadowNode) else []


def empty_tensors(ends: list[End]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Datatype and shape of each tensor of a join without rows; free axes have no elements."""
    known = next((end.tensors for end in ends if end.tensors), None) or {}
    return {
        name: (given[0].spec.datatype, (0, *(max(axis, 0) for axis in given[0].spec.shape[1:]))) for name, given in known.items() if name != MISSING
    }

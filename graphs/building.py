"""Turns the spec of a graph that is known to be sound into nodes that know each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import msgspec

from graphs.ceilings import Ceilings
from graphs.combiners import ANSWERED
from graphs.conditions import Condition
from graphs.declared import Declared, empty_tensors
from graphs.fanout import MISSING
from graphs.names import Sight, split_reference
from graphs.node import Case, CopyNode, EnsembleNode, ForEachNode, Link, Node, ShadowNode, SinkNode, Source, SplitterNode, StageNode, SwitchNode
from graphs.stage import COMBINE_TASK, COMBINE_VARIANT, Stage
from graphs.state import product
from graphs.usage import main_nodes, used_tensors
from schemas import graph as spec_of
from schemas.catalog import TaskSpec, variant_key
from schemas.graph import REQUEST, ROW, GraphSpec

_encode = msgspec.msgpack.Encoder().encode


class Builder:
    """One graph under construction."""

    def __init__(self, spec: GraphSpec, tasks: Mapping[str, TaskSpec], *, shadows: bool = True) -> None:
        """Without `shadows`: a shadow is another name of its primary."""
        self._shadows = shadows
        self._spec = spec
        self._tasks = tasks
        self.nodes: dict[str, Node] = {}
        self.stages: dict[str, Stage] = {}
        self.fields: set[str] = set()
        self.request_tensors: set[str] = set()
        self.rows_max: dict[str, int] = {}
        """By path of a for_each."""
        self.uses: dict[Node, frozenset[str] | None] = {}
        """Tensors of a node that somebody uses; None: all."""
        self._levels: dict[tuple[str, ...], dict[str, Node]] = {}
        self._specs: list[tuple[Node, spec_of.Node, Sight]] = []

    def build(self) -> None:
        """Nodes first, then what they need of each other, then what follows from that."""
        sight = Sight(self._spec.nodes)
        self.nodes = self._create(sight)
        for node, spec, seen in self._specs:
            self._connect(node, spec, seen)
        every = [node for node, _, _ in self._specs]
        for node in every:
            if isinstance(node, ForEachNode):
                node.outer = tuple(dict.fromkeys(_outer_links(node)))
        self._know_consumers(every)
        output = self.nodes[self._spec.output]
        main_nodes(output)
        self.uses = used_tensors(self.nodes, output, frozenset(self._spec.outputs.values()) or None)
        for node, spec, seen in self._specs:
            self._give_stage(node, spec, seen)
        self._know_ceilings(every)

    def _know_ceilings(self, nodes: list[Node]) -> None:
        """Measured combinations say something else than products do: then every branch is open to every floor."""
        ceilings = Ceilings({path: self._best_of(stage) for path, stage in self.stages.items()})
        for node in nodes:
            if isinstance(node, SplitterNode):
                open_to_all = bool(self._spec.measured)
                node.ceilings = tuple(1.0 if open_to_all else product(ceilings.of(link.node)) for link in node.branches)

    def _best_of(self, stage: Stage) -> float:
        task = self._tasks.get(stage.task)
        found = [variant.accuracy for variant in task.variants if variant_key(task.name, variant.name) in stage.variants] if task else []
        return max(found, default=1.0)

    def _create(self, sight: Sight) -> dict[str, Node]:
        level = self._levels[sight.path] = {}
        others = {} if self._shadows else {name: spec.primary for name, spec in sight.nodes.items() if _is_shadow_beside(spec, sight)}
        for name, spec in sight.nodes.items():
            if name in others:
                continue
            path = (*sight.path, name)
            node = level[name] = _KINDS[type(spec)](name, "/".join(path))
            self._specs.append((node, spec, sight))
            if isinstance(spec, spec_of.ForEachNode) and isinstance(node, ForEachNode):
                self.rows_max[node.path] = spec.rows_max
                node.inner = self._create(Sight(spec.nodes, sight, path, spec))
        for name in others:
            primary = name
            while primary in others:
                primary = others[primary]
            level[name] = level[primary]
        return level

    def _connect(self, node: Node, spec: spec_of.Node, sight: Sight) -> None:
        match node, spec:
            case StageNode(), spec_of.StageNode():
                self._connect_stage(node, spec, sight)
            case SwitchNode(), spec_of.SwitchNode():
                node.cases = tuple(self._case(case, sight) for case in spec.cases)
                node.otherwise = self._link(spec.otherwise, sight)
            case SplitterNode(), spec_of.SplitterNode():
                self._split(node, [(branch.then, branch.weight) for branch in spec.branches], spec.sticky, sight)
            case SplitterNode(), spec_of.CanaryNode():
                self._split(node, [(spec.candidate, spec.percent), (spec.stable, 100.0 - spec.percent)], spec.sticky, sight)
            case ShadowNode(), spec_of.ShadowNode():
                node.primary, node.share = self._link(spec.primary, sight), spec.share
                node.copy = CopyNode(node.name, node.path, copy=self._link(spec.copy, sight))
            case EnsembleNode(), spec_of.EnsembleNode():
                node.members = tuple(self._link(member, sight) for member in spec.members)
                node.wait, node.by_deadline, node.tensors = spec.wait, spec.by_deadline, spec.tensors
            case ForEachNode(), spec_of.ForEachNode():
                self._connect_for_each(node, spec, sight)
            case _:
                raise AssertionError(node)

    def _connect_stage(self, node: StageNode, spec: spec_of.StageNode, sight: Sight) -> None:
        sources = {name: self._source(reference, sight) for name, reference in spec.inputs.items()}
        node.request_inputs = {name: source.tensor for name, source in sources.items() if source.up < 0}
        node.tensors = tuple((name, source) for name, source in sources.items() if source.up >= 0)

    def _connect_for_each(self, node: ForEachNode, spec: spec_of.ForEachNode, sight: Sight) -> None:
        node.over = tuple((name, self._source(reference, sight)) for name, reference in spec.over.items())
        self.request_tensors |= {source.tensor for _, source in node.over if source.up < 0}
        inner = Sight(spec.nodes, sight, (*sight.path, node.name), spec)
        node.sink = SinkNode("", node.path, link=self._link(spec.output, inner))
        node.empty = empty_tensors(Declared(self._tasks).ends(spec.output, inner))
        node.rows_max, node.policy, node.least = spec.rows_max, spec.policy, spec.least

    def _case(self, case: spec_of.Case, sight: Sight) -> Case:
        condition = Condition(case.when, sight.known)
        fields = tuple(reference for reference in condition.references if reference.field)
        sources = tuple(
            (reference, self._source(f"{reference.node}.{reference.tensor}", sight)) for reference in condition.references if not reference.field
        )
        self.fields |= {reference.tensor for reference in fields}
        self.request_tensors |= {source.tensor for _, source in sources if source.up < 0}
        return Case(condition, sources, fields, self._link(case.then, sight))

    def _split(self, node: SplitterNode, branches: list[tuple[str, float]], sticky: str, sight: Sight) -> None:
        whole = sum(weight for _, weight in branches)
        at, below = 0.0, list[float]()
        for _, weight in branches:
            at += weight
            below.append(at / whole)
        node.branches = tuple(self._link(name, sight) for name, _ in branches)
        node.below, node.sticky = tuple(below), sticky
        if sticky not in ("id", "tenant"):
            self.fields.add(sticky)

    def _link(self, name: str, sight: Sight) -> Link:
        found = sight.find(name)
        assert found is not None, name
        up, level = found
        return Link(up, self._levels[level.path][name])

    def _source(self, reference: str, sight: Sight) -> Source:
        node, tensor = split_reference(reference, sight)
        if node == REQUEST:
            return Source(None, -1, tensor)
        if node == ROW:
            up = next(up for up, names in enumerate(sight.row_tensors()) if tensor in names)
            return Source(None, up, tensor)
        link = self._link(node, sight)
        return Source(link, link.up, tensor)

    @staticmethod
    def _know_consumers(nodes: list[Node]) -> None:
        for node in nodes:
            for link in node.links():
                if not link.up and node not in link.node.consumers:
                    link.node.consumers.append(node)
            if isinstance(node, ShadowNode) and node.copy is not None and node.copy.copy is not None:
                node.copy.copy.node.consumers.append(node.copy)

    def _give_stage(self, node: Node, spec: spec_of.Node, sight: Sight) -> None:
        over = tuple("/".join(level.path) for level in reversed(sight.levels()) if level.owner is not None)
        uses = self.uses.get(node, frozenset())
        outputs = None if uses is None else tuple(sorted(uses))
        if isinstance(node, ForEachNode):
            node.uses = None if outputs is None else tuple(name for name in outputs if name != MISSING)
        if isinstance(node, EnsembleNode) and not node.tensors and outputs is not None:
            node.tensors = tuple(name for name in outputs if name != ANSWERED)
        topic, answers = node.path.replace("/", "."), self._spec.outputs
        if isinstance(node, StageNode) and isinstance(spec, spec_of.StageNode):
            task = self._tasks[spec.task]
            names = spec.variants or tuple(variant.name for variant in task.variants)
            keys = tuple(variant_key(task.name, name) for name in names)
            model = any(not variant.call for variant in task.variants if variant.name in names)
            parameters = _encode(spec.parameters) if spec.parameters else b""
            stage = Stage(
                node.path, topic, task.name, keys, parameters, dict(spec.inputs), outputs, answers, model=model, over=over, shadow=not node.main
            )
        elif isinstance(node, EnsembleNode) and isinstance(spec, spec_of.EnsembleNode):
            parameters = _encode({"combiner": spec.combiner, "weights": spec.weights, "members": spec.members})
            stage = Stage(
                node.path, topic, COMBINE_TASK, (COMBINE_VARIANT,), parameters, {}, outputs, answers, model=False, over=over, shadow=not node.main
            )
        else:
            return
        node.stage = self.stages[node.path] = stage


def _is_shadow_beside(spec: spec_of.Node, sight: Sight) -> TypeGuard[spec_of.ShadowNode]:
    """Whether it is a shadow of a node of its own level."""
    return isinstance(spec, spec_of.ShadowNode) and spec.primary in sight.nodes


def _outer_links(node: ForEachNode) -> Iterator[Link]:
    """What the inside needs of outside, from the for_each's own level."""
    links = [link for inner in node.inner.values() for link in inner.links()] + (node.sink.links() if node.sink else [])
    for inner in node.inner.values():
        if isinstance(inner, ForEachNode):
            links += [Link(link.up + 1, link.node) for link in _outer_links(inner)]
    yield from (Link(link.up - 1, link.node) for link in links if link.up)


_KINDS: dict[type[spec_of.Node], type[Node]] = {
    spec_of.StageNode: StageNode,
    spec_of.SwitchNode: SwitchNode,
    spec_of.SplitterNode: SplitterNode,
    spec_of.CanaryNode: SplitterNode,
    spec_of.ShadowNode: ShadowNode,
    spec_of.EnsembleNode: EnsembleNode,
    spec_of.ForEachNode: ForEachNode,
}

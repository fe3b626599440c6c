"""Which nodes the answer can need, and which of a node's tensors somebody uses."""

from __future__ import annotations

from collections.abc import Mapping

from graphs.combiners import ANSWERED
from graphs.fanout import MISSING
from graphs.node import EnsembleNode, ForEachNode, Node, ShadowNode, SplitterNode, StageNode, SwitchNode

Uses = frozenset[str] | None
"""None: all tensors."""


_OWN: dict[type[Node], frozenset[str]] = {EnsembleNode: frozenset({ANSWERED}), ForEachNode: frozenset({MISSING})}
"""Tensors that come from the node itself."""


def main_nodes(output: Node) -> None:
    """Marks what the answer can need: everything but what only copies of shadows lead to."""
    left = [output]
    while left:
        node = left.pop()
        if not node.main:
            node.main = True
            left += [link.node for link in node.links()]
            if isinstance(node, ForEachNode):
                # All of the inside that the rows' result can need.
                left += [link.node for link in node.sink.links()] if node.sink else []


def used_tensors(nodes: Mapping[str, Node], output: Node, answers: Uses) -> dict[Node, Uses]:
    """For each node that is used: the tensors that are; the output's are `answers`."""
    uses: dict[Node, Uses] = {}
    _add(uses, output, answers)
    for node in _all(nodes):
        for used, tensors in _own_uses(node):
            _add(uses, used, tensors)
    changed = True
    while changed:
        changed = False
        for node in _all(nodes):
            for other in _passed_on(node) if node in uses else ():
                tensors = uses[node]
                changed |= _add(uses, other, None if tensors is None else tensors - _OWN.get(type(node), frozenset()))
    return uses


def _all(nodes: Mapping[str, Node]) -> list[Node]:
    inner = [inner for node in nodes.values() if isinstance(node, ForEachNode) for inner in _all(node.inner)]
    return [*nodes.values(), *inner]


def _add(uses: dict[Node, Uses], node: Node, tensors: Uses) -> bool:
    before = uses.get(node, frozenset())
    after = None if before is None or tensors is None else before | tensors
    uses[node] = after
    return after != before


def _own_uses(node: Node) -> list[tuple[Node, Uses]]:
    """What a node itself looks at or hands to a worker."""
    if isinstance(node, StageNode):
        return [(source.link.node, frozenset({source.tensor})) for _, source in node.tensors if source.link]
    if isinstance(node, SwitchNode):
        return [(source.link.node, frozenset({source.tensor})) for case in node.cases for _, source in case.sources if source.link]
    if isinstance(node, EnsembleNode):
        return [(link.node, frozenset(node.tensors)) for link in node.members]
    if isinstance(node, ForEachNode):
        return [(source.link.node, frozenset({source.tensor})) for _, source in node.over if source.link]
    if isinstance(node, ShadowNode) and node.copy:
        return [(link.node, None) for link in node.copy.links()]
    return []


def _passed_on(node: Node) -> list[Node]:
    """Nodes whose tensors are this node's."""
    if isinstance(node, SwitchNode):
        return [case.then.node for case in node.cases] + ([node.otherwise.node] if node.otherwise else [])
    if isinstance(node, SplitterNode | ShadowNode) or (isinstance(node, EnsembleNode) and not node.tensors):
        return [link.node for link in node.links()]
    if isinstance(node, ForEachNode) and node.sink:
        return [link.node for link in node.sink.links()]
    return []

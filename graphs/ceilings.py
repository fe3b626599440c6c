"""How accurate each node can be at best: a branch of a split is taken only by requests whose floor it can keep."""

from __future__ import annotations

from collections.abc import Mapping

from graphs.node import EnsembleNode, ForEachNode, Node, ShadowNode, SplitterNode, StageNode, SwitchNode
from graphs.state import product

Factors = Mapping[str, float]
"""Best accuracy of each stage that counts, by path: what two inputs share counts once."""


class Ceilings:
    """Upper bounds from the variants' declared accuracies; `best` by stage path."""

    def __init__(self, best: Mapping[str, float]) -> None:
        self._best = best
        self._known: dict[Node, Factors] = {}

    def of(self, node: Node) -> Factors:
        """The factors of a node's most accurate way."""
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self._found(node)
        return found

    def _found(self, node: Node) -> Factors:
        match node:
            case SwitchNode():
                branches = [case.then for case in node.cases] + ([node.otherwise] if node.otherwise else [])
                return max((self.of(link.node) for link in branches), key=product)
            case SplitterNode():
                return max((self.of(link.node) for link in node.branches), key=product)
            case ShadowNode():
                return self.of(node.primary.node) if node.primary else {}
            case EnsembleNode():
                members = [self.of(link.node) for link in node.members]
                return {node.path: sum(product(member) for member in members) / len(members)} if members else {}
            case _:
                links = [source.link for _, source in node.over if source.link] if isinstance(node, ForEachNode) else node.links()
                factors = {path: best for link in links for path, best in self.of(link.node).items()}
                if isinstance(node, ForEachNode) and node.sink and node.sink.link:
                    factors |= self.of(node.sink.link.node)
                if isinstance(node, StageNode):
                    factors[node.path] = self._best.get(node.path, 1.0)
                return factors

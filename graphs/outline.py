"""A graph laid flat for planning: every node that the answer can need, in an order in which each comes after what it needs."""

from __future__ import annotations

from typing import NamedTuple

from graphs.node import EnsembleNode, ForEachNode, Link, Node, ShadowNode, SplitterNode, StageNode, SwitchNode


class Edge(NamedTuple):
    """`node` may need `other`, and asks for it when the nodes in `after` are there."""

    other: Node
    after: frozenset[Node]


class Outline:
    """Levels make no difference here: inside a for_each one row stands for all."""

    def __init__(self, output: Node) -> None:
        self.output = output
        self.owner: dict[Node, ForEachNode | None] = {}
        """The for_each around a node."""
        self.edges: dict[Node, list[Edge]] = {}
        self.order: list[Node] = []
        self._visit(output, None)
        self.gates: dict[Node, frozenset[Node]] = self._gates()
        """Nodes that are there before anybody asks for a node."""
        self.line: frozenset[Node] = self._line()
        """Stages from which nothing but one stage after the other leads to the answer."""
        self.splits = any(isinstance(node, SplitterNode) for node in self.order)
        """Not every request needs the same nodes, and which it needs is known as soon as it has started."""
        self.optional: frozenset[Node] = frozenset(self.order) - self._certain()
        """Nodes that a switch may leave out."""
        self.answer_hop = any(isinstance(node, ForEachNode) or _shared(node) for node in _ends(output))
        """The answer comes from the dispatcher, which has to be told of the last stage first."""

    def _visit(self, node: Node, owner: ForEachNode | None) -> None:
        """Depth first, so that a node comes after its needs. Graphs have no cycles here."""
        if node in self.edges:
            return
        self.owner[node] = owner
        edges = self.edges[node] = _edges(node)
        inner = {link.node for link in node.sink.links()} if isinstance(node, ForEachNode) and node.sink else set[Node]()
        for edge in edges:
            within = node if edge.other in inner and isinstance(node, ForEachNode) else owner
            self._visit(edge.other, self._home(edge.other, within))
        self.order.append(node)

    def _home(self, node: Node, within: ForEachNode | None) -> ForEachNode | None:
        """The for_each that a node stands in: `within`, or one further out."""
        while within is not None and within.inner.get(node.name) is not node:
            within = self.owner[within]
        return within

    def _gates(self) -> dict[Node, frozenset[Node]]:
        gates: dict[Node, frozenset[Node]] = {self.output: frozenset()}
        for node in reversed(self.order):
            for edge in self.edges[node]:
                gate = gates[node] | edge.after
                gates[edge.other] = gates[edge.other] & gate if edge.other in gates else gate
        return gates

    def _line(self) -> frozenset[Node]:
        line: set[Node] = set()
        node = self.output
        while isinstance(node, StageNode):
            line.add(node)
            if len(self.edges[node]) != 1:
                break
            node = self.edges[node][0].other
        return frozenset(line)

    def _certain(self) -> set[Node]:
        """Nodes that every request needs."""
        certain = {self.output}
        for node in reversed(self.order):
            if node in certain:
                certain |= {edge.other for edge in self.edges[node] if not (isinstance(node, SwitchNode) and _is_branch(node, edge.other))}
        return certain


def _edges(node: Node) -> list[Edge]:
    none: frozenset[Node] = frozenset()
    if isinstance(node, SwitchNode):
        return _switch_edges(node)
    if isinstance(node, ForEachNode):
        over = [source.link.node for _, source in node.over if source.link]
        rows = frozenset(over)
        return [Edge(other, none) for other in over] + [Edge(link.node, rows) for link in (node.sink.links() if node.sink else [])]
    assert isinstance(node, StageNode | EnsembleNode | SplitterNode | ShadowNode)
    return [Edge(link.node, none) for link in node.links()]


def _switch_edges(node: SwitchNode) -> list[Edge]:
    edges: list[Edge] = []
    seen: frozenset[Node] = frozenset()
    for case in node.cases:
        looked_at = [source.link.node for _, source in case.sources if source.link]
        edges += [Edge(other, seen) for other in looked_at]
        seen |= frozenset(looked_at)
        edges.append(Edge(case.then.node, seen))
    assert node.otherwise is not None
    return [*edges, Edge(node.otherwise.node, seen)]


def branches(node: SwitchNode | SplitterNode) -> list[Link]:
    """The nodes that a switch or a splitter may become."""
    if isinstance(node, SplitterNode):
        return list(node.branches)
    assert node.otherwise is not None
    return [case.then for case in node.cases] + [node.otherwise]


def _is_branch(node: SwitchNode, other: Node) -> bool:
    looked_at = {source.link.node for case in node.cases for _, source in case.sources if source.link}
    return other not in looked_at and any(link.node is other for link in branches(node))


def _ends(node: Node) -> list[Node]:
    if isinstance(node, SwitchNode):
        return [end for link in branches(node) for end in _ends(link.node)]
    if isinstance(node, SplitterNode | ShadowNode):
        return [end for link in node.links() for end in _ends(link.node)]
    return [node]


def _shared(node: Node) -> bool:
    return sum(not isinstance(other, SwitchNode | SplitterNode | ShadowNode) or _looked_at(other, node) for other in node.consumers) > 0


def _looked_at(other: Node, node: Node) -> bool:
    return isinstance(other, SwitchNode) and any(source.link and source.link.node is node for case in other.cases for _, source in case.sources)

"""Where the canaries of a graph are, and by which stages an answer tells the arm that it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from graphs.canary import CANDIDATE, STABLE
from graphs.declared import branch_names
from schemas.graph import CanaryNode, EnsembleNode, ForEachNode, GraphSpec, Node, StageNode, SwitchNode

INSIDE = "/"
_WORDS = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class Arms(msgspec.Struct, frozen=True):
    """Paths of nodes that only one arm needs; those that both (or others) need tell nothing."""

    stable: frozenset[str]
    candidate: frozenset[str]

    def of(self, stages: Iterable[str]) -> str | None:
        """The arm that these stages (paths, with or without rows) belong to; None where they tell none, or both."""
        found = {arm for stage in stages for arm, nodes in ((STABLE, self.stable), (CANDIDATE, self.candidate)) if _within(stage, nodes)}
        return found.pop() if len(found) == 1 else None


def canaries(graph: GraphSpec) -> dict[str, CanaryNode]:
    """Every canary by its path, `lines/reader` inside a for_each."""
    return dict(_canaries(graph.nodes, ""))


def arms(graph: GraphSpec, path: str) -> Arms:
    """The arms of the canary at a path. Raises KeyError where there is none."""
    around, _, name = path.rpartition(INSIDE)
    nodes: Mapping[str, Node] = graph.nodes
    for outer in around.split(INSIDE) if around else ():
        node = nodes[outer]
        if not isinstance(node, ForEachNode):
            raise KeyError(path)
        nodes = node.nodes
    canary = nodes[name]
    if not isinstance(canary, CanaryNode):
        raise KeyError(path)
    prefix = f"{around}{INSIDE}" if around else ""
    stable, candidate = _reached(nodes, canary.stable), _reached(nodes, canary.candidate)
    return Arms(frozenset(prefix + name for name in stable - candidate), frozenset(prefix + name for name in candidate - stable))


def with_percent(graph: GraphSpec, path: str, percent: float) -> GraphSpec:
    """The graph with another share for a candidate. Raises KeyError where there is no canary at the path."""
    return msgspec.structs.replace(graph, nodes=_with_percent(graph.nodes, path.split(INSIDE), percent))


def _canaries(nodes: Mapping[str, Node], prefix: str) -> Iterator[tuple[str, CanaryNode]]:
    for name, node in nodes.items():
        if isinstance(node, CanaryNode):
            yield prefix + name, node
        elif isinstance(node, ForEachNode):
            yield from _canaries(node.nodes, f"{prefix}{name}{INSIDE}")


def _with_percent(nodes: Mapping[str, Node], path: list[str], percent: float) -> dict[str, Node]:
    name, inner = path[0], path[1:]
    node = nodes[name]
    if inner and isinstance(node, ForEachNode):
        node = msgspec.structs.replace(node, nodes=_with_percent(node.nodes, inner, percent))
    elif isinstance(node, CanaryNode) and not inner:
        node = msgspec.structs.replace(node, percent=percent)
    else:
        raise KeyError(name)
    return {**nodes, name: node}


def _within(stage: str, nodes: frozenset[str]) -> bool:
    """The stage itself, or a for_each around it, is one of the nodes."""
    path = stage.partition("#")[0] if INSIDE not in stage else INSIDE.join(part.partition("#")[0] for part in stage.split(INSIDE))
    while path:
        if path in nodes:
            return True
        path = path.rpartition(INSIDE)[0]
    return False


def _reached(nodes: Mapping[str, Node], start: str) -> set[str]:
    """Nodes of the same scope that a node needs, directly or through others, itself included."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in nodes and name not in found:
            found.add(name)
            waiting.extend(_needs(nodes[name], nodes))
    return found


def _needs(node: Node, nodes: Mapping[str, Node]) -> list[str]:
    if isinstance(node, StageNode):
        return [_node_of(reference, nodes) for reference in node.inputs.values()]
    if isinstance(node, SwitchNode):
        looked_at = [_node_of(word, nodes) for case in node.cases for word in _WORDS.findall(case.when)]
        return [*looked_at, *branch_names(node)]
    if isinstance(node, EnsembleNode):
        return list(node.members)
    if isinstance(node, ForEachNode):
        outer = [name for inner in node.nodes.values() for name in _needs(inner, nodes)]
        return [*(_node_of(reference, nodes) for reference in node.over.values()), *outer]
    return branch_names(node)


def _node_of(reference: str, nodes: Mapping[str, Node]) -> str:
    """The node of `node.tensor`; nodes of an endpoint that is called have dots in their names, so the longest name that fits is the node."""
    name = reference
    while name and name not in nodes:
        name = name.rpartition(".")[0]
    return name

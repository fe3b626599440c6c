"""What a graph is compiled as where it says more than its nodes: a canary that is judged by agreement has its candidate's answers compared."""

from __future__ import annotations

import msgspec

from schemas.graph import CanaryNode, GraphSpec, Node, ShadowNode

COMPARED = "compared"


def with_comparisons(spec: GraphSpec) -> GraphSpec:
    """Requests that a candidate answers run stable as a shadow too, whose answers in the taps are what agreement is counted from."""
    nodes: dict[str, Node] = dict(spec.nodes)
    for name, node in spec.nodes.items():
        if isinstance(node, CanaryNode) and node.guardrails.agreement is not None and node.percent > 0.0:
            compared = f"{name}.{COMPARED}"
            nodes[compared] = ShadowNode(primary=node.candidate, copy=node.stable)
            nodes[name] = msgspec.structs.replace(node, candidate=compared)
    return msgspec.structs.replace(spec, nodes=nodes) if len(nodes) > len(spec.nodes) else spec

"""How much there still is to run when a node has to go on by the deadline: the longest way from such a node to the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graphs.fanout import ALL
from graphs.node import EnsembleNode, ForEachNode, StageNode
from graphs.stage import Stage

if TYPE_CHECKING:
    from graphs.compiled import Graph


def way_to_the_answer_ms(graph: Graph, stage_ms: Callable[[Stage], float]) -> float:
    """Of the stages behind nodes that go on by the deadline, an ensemble's own merging included; 0 where there are none."""
    outline = graph.outline
    after_ms = dict.fromkeys(outline.order, 0.0)
    longest_ms = 0.0
    # Whoever needs a node comes before it.
    for node in reversed(outline.order):
        ends_ms = after_ms[node]
        if isinstance(node, StageNode | EnsembleNode) and node.stage is not None:
            ends_ms += stage_ms(node.stage)
        if (isinstance(node, EnsembleNode) and node.by_deadline) or (isinstance(node, ForEachNode) and node.policy != ALL):
            longest_ms = max(longest_ms, ends_ms)
        for edge in outline.edges[node]:
            after_ms[edge.other] = max(after_ms[edge.other], ends_ms)
    return longest_ms

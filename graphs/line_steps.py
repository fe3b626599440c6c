"""Graphs whose stages follow one another, each taking tensors of the one before it and of the request alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from graphs.node import Node, Source, StageNode
from graphs.stage import Stage


class LineStep(NamedTuple):
    """One stage of a line."""

    stage: Stage
    node: StageNode
    tensors: tuple[tuple[str, Source], ...]
    request_inputs: dict[str, str]
    final: bool
    handed: dict[str, str] | None
    """Input -> tensor of the step before it, where it takes nothing else."""


def line_steps(output: Node, nodes: Collection[Node]) -> tuple[LineStep, ...] | None:
    """The steps, the first one first, where `nodes` (all that the answer can need) are such a line; None where they are not."""
    steps: list[LineStep] = []
    node = output
    while isinstance(node, StageNode) and node.stage is not None and len(set(node.consumers)) <= 1:
        steps.append(LineStep(node.stage, node, node.tensors, node.request_inputs, final=not steps, handed=_handed(node)))
        before = {link.node for link in node.links()}
        if len(before) > 1 or any(link.up for link in node.links()):
            return None
        if not before:
            return tuple(reversed(steps)) if len(steps) == len(nodes) else None
        node = before.pop()
    return None


def _handed(node: StageNode) -> dict[str, str] | None:
    if node.request_inputs or not node.tensors or any(source.link is None for _, source in node.tensors):
        return None
    return {name: source.tensor for name, source in node.tensors}

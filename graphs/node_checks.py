"""What each kind of node says of others, and what is wrong with its own numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from graphs.combiners import combiner_problem
from graphs.fanout import AT_LEAST, MISSING, POLICIES
from graphs.names import near
from schemas.graph import CanaryNode, EnsembleNode, ForEachNode, Node, ShadowNode, SplitterNode, StageNode, SwitchNode

ROWS_TOTAL_MAX = 65_536
"""Rows of a for_each inside others, all together."""


class Named(NamedTuple):
    """A name in a node, with the key that it stands under."""

    key: str
    name: str


def references(spec: Node) -> list[Named]:
    """Every `node.tensor` of a node, but those in conditions."""
    if isinstance(spec, StageNode):
        return [Named(f"inputs.{name}", reference) for name, reference in spec.inputs.items()]
    if isinstance(spec, ForEachNode):
        return [Named(f"over.{name}", reference) for name, reference in spec.over.items()]
    return []


def targets(spec: Node) -> list[Named]:
    """Every name of a whole node."""
    if isinstance(spec, SwitchNode):
        return [*(Named(f"cases.{index}.then", case.then) for index, case in enumerate(spec.cases)), Named("otherwise", spec.otherwise)]
    if isinstance(spec, SplitterNode):
        return [Named(f"branches.{index}.then", branch.then) for index, branch in enumerate(spec.branches)]
    if isinstance(spec, CanaryNode):
        return [Named("stable", spec.stable), Named("candidate", spec.candidate)]
    if isinstance(spec, ShadowNode):
        return [Named("primary", spec.primary), Named("copy", spec.copy)]
    if isinstance(spec, EnsembleNode):
        return [Named(f"members.{index}", member) for index, member in enumerate(spec.members)]
    return []


def own_problems(spec: Node) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of a node's own numbers and lists."""
    check = _CHECKS.get(type(spec))
    if check is not None:
        yield from check(spec)


def _switch(spec: SwitchNode) -> Iterator[tuple[str, str]]:
    if not spec.cases:
        yield "cases", "a switch has at least one case"


def _splitter(spec: SplitterNode) -> Iterator[tuple[str, str]]:
    if not spec.branches:
        yield "branches", "a splitter has at least one branch"
    elif not _is_split([branch.weight for branch in spec.branches]):
        yield "branches", "weights are finite, not negative, and not all 0"
    if not spec.sticky:
        yield "sticky", "is `id`, `tenant`, or the name of a request parameter"


def _canary(spec: CanaryNode) -> Iterator[tuple[str, str]]:
    if spec.stable == spec.candidate:
        yield "candidate", f"stable and candidate are both {spec.stable!r}"
    if not 0.0 <= spec.percent <= 100.0:
        yield "percent", f"is between 0 and 100, not {spec.percent}"
    ends = (0.0, *spec.steps)
    if not spec.steps or spec.steps[-1] > 100.0 or not all(low < high for low, high in zip(ends, spec.steps, strict=False)):
        yield "steps", "rise, above 0 and to at most 100"
    if spec.step_requests < 1:
        yield "step_requests", "is at least 1"


def _shadow(spec: ShadowNode) -> Iterator[tuple[str, str]]:
    if not 0.0 <= spec.share <= 1.0:
        yield "share", f"is between 0 and 1, not {spec.share}"
    if spec.primary == spec.copy:
        yield "copy", f"primary and copy are both {spec.primary!r}"


def _ensemble(spec: EnsembleNode) -> Iterator[tuple[str, str]]:
    if not spec.members:
        yield "members", "an ensemble has at least one member"
        return
    twice = sorted({member for member in spec.members if spec.members.count(member) > 1})
    if twice:
        yield "members", f"{', '.join(twice)}: named twice"
    if not 0 <= spec.wait <= len(spec.members):
        yield "wait", f"is between 0 (all) and {len(spec.members)}, the number of members"
    problem = combiner_problem(spec.combiner, spec.weights, len(spec.members))
    if problem:
        yield "weights" if spec.weights or "needs `weights`" in problem else "combiner", problem


def _for_each(spec: ForEachNode) -> Iterator[tuple[str, str]]:
    if not spec.over:
        yield "over", "names at least one tensor to go over"
    if not spec.nodes:
        yield "nodes", "a for_each has at least one node inside"
    elif spec.output not in spec.nodes:
        yield "output", f"there is no node {spec.output!r} inside{near(spec.output, spec.nodes)}"
    if spec.rows_max < 1 or spec.rows_max > ROWS_TOTAL_MAX:
        yield "rows_max", f"is between 1 and {ROWS_TOTAL_MAX}"
    if spec.policy not in POLICIES:
        yield "policy", f"there is no policy {spec.policy!r}{near(spec.policy, POLICIES)}"
    elif spec.policy == AT_LEAST and not 1 <= spec.least <= spec.rows_max:
        yield "least", f"with the policy {AT_LEAST}, is between 1 and rows_max"
    elif spec.policy != AT_LEAST and spec.least:
        yield "least", f"goes with the policy {AT_LEAST} only"
    if MISSING in spec.over:
        yield f"over.{MISSING}", f"{MISSING!r} is what the for_each itself calls the rows that are not there"


def _is_split(weights: list[float]) -> bool:
    return all(math.isfinite(weight) and weight >= 0.0 for weight in weights) and sum(weights) > 0.0


_CHECKS: dict[type[Node], Callable[[Any], Iterator[tuple[str, str]]]] = {
    SwitchNode: _switch,
    SplitterNode: _splitter,
    CanaryNode: _canary,
    ShadowNode: _shadow,
    EnsembleNode: _ensemble,
    ForEachNode: _for_each,
}

"""Where a run stands, as far as planning the rest of it is concerned: what is settled, what runs, what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from graphs.fanout_rows import Rows
from graphs.node import EnsembleNode, ForEachNode, Node, SplitterNode, SwitchNode
from graphs.outline import Outline
from graphs.state import Phase, Scope, State, split_instance

if TYPE_CHECKING:
    from graphs.compiled import Graph
    from graphs.run import Run

Counted = tuple[tuple[str, float], ...]
"""Factors, by name."""


class Status(NamedTuple):
    """What is known of a node: `kind` one of the words below."""

    kind: str
    counted: Counted = ()
    reserved: float = 0.0
    """Of a running stage: it counts at least this, if it was planned."""
    chosen: Node | None = None


DONE, RUNNING, TARGET, CHOSEN, SPLIT, LOST, ROWS = "done", "running", "target", "chosen", "split", "lost", "rows"
_AHEAD = Status(TARGET)
UNPLANNED = -1.0
"""A stage that was given out, and may still become any of its variants."""


class Situation(NamedTuple):
    """Hashable: runs in the same situation have the same plans. `known`: nodes that the rest can still need, where something is known of them."""

    graph: Graph
    target: Node | None
    known: tuple[tuple[Node, Status], ...]
    combinations: tuple[str, ...] = ()
    """Measured combinations that are still possible."""
    apart: bool = False
    """Nothing ahead is a mean or a choice of several: what the target and its past count is a plain factor, and is left out here."""


def fresh(graph: Graph) -> Situation:
    """Of a request that has not started."""
    return Situation(graph, None, (), tuple(graph.measured))


def ahead(graph: Graph, node: Node) -> Situation:
    """Seen from a stage of a line: what lies ahead has not been asked for, and what lies behind no longer matters."""
    return Situation(graph, node, ((node, _AHEAD),), (), apart=True)


def situation(run: Run, target: State | None) -> Situation:
    """Of a run, seen from a stage that is to be planned (None: as a whole). Other rows of the for_eaches around it count as rows like this one."""
    outline = run.graph.outline
    if target is not None and target.node in outline.line and not run.graph.measured:
        return ahead(run.graph, target.node)
    scopes: dict[ForEachNode | None, Scope] = _scopes(outline, target) if target else {None: run.top}
    known: dict[Node, Status] = {}
    left, seen = [outline.output], set[Node]()
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        scope = scopes.get(outline.owner[node])
        state = scope.states.get(node) if scope else None
        status = _status(run, node, state, target) if scope else _of_rows(run, node)
        if status is not None:
            known[node] = status
        left += _open(outline, node, status)
    combinations = _possible(run, target)
    if target is None:
        return Situation(run.graph, None, tuple(known.items()), combinations)
    apart = (
        not combinations
        and not any(_merges(node, known.get(node)) for node in seen)
        and not any(status.counted for status in known.values() if status.kind != TARGET)
    )
    if apart:
        known[target.node] = Status(TARGET)
    return Situation(run.graph, target.node, tuple(known.items()), combinations, apart)


def _merges(node: Node, status: Status | None) -> bool:
    """Whether several accuracies become one here, otherwise than as a product."""
    return isinstance(node, SwitchNode | SplitterNode | EnsembleNode) and status is None


def _scopes(outline: Outline, target: State) -> dict[ForEachNode | None, Scope]:
    scopes: dict[ForEachNode | None, Scope] = {}
    owner, scope = outline.owner.get(target.node), target.scope
    while True:
        scopes[owner] = scope
        if owner is None or scope.parent is None:
            return scopes
        owner, scope = outline.owner[owner], scope.parent


def _of_rows(run: Run, node: Node) -> Status | None:
    """Inside a for_each that the target is not in: no row may count on more than what was asked of any of them."""
    least = run.least_planned.get(node.path)
    return None if least is None else Status(ROWS, (), least)


def _status(run: Run, node: Node, state: State | None, target: State | None) -> Status | None:
    if state is None:
        return None
    if state is target:
        return Status(TARGET, tuple(state.factors.items()))
    if state.result is not None:
        return Status(DONE, tuple(state.result.factors.items()))
    if state.phase is Phase.FAILED:
        return Status(LOST)
    if state.phase is Phase.RUNNING:
        return Status(RUNNING, tuple(state.factors.items()), run.planned.get(state.instance, UNPLANNED))
    if state.chosen is not None:
        return Status(CHOSEN, chosen=state.chosen.node)
    if isinstance(state.detail, Rows):
        return Status(SPLIT, tuple(state.detail.factors.items()))
    return None


def _open(outline: Outline, node: Node, status: Status | None) -> list[Node]:
    """The nodes whose being open matters to this one."""
    if status is None or status.kind in (SPLIT, ROWS):
        others = [edge.other for edge in outline.edges[node]]
        if status is not None and status.kind == SPLIT and isinstance(node, ForEachNode) and node.sink:
            others = [link.node for link in node.sink.links()]
        return others
    return [status.chosen] if status.chosen else []


def _possible(run: Run, target: State | None) -> tuple[str, ...]:
    """Measured combinations that what ran and what runs can be part of; other rows of the target's own stage do not bind it."""
    table = run.graph.measured
    if not table:
        return ()
    ran = dict(run.steps.ran)
    for instance, variant in run.pinned.items():
        path = split_instance(instance)[0]
        ran[path] = ran.get(path, set()) | {variant}
    if target is not None:
        ran.pop(target.node.path, None)
    return tuple(
        key for key, combination in table.items() if combination.fits(ran) and (not run.planned_combinations or key in run.planned_combinations)
    )

"""Who can still need whom in a run: what may be let go, what is cancelled, and which stage is the whole answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from graphs.commands import Cancel
from graphs.fanout_rows import Rows
from graphs.node import ForEachNode, Link, Node, ShadowNode, SinkNode, SplitterNode, SwitchNode
from graphs.state import Phase, Scope, State

if TYPE_CHECKING:
    from graphs.run import Run


def live_nodes(scope: Scope, roots: Iterable[Link]) -> set[Node]:
    """The nodes of a scope that somebody can still need, from the roots backwards."""
    live: set[Node] = set()
    states = scope.states
    left = [link.node for link in roots if not link.up]
    while left:
        node = left.pop()
        if node in live:
            continue
        live.add(node)
        state = states.get(node)
        if state is None or state.phase is Phase.WAITING:
            left += _needs(node, state)
    return live


def _needs(node: Node, state: State | None) -> Sequence[Node]:
    """Of a node that waits, or that nobody has asked for yet."""
    if state is not None:
        if state.chosen is not None:
            return () if state.chosen.up else (state.chosen.node,)
        if state.detail is not None and isinstance(node, ForEachNode):
            return [link.node for link in node.outer if not link.up]
    near = node.near
    if near is None:
        near = node.near = tuple(link.node for link in node.links() if not link.up)
    if state is None and isinstance(node, ShadowNode) and node.copy:
        return (*near, node.copy)
    return near


def roots(run: Run) -> list[Link]:
    """What the outermost scope is evaluated for."""
    answer = [] if run.finished else [Link(0, run.answer.node)]
    return answer + [Link(0, node) for node in run.copies]


def serves_answer(run: Run, state: State) -> bool:
    """Whether the answer can still need it, and not a shadow's copy alone."""
    outermost = run.graph.nodes[state.node.path.partition("/")[0]]
    return not run.finished and outermost in live_nodes(run.top, [Link(0, run.answer.node)])


def sweep(run: Run) -> None:
    """Let go of what nobody can need, and cancel what runs for nobody."""
    cancelled: list[str] = []
    for scope in run.dirty:
        if scope.parent is None:
            _sweep_scope(run, scope, roots(run), cancelled)
        elif scope.states:
            _sweep_scope(run, scope, [Link(0, node) for node in scope.states if isinstance(node, SinkNode)], cancelled)
    run.dirty.clear()
    if cancelled:
        run.commands.append(Cancel(tuple(cancelled)))


def _sweep_scope(run: Run, scope: Scope, starts: list[Link], cancelled: list[str]) -> None:
    live = live_nodes(scope, starts)
    for node in [node for node in scope.states if node not in live]:
        drop(run, scope.states.pop(node), cancelled)


def drop(run: Run, state: State, cancelled: list[str]) -> None:
    """Forget a state and all that runs for it."""
    if state.phase is Phase.RUNNING:
        instance = state.instance
        del run.flying[instance]
        run.forget(instance)
        run.seen.add(instance)
        cancelled.append(instance)
    run.timed.pop(state, None)
    if state.phase <= Phase.RUNNING:
        state.phase = Phase.DROPPED
    if isinstance(state.detail, Rows):
        for scope in state.detail.scopes.values():
            drop_scope(run, scope, cancelled)
        state.detail = None
    state.result = None
    state.waiters = {}


def drop_scope(run: Run, scope: Scope, cancelled: list[str]) -> None:
    """Forget all of a row."""
    for state in scope.states.values():
        drop(run, state, cancelled)
    scope.states.clear()


def is_final(run: Run, state: State) -> bool:
    """Whether the stage's completion is the whole answer: the output has become it, and nobody else who lives can need it."""
    if run.finished or state.shadow or state.scope.parent is not None:
        return False
    if run.graph.final is not None:
        return state.node.path == run.graph.final
    chain: set[Node] = {run.answer.node}
    node = run.answer.node.links()[0].node
    while node is not state.node:
        alias = run.top.states.get(node)
        if alias is None or alias.chosen is None or not isinstance(node, SwitchNode | SplitterNode | ShadowNode):
            return False
        chain.add(node)
        node = alias.chosen.node
    others = [consumer for consumer in node.consumers if consumer not in chain]
    if not others:
        return True
    live = live_nodes(run.top, roots(run))
    return not any(consumer in live and _waits(run.top.states.get(consumer)) for consumer in others)


def _waits(state: State | None) -> bool:
    """Whoever has its inputs already does not need them again."""
    return state is None or state.phase is Phase.WAITING

"""What a for_each does: one run of its nodes for each row, joined in order without decoding a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphs.commands import Cancel
from graphs.fanout_rows import Rows
from graphs.liveness import drop_scope
from graphs.merging import late
from graphs.node import ForEachNode
from graphs.state import Failure, Phase, Result, Scope, State
from graphs.steps import fail, name_of, settle, take
from graphs.tensor import Tensor

if TYPE_CHECKING:
    from graphs.run import Run

MISSING = "missing"
"""The output that names the rows that are not there."""
ALL, AT_LEAST, BY_DEADLINE = "all", "at_least", "best_by_deadline"
POLICIES = (ALL, AT_LEAST, BY_DEADLINE)


def for_each_step(run: Run, state: State) -> None:
    """Splits what it goes over into rows when that is there; later, by the deadline, joins what there is."""
    node = state.node
    assert isinstance(node, ForEachNode)
    if state.detail is None:
        over = take(run, state, "for_each", node.over)
        if over is not None:
            _split(run, state, node, *over)
    if state.phase is Phase.WAITING and isinstance(state.detail, Rows):
        _join_if_enough(run, state, node, state.detail)


def _split(run: Run, state: State, node: ForEachNode, tensors: dict[str, Tensor], factors: dict[str, float]) -> None:
    counts = {name: tensor.shape[0] if tensor.shape else -1 for name, tensor in tensors.items()}
    count = next(iter(counts.values()))
    if any(other != count for other in counts.values()) or count < 0:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        fail(run, state, f"for_each {node.path!r}: the tensors that it goes over have no common number of rows: {shapes}")
        return
    if count > node.rows_max:
        fail(run, state, f"for_each {node.path!r}: {count} rows, the limit is {node.rows_max}", "too_large")
        return
    try:
        rows = {name: tensor.rows() for name, tensor in tensors.items()}
    except ValueError as error:
        fail(run, state, f"for_each {node.path!r}: {error}")
        return
    state.detail = Rows(count, factors)
    assert node.sink is not None
    for index in range(count):
        label = f"{state.scope.rows}.{index}" if state.scope.rows else str(index)
        scope = Scope(state.scope, label, {name: each[index] for name, each in rows.items()}, state.shadow)
        sink = scope.states[node.sink] = State(node.sink, scope, state.shadow)
        sink.waiters[state] = None
        state.detail.scopes[index] = scope
        run.queue.append(sink)
    run.dirty[state.scope] = None


def row_ended(run: Run, sink: State, end: Result | Failure) -> None:
    """A row is there, or lost."""
    (state,) = sink.waiters
    rows, node = state.detail, state.node
    if state.phase is not Phase.WAITING or not isinstance(rows, Rows) or not isinstance(node, ForEachNode):
        return
    index = int(sink.scope.rows.rpartition(".")[2])
    scope = rows.scopes.pop(index)
    if isinstance(end, Failure):
        rows.failed += 1
        if node.policy == ALL or rows.count - rows.failed < _least(node, rows.count):
            reason = f"for_each {node.path!r}, row {index}: {end.message}"
            settle(run, state, Failure(end.code, reason, end.stage))
    else:
        own = f"#{scope.rows}"
        accuracy = 1.0
        for name, factor in end.factors.items():
            if name.endswith(own):
                accuracy *= factor
            else:
                rows.factors[name] = factor
        rows.accuracy += accuracy
        rows.tensors[index] = dict(end.tensors) if node.uses is None else {name: end.tensors[name] for name in node.uses if name in end.tensors}
    _drop(run, [scope])
    if state.phase is Phase.WAITING:
        _join_if_enough(run, state, node, rows)
    else:
        _drop(run, list(rows.scopes.values()))
        state.detail = None


def _least(node: ForEachNode, count: int) -> int:
    """Rows that have to be there in the end: no more than there are, and one at least."""
    return min(node.least, count) if node.policy == AT_LEAST else 1


def _join_if_enough(run: Run, state: State, node: ForEachNode, rows: Rows) -> None:
    there = len(rows.tensors)
    timed = node.policy != ALL
    if rows.scopes and not (late(run, state, by_deadline=timed) and there >= _least(node, rows.count)):
        return
    left = list(rows.scopes.values())
    state.detail = None
    try:
        tensors = _joined(node, rows) if rows.count else _empty(node)
    except ValueError as error:
        fail(run, state, f"for_each {node.path!r}: {error}")
    else:
        factors = dict(rows.factors)
        if there:
            factors[name_of(node.path, state.scope)] = rows.accuracy / there
        settle(run, state, Result(tensors, factors))
    _drop(run, left)


def _joined(node: ForEachNode, rows: Rows) -> dict[str, Tensor]:
    order = sorted(rows.tensors)
    first = rows.tensors[order[0]]
    names = [name for name in (node.uses if node.uses is not None else first) if name != MISSING]
    joined: dict[str, Tensor] = {}
    for name in names:
        lacking = next((index for index in order if name not in rows.tensors[index]), None)
        if lacking is not None:
            raise ValueError(f"row {lacking} gave no tensor {name!r}")
        joined[name] = Tensor.join([rows.tensors[index][name] for index in order])
    if node.policy != ALL:
        joined[MISSING] = _missing([index for index in range(rows.count) if index not in rows.tensors])
    return joined


def _missing(indices: list[int]) -> Tensor:
    data = b"".join(index.to_bytes(8, "little") for index in indices)
    return Tensor(MISSING, "INT64", (len(indices),), data)


def _empty(node: ForEachNode) -> dict[str, Tensor]:
    tensors = {name: Tensor(name, datatype, shape, b"") for name, (datatype, shape) in node.empty.items()}
    return tensors if node.policy == ALL else tensors | {MISSING: _missing([])}


def _drop(run: Run, scopes: list[Scope]) -> None:
    cancelled: list[str] = []
    for scope in scopes:
        drop_scope(run, scope, cancelled)
    if cancelled:
        run.commands.append(Cancel(tuple(cancelled)))

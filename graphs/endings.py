"""How a run ends: with an answer, with an error, and then with the copies of its shadows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphs.commands import Cancel, Fail, Finish, ShadowDone
from graphs.fanout import row_ended
from graphs.liveness import drop
from graphs.node import CopyNode, SinkNode
from graphs.state import Failure, Phase, Result, State, product
from graphs.steps import BACKEND_ERROR, demand
from graphs.tensor import Tensor

if TYPE_CHECKING:
    from graphs.run import Run


def sink_step(run: Run, state: State) -> None:
    """The answer, or a row of a for_each."""
    node = state.node
    assert isinstance(node, SinkNode)
    assert node.link is not None
    other = demand(run, state, node.link)
    if other is None or other.phase <= Phase.RUNNING:
        return
    state.phase = other.phase
    end = other.result or other.failure
    assert end is not None
    if state.scope.parent is not None:
        row_ended(run, state, end)
    elif isinstance(end, Failure):
        fail_run(run, end)
    else:
        _finish(run, end)


def _finish(run: Run, result: Result) -> None:
    tensors = _answers(run, result)
    if isinstance(tensors, Failure):
        fail_run(run, tensors)
        return
    run.finished = True
    run.commands.append(Finish(tensors, run.accuracy(result.factors), run.path()))
    release_shadows(run)


def _answers(run: Run, result: Result) -> list[Tensor] | Failure:
    names = run.graph.answers
    if not names:
        return list(result.tensors.values())
    missing = next((name for name in names.values() if name not in result.tensors), None)
    if missing is not None:
        return Failure(BACKEND_ERROR, f"node {run.graph.output!r} gave no tensor {missing!r} for the answer", run.graph.output)
    return [result.tensors[name].named(answer) for answer, name in names.items()]


def fail_run(run: Run, failure: Failure) -> None:
    """No answer: nothing goes on, not even a shadow."""
    run.finished = True
    run.commands.append(Fail(failure.code, failure.message, failure.stage or None))
    stop(run)


def stop(run: Run) -> None:
    """Forget everything, and cancel what is at workers."""
    run.finished = True
    cancelled: list[str] = []
    for state in run.top.states.values():
        drop(run, state, cancelled)
    run.top.states.clear()
    for held in (run.copies, run.passive, run.timed, run.queue, run.dirty, run.early):
        held.clear()
    if cancelled:
        run.commands.append(Cancel(tuple(cancelled)))


def release_shadows(run: Run) -> None:
    """The answer is there: what shadows still want of its nodes they may have now."""
    run.dirty[run.top] = None
    for waiters in run.passive.values():
        run.queue.extend(waiters)
    run.passive.clear()
    if not run.copies:
        stop(run)


def copy_step(run: Run, state: State) -> None:
    """The copy of a shadow, which nobody waits for; its failure is nobody's."""
    node = state.node
    assert isinstance(node, CopyNode)
    assert node.copy is not None
    other = demand(run, state, node.copy)
    if other is None or other.phase <= Phase.RUNNING:
        return
    state.phase = other.phase
    run.copies.pop(node, None)
    run.dirty[run.top] = None
    if other.result is not None:
        path = list(run.shadow_steps.values())
        run.commands.append(ShadowDone(node.path, list(other.result.tensors.values()), product(other.result.factors), path))
    if run.idle:
        stop(run)

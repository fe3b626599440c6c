"""What an ensemble does when a member has come: waits for enough of them, and hands them to its combiner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphs.commands import Wake
from graphs.node import EnsembleNode
from graphs.state import Phase, Result, State, mean_of
from graphs.steps import demand, fail, hand_over, name_of
from graphs.tensor import Tensor

if TYPE_CHECKING:
    from graphs.run import Run

Answered = list[tuple[int, Result]]


def ensemble_step(run: Run, state: State) -> None:
    """Goes on when all (or `wait`) members are there; with `by_deadline`, with those that are there in the end."""
    node = state.node
    assert isinstance(node, EnsembleNode)
    members = [demand(run, state, link) for link in node.members]
    done = [(index, member.result) for index, member in enumerate(members) if member and member.result]
    failed = [member for member in members if member and member.phase is Phase.FAILED]
    needed, possible = node.wait or len(members), len(members) - len(failed)
    last = len(done) == possible or late(run, state, by_deadline=node.by_deadline)
    if len(done) >= needed or (node.by_deadline and done and last):
        _combine(run, state, node, done)
    elif possible < (1 if node.by_deadline else needed):
        first = failed[0].failure
        reason = f"{first.stage}: {first.message}" if first else ""
        fail(run, state, f"ensemble {node.path!r}: {len(failed)} of {len(members)} members failed and {needed} are needed ({reason})")


def late(run: Run, state: State, *, by_deadline: bool) -> bool:
    """Whether a node that goes on by the deadline has to go on now; asks to be woken for it."""
    if not by_deadline:
        return False
    run.timed[state] = None
    if run.now_ms >= run.wake_at_ms:
        return True
    if not run.wake_asked:
        run.wake_asked = True
        run.commands.append(Wake(run.wake_at_ms))
    return False


def _combine(run: Run, state: State, node: EnsembleNode, done: Answered) -> None:
    assert node.stage is not None
    names = node.tensors or tuple(name for name in done[0][1].tensors if all(name in result.tensors for _, result in done))
    if not names:
        fail(run, state, f"ensemble {node.path!r}: its members have no tensor in common")
        return
    tensors: dict[str, Tensor] = {}
    for index, result in done:
        for name in names:
            tensor = result.tensors.get(name)
            if tensor is None:
                fail(run, state, f"ensemble {node.path!r}: member {node.members[index].node.path!r} gave no tensor {name!r}")
                return
            tensors[f"{index}.{name}"] = tensor.named(f"{index}.{name}")
    run.timed.pop(state, None)
    factors = mean_of([result.factors for _, result in done], name_of(node.path, state.scope))
    hand_over(run, state, node.stage, tensors, factors)

"""What each kind of node does when something that it waits for has come: stages, switches, splitters and shadows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.commands import RunStage
from graphs.conditions import Reference
from graphs.events import StageDone
from graphs.liveness import drop
from graphs.node import Case, Link, Node, ShadowNode, Source, SplitterNode, StageNode, SwitchNode
from graphs.stage import Stage
from graphs.state import ROUNDING, Failure, Phase, Result, Scope, State, instance_name
from graphs.tensor import Tensor
from schemas.datatypes import BYTES

if TYPE_CHECKING:
    from graphs.run import Run

BACKEND_ERROR = "backend_error"


def demand(run: Run, consumer: State, link: Link) -> State | None:
    """The state of a node that `consumer` needs, asked for if nobody did; None: a shadow has to wait until the answer's own path asks."""
    scope = consumer.scope.out(link.up)
    state = scope.states.get(link.node)
    if state is None:
        if consumer.shadow and link.node.main and not run.finished and not scope.shadow:
            run.passive.setdefault(link.node, {})[consumer] = None
            return None
        state = State(link.node, scope, shadow=scope.shadow or not link.node.main or run.finished)
        scope.states[link.node] = state
        if run.passive:
            state.waiters |= run.passive.pop(link.node, {})
        run.queue.append(state)
    if state.phase <= Phase.RUNNING:
        state.waiters[consumer] = None
    return state


def settle(run: Run, state: State, end: Result | Failure) -> None:
    """The state has its end; whoever waits for it goes on."""
    done = isinstance(end, Result)
    if done:
        state.phase, state.result = Phase.DONE, end
    else:
        state.phase, state.failure = Phase.FAILED, end
    run.timed.pop(state, None)
    run.queue.extend(state.waiters)
    state.waiters = {}
    if not done or state.node not in run.graph.outline.line:
        run.dirty[state.scope] = None


def fail(run: Run, state: State, message: str, code: str = BACKEND_ERROR) -> None:
    """End the state with an error of its own."""
    settle(run, state, Failure(code, message, state.node.path))


def become(run: Run, state: State, link: Link) -> None:
    """End the state as the node that it stands for, as soon as that has ended."""
    other = demand(run, state, link)
    if other is not None and other.phase is Phase.DONE and other.result:
        settle(run, state, other.result)
    elif other is not None and other.phase is Phase.FAILED and other.failure:
        settle(run, state, other.failure)


def stage_step(run: Run, state: State) -> None:
    """Hands the stage over when every node that it needs is there."""
    node = state.node
    assert isinstance(node, StageNode)
    assert node.stage is not None
    taken = take(run, state, "stage", node.tensors)
    if taken is not None:
        hand_over(run, state, node.stage, *taken)


def take(run: Run, state: State, kind: str, sources: Sequence[tuple[str, Source]]) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """The tensors that a node takes, by their names there, and the accuracies that they bring; None: not there yet, or never (it has failed)."""
    tensors: dict[str, Tensor] = {}
    factors: dict[str, float] = {}
    waiting = False
    for name, source in sources:
        if source.link is None:
            tensor = _held(run, state.scope, source).get(source.tensor)
        else:
            given = demand(run, state, source.link)
            if given is None or given.phase <= Phase.RUNNING:
                waiting = True
                continue
            if given.result is None:
                settle(run, state, given.failure or Failure(BACKEND_ERROR, "", state.node.path))
                return None
            factors |= given.result.factors
            tensor = given.result.tensors.get(source.tensor)
        if tensor is None:
            fail(run, state, f"{kind} {state.node.path!r}: {missing(source)}")
            return None
        tensors[name] = tensor.named(name)
    return None if waiting else (tensors, factors)


def missing(source: Source) -> str:
    """What to say of a source that gave no tensor."""
    if source.link is None:
        return f"the {'request' if source.up < 0 else 'row'} has no tensor {source.tensor!r}"
    return f"node {source.link.node.path!r} gave no tensor {source.tensor!r}"


def hand_over(run: Run, state: State, stage: Stage, tensors: dict[str, Tensor], factors: dict[str, float]) -> None:
    """To a worker, unless a worker did it in an earlier life."""
    instance = state.instance
    state.factors = factors
    early = run.early.pop(instance, None)
    if early is not None:
        complete(run, state, early)
        return
    state.phase = Phase.RUNNING
    run.flying[instance] = state
    if state.node not in run.graph.outline.line or not _used_up(run, state.node):
        run.dirty[state.scope] = None
    request_inputs = state.node.request_inputs if isinstance(state.node, StageNode) else {}
    shadow = state.shadow or run.finished
    run.commands.append(RunStage(instance, stage, tensors, request_inputs, final=False, shadow=shadow))


def _used_up(run: Run, node: Node) -> bool:
    """Forget what a stage of a line was given, without looking whom else the run still needs; False where somebody else might want it."""
    links = node.links()
    if any(len(link.node.consumers) > 1 for link in links):
        return False
    for link in links:
        given = run.top.states.pop(link.node, None)
        if given is not None:
            drop(run, given, [])
    return True


def complete(run: Run, state: State, done: StageDone) -> None:
    """A worker's outputs are there."""
    run.seen.add(done.instance)
    run.forget(done.instance)
    path = state.node.path
    stage = run.graph.stages[path]
    if state.shadow:
        run.shadow_steps[f"{path}\x1f{done.variant}"] = done.step
    else:
        run.steps.add(path, done.variant, done.step, model=stage.model and bool(run.graph.measured))
    factors = state.factors
    if done.accuracy != 1.0:
        factors = {**factors, done.instance: done.accuracy}
    settle(run, state, Result(done.tensors, factors))


def switch_step(run: Run, state: State) -> None:
    """Looks at one case after the other; then is the node that it takes."""
    node = state.node
    assert isinstance(node, SwitchNode)
    assert node.otherwise is not None
    if state.chosen is None:
        for case in node.cases:
            holds = _case_holds(run, state, case)
            if holds is None:
                return
            if holds:
                choose(run, state, case.then)
                break
        else:
            choose(run, state, node.otherwise)
    assert state.chosen is not None
    become(run, state, state.chosen)


def choose(run: Run, state: State, link: Link) -> None:
    """From now on the state stands for this node."""
    state.chosen = link
    run.dirty[state.scope] = None
    if state.scope.parent is None:
        run.choices[state.node.path] = link.node.path


def _case_holds(run: Run, state: State, case: Case) -> bool | None:
    """None: not to be told yet, or never (the switch has failed)."""
    values: dict[Reference, Any] = {}
    waiting = False
    for reference, source in case.sources:
        given = demand(run, state, source.link) if source.link else None
        if source.link and (given is None or given.phase <= Phase.RUNNING):
            waiting = True
            continue
        if given and given.result is None:
            settle(run, state, given.failure or Failure(BACKEND_ERROR, "", state.node.path))
            return None
        tensor = (given.result.tensors if given and given.result else _held(run, state.scope, source)).get(source.tensor)
        if tensor is None:
            fail(run, state, f"switch {state.node.path!r}, condition {case.condition.text!r}: {missing(source)}")
            return None
        values[reference] = tensor
    return None if waiting else _evaluate(run, state, case, values)


def _held(run: Run, scope: Scope, source: Source) -> Mapping[str, Tensor]:
    return run.tensors if source.up < 0 else scope.out(source.up).row


def _evaluate(run: Run, state: State, case: Case, tensors: dict[Reference, Any]) -> bool | None:
    lacking = next((reference.tensor for reference in case.fields if reference.tensor not in run.fields), None)
    if lacking is not None:
        fail(run, state, f"switch {state.node.path!r}, condition {case.condition.text!r}: the request has no parameter {lacking!r}")
        return None
    try:
        values = {reference: _readable(tensor) for reference, tensor in tensors.items()}
        return case.condition.holds(values | {reference: run.fields[reference.tensor] for reference in case.fields})
    except ValueError as error:
        fail(run, state, f"switch {state.node.path!r}, {error}")
        return None


def _readable(tensor: Tensor) -> Any:
    values = tensor.values()
    if tensor.datatype == BYTES.name:
        flat = [value.decode(errors="replace") for value in values.ravel().tolist()]
        return np.array(flat, dtype=object).reshape(values.shape)
    return values


def splitter_step(run: Run, state: State) -> None:
    """Takes a branch by a hash of what it is sticky by: the same for the same value, in every life of the run."""
    node = state.node
    assert isinstance(node, SplitterNode)
    if state.chosen is None:
        choose(run, state, node.branches[_branch(run, node)])
    assert state.chosen is not None
    become(run, state, state.chosen)


def _branch(run: Run, node: SplitterNode) -> int:
    """By weight among the branches that can keep the request's floor; where none can, among all: planning will say so."""
    at = part(node.path, sticky_value(run, node.sticky))
    weights = [end - begin for begin, end in zip((0.0, *node.below), node.below, strict=False)]
    able = [weight if ceiling >= run.floor - ROUNDING else 0.0 for weight, ceiling in zip(weights, node.ceilings, strict=True)]
    if not any(able):
        able = weights
    left = at * sum(able)
    for index, weight in enumerate(able):
        left -= weight
        if left < 0.0:
            return index
    return max(range(len(able)), key=able.__getitem__)


def sticky_value(run: Run, sticky: str) -> str:
    """What decides: the request's id, its tenant or a parameter; of a request without it, the id."""
    if sticky == "tenant":
        return run.tenant
    if sticky != "id" and sticky in run.fields:
        return repr(run.fields[sticky])
    return run.request_id


def part(salt: str, value: str) -> float:
    """A number in [0, 1) that is always the same for the same two texts."""
    digest = blake2b(f"{salt}\x1f{value}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def shadow_step(run: Run, state: State) -> None:
    """Is its primary; the copy goes its own way."""
    node = state.node
    assert isinstance(node, ShadowNode)
    assert node.primary is not None
    if state.chosen is None:
        choose(run, state, node.primary)
        if node.copy is not None and part(node.path, run.request_id) < node.share:
            copy = State(node.copy, run.top, shadow=True)
            run.copies[node.copy] = copy
            run.queue.append(copy)
    become(run, state, node.primary)


def name_of(path: str, scope: Scope) -> str:
    """The key of what several made together, as a factor."""
    return instance_name(f"{path}/", scope.rows)

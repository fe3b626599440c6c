"""What happens to a run, event by event: nodes are asked for from the output backwards, and each goes on when what it needs is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from graphs.commands import Cancel, Command, RunStage
from graphs.endings import copy_step, release_shadows, sink_step, stop
from graphs.events import Abandoned, Answered, Event, StageDone, StageFailed, Started, Woken
from graphs.fanout import for_each_step
from graphs.liveness import is_final, serves_answer, sweep
from graphs.merging import ensemble_step
from graphs.node import CopyNode, EnsembleNode, ForEachNode, Node, ShadowNode, SinkNode, SplitterNode, StageNode, SwitchNode
from graphs.state import Failure, Phase, State, split_instance
from graphs.steps import complete, settle, shadow_step, splitter_step, stage_step, switch_step

if TYPE_CHECKING:
    from graphs.run import Run


def advance(run: Run, event: Event, now_ms: float) -> list[Command]:
    """Let the event happen. News of instances that are unknown, done or no longer needed change nothing."""
    run.now_ms = now_ms
    commands = run.commands = []
    if run.idle:
        return commands
    _happen(run, event)
    if run.timed and now_ms >= run.wake_at_ms:
        run.queue.extend(run.timed)
    _work(run)
    run.commands = []
    return _settled(run, commands)


def _settled(run: Run, commands: list[Command]) -> list[Command]:
    """Without what was wanted and cancelled at once, and with the final stage marked, now that it is known who needs what."""
    given = {command.instance for command in commands if isinstance(command, RunStage)}
    if not given:
        return commands
    settled: list[Command] = []
    for command in commands:
        if isinstance(command, RunStage):
            state = run.flying.get(command.instance)
            if state is not None:
                settled.append(_marked(run, command, state))
        elif isinstance(command, Cancel):
            known = tuple(instance for instance in command.instances if instance not in given)
            settled += [Cancel(known)] if known else []
        else:
            settled.append(command)
    return settled


def _marked(run: Run, command: RunStage, state: State) -> RunStage:
    if is_final(run, state):
        return replace(command, final=True)
    if run.copies and not command.shadow and not serves_answer(run, state):
        state.shadow = True
        return replace(command, shadow=True)
    return command


def _happen(run: Run, event: Event) -> None:
    if isinstance(event, StageDone):
        _done(run, event)
    elif isinstance(event, StageFailed):
        _failed(run, event)
    elif isinstance(event, Started):
        _started(run, event)
    elif isinstance(event, Answered):
        _answered(run)
    elif isinstance(event, Abandoned):
        stop(run)
    else:
        assert isinstance(event, Woken)


def _started(run: Run, event: Started) -> None:
    if run.started or run.finished:
        return
    run.started = True
    run.fields, run.tensors = event.fields, event.tensors
    run.queue.append(run.answer)


def _done(run: Run, event: StageDone) -> None:
    instance = event.instance
    state = run.flying.pop(instance, None)
    if state is not None:
        complete(run, state, event)
    elif instance not in run.seen and instance not in run.early and run.graph.knows(*split_instance(instance)):
        run.early[instance] = event


def _failed(run: Run, event: StageFailed) -> None:
    state = run.flying.pop(event.instance, None)
    if state is not None:
        run.seen.add(event.instance)
        run.forget(event.instance)
        settle(run, state, Failure(event.code, event.message, state.node.path))


def _answered(run: Run) -> None:
    if run.finished:
        return
    run.finished = True
    run.answer.phase = Phase.DONE
    release_shadows(run)


def _work(run: Run) -> None:
    """Step what was woken until nothing moves, then let go of what nobody needs."""
    while run.queue or run.dirty:
        while run.queue:
            state = run.queue.pop(0)
            if state.phase is Phase.WAITING:
                _step(run, state)
        sweep(run)


def _step(run: Run, state: State) -> None:
    _STEPS[type(state.node)](run, state)


_STEPS: dict[type[Node], Callable[[Run, State], None]] = {
    StageNode: stage_step,
    SwitchNode: switch_step,
    SplitterNode: splitter_step,
    ShadowNode: shadow_step,
    EnsembleNode: ensemble_step,
    ForEachNode: for_each_step,
    CopyNode: copy_step,
    SinkNode: sink_step,
}

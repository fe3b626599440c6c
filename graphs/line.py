"""One request on a graph whose stages follow one another: what a run does there, without asking who needs whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from graphs.commands import Cancel, Command, Fail, Finish, RunStage
from graphs.events import Abandoned, Answered, Event, StageDone, StageFailed, Started
from graphs.line_steps import LineStep
from graphs.steps import BACKEND_ERROR, missing
from graphs.tensor import Tensor
from schemas.terminal import PathStep

if TYPE_CHECKING:
    from graphs.compiled import Graph


class Line:
    """Does what `Run` does on such a graph, event by event (a property test compares them), at a fraction of its cost."""

    __slots__ = ("_accuracy", "_at", "_early", "_flying", "_path", "_started", "_steps", "_tensors", "finished", "floor", "graph")

    copies: ClassVar[Mapping[Any, Any]] = {}
    """No shadow has a copy here."""

    def __init__(self, graph: Graph, floor: float) -> None:
        """Of a graph with `line`."""
        assert graph.line is not None
        self.graph = graph
        self.floor = floor
        self.finished = False
        self._steps: Sequence[LineStep] = graph.line
        self._at = 0
        self._started = False
        self._flying = False
        """The step is at a worker."""
        self._accuracy = 1.0
        """Of the steps that are done."""
        self._path: list[PathStep] = []
        self._tensors: Mapping[str, Tensor] = {}
        """Of the request."""
        self._early: dict[str, StageDone] = {}
        """Computed before anybody asked: while the log is read again."""

    @property
    def idle(self) -> bool:
        """Nothing more can come of it."""
        return self.finished

    def path(self) -> list[PathStep]:
        """What was computed so far."""
        return self._path

    def path_accuracy(self, instance: str, accuracy: float, variant: str = "") -> float:
        """The accuracy of the answer, should `instance` complete with this accuracy and nothing run after it."""
        return self._accuracy * accuracy

    def sent(self, instance: str, variant: str, accuracy: float) -> None:
        """Nothing else is planned beside it."""

    def step_of(self, instance: str) -> tuple[LineStep, float] | None:
        """For planning: the step of an instance that is at a worker, and the accuracy of those before it."""
        if not self._flying:
            return None
        step = self._steps[self._at]
        return (step, self._accuracy) if step.stage.path == instance else None

    def after(self, instance: str) -> tuple[Sequence[LineStep], float]:
        """What follows on an instance that is at a worker, and the accuracy of the steps before it."""
        return (self._steps[self._at + 1 :], self._accuracy) if self._is_flying(instance) else ((), 1.0)

    def advance(self, event: Event, now_ms: float) -> list[Command]:
        """Let the event happen."""
        if self.finished:
            return []
        if isinstance(event, StageDone):
            return self._done(event)
        if isinstance(event, Started):
            if self._started:
                return []
            self._started, self._tensors = True, event.tensors
            return self._begin({})
        if isinstance(event, StageFailed):
            if not self._is_flying(event.instance):
                return []
            return self._failed(event.code, event.message)
        if isinstance(event, Answered | Abandoned):
            self.finished = True
            return [Cancel((self._steps[self._at].stage.path,))] if self._flying else []
        return []

    def _is_flying(self, instance: str) -> bool:
        return self._flying and self._steps[self._at].stage.path == instance

    def _done(self, event: StageDone) -> list[Command]:
        if self._is_flying(event.instance):
            return self._complete(event)
        later = any(step.stage.path == event.instance for step in self._steps[self._at :])
        if later and event.instance not in self._early:
            self._early[event.instance] = event
        return []

    def _complete(self, event: StageDone) -> list[Command]:
        self._flying = False
        step, path = event.step, self._steps[self._at].stage.path
        self._path.append(step if step.stage == path else msgspec.structs.replace(step, stage=path))
        self._accuracy *= event.accuracy
        self._at += 1
        return self._finish(event.tensors) if self._at == len(self._steps) else self._begin(event.tensors)

    def _begin(self, given: Mapping[str, Tensor]) -> list[Command]:
        """Hand the step over, unless a worker did it in an earlier life."""
        step = self._steps[self._at]
        tensors: dict[str, Tensor] = {}
        for name, source in step.tensors:
            tensor = (self._tensors if source.link is None else given).get(source.tensor)
            if tensor is None:
                return self._failed(BACKEND_ERROR, f"stage {step.stage.path!r}: {missing(source)}")
            tensors[name] = tensor.named(name)
        if self._early:
            early = self._early.pop(step.stage.path, None)
            if early is not None:
                return self._complete(early)
        self._flying = True
        return [RunStage(step.stage.path, step.stage, tensors, step.request_inputs, final=step.final, shadow=False)]

    def _failed(self, code: str, message: str) -> list[Command]:
        self.finished = True
        return [Fail(code, message, self._steps[self._at].stage.path)]

    def _finish(self, given: Mapping[str, Tensor]) -> list[Command]:
        self.finished = True
        names = self.graph.answers
        if not names:
            return [Finish(list(given.values()), self._accuracy, self._path)]
        lacking = next((name for name in names.values() if name not in given), None)
        if lacking is not None:
            output = self.graph.output
            return [Fail(BACKEND_ERROR, f"node {output!r} gave no tensor {lacking!r} for the answer", output)]
        return [Finish([given[name].named(answer) for answer, name in names.items()], self._accuracy, self._path)]

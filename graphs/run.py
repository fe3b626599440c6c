"""The state of one request on a graph, and what is asked of it from outside; what happens to it is decided in graphs/advance.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphs.advance import advance
from graphs.commands import Command
from graphs.compiled import Graph
from graphs.events import Event, StageDone
from graphs.liveness import is_final
from graphs.node import Node
from graphs.path import Path, variant_name
from graphs.state import Phase, Scope, State, product
from graphs.tensor import Tensor
from schemas.terminal import PathStep

__all__ = ["Run", "advance"]
RESERVE_MS = 20.0


class Run:
    """One request on its way; mutable, changed by `advance` only. Times in Unix milliseconds."""

    def __init__(self, graph: Graph, request_id: str, tenant: str, floor: float, deadline_ms: float, *, reserve_ms: float = RESERVE_MS) -> None:
        """`reserve_ms`: what a join or combine and the answer need at the end, where a node goes on by the deadline."""
        self.graph = graph
        self.request_id = request_id
        self.tenant = tenant
        self.floor = floor
        self.deadline_ms = deadline_ms
        self.wake_at_ms = deadline_ms - reserve_ms
        self.started = False
        self.finished = False
        self.now_ms = 0.0
        self.fields: Mapping[str, Any] = {}
        self.tensors: Mapping[str, Tensor] = {}
        self.choices: dict[str, str] = {}
        """Path of a switch, splitter, canary (outside for_eaches) -> the node that it took."""
        self.top = Scope(None, "", {}, shadow=False)
        self.answer = State(graph.sink, self.top, shadow=False)
        self.copies: dict[Node, State] = {}
        """Copies of shadows that have not answered."""
        self.flying: dict[str, State] = {}
        """At a worker, by instance."""
        self.seen: set[str] = set()
        """Instances that were computed or are no longer needed: further news of them are ignored."""
        self.early: dict[str, StageDone] = {}
        """Computed before anybody asked: while the log is read again."""
        self.passive: dict[Node, dict[State, None]] = {}
        """What shadows want of the answer's own nodes: they wait until somebody else asks, or the answer is there."""
        self.timed: dict[State, None] = {}
        """Go on by the deadline."""
        self.wake_asked = False
        self.queue: list[State] = []
        """Woken, first in first out; mostly one or two, and a list costs a tenth of a deque's memory."""
        self.dirty: dict[Scope, None] = {}
        self.commands: list[Command] = []
        self.steps = Path()
        self.shadow_steps: dict[str, PathStep] = {}
        self.planned: dict[str, float] = {}
        """Least accuracy that planning asked of an instance at a worker."""
        self.least_planned: dict[str, float] = {}
        """The same by stage, over all its instances so far."""
        self.pinned: dict[str, str] = {}
        """Variant that an instance at a worker was sent with."""
        self.planned_combinations: tuple[str, ...] = ()
        """Measured combinations that planning left open."""

    def advance(self, event: Event, now_ms: float) -> list[Command]:
        """Let the event happen."""
        return advance(self, event, now_ms)

    @property
    def idle(self) -> bool:
        """Nothing more can come of it: forget it."""
        return self.finished and not self.copies

    def is_final(self, instance: str) -> bool:
        """Whether this instance's completion would be the whole answer, and nobody else's input."""
        state = self.flying.get(instance)
        return state is not None and is_final(self, state)

    def path(self) -> list[PathStep]:
        """What was computed for the answer so far; rows of a for_each that ran on one device are one step."""
        return self.steps.steps()

    def path_accuracy(self, instance: str, accuracy: float, variant: str = "") -> float:
        """The accuracy of the answer, should `instance` complete with this accuracy and nothing run after it.

        `variant` (name or key) looks the run up in the graph's measured combinations, where there are any.
        """
        state = self.flying.get(instance)
        factors = dict(state.factors) if state else {}
        last = (state.node.path, variant) if state and variant and self._counts(state) else None
        measured = self.steps.measured(self.graph.measured, self.planned_combinations, last)
        return product(factors) * accuracy if measured is None else measured

    def accuracy(self, factors: Mapping[str, float]) -> float:
        """The accuracy of an answer that is there."""
        measured = self.steps.measured(self.graph.measured, self.planned_combinations, None)
        return product(factors) if measured is None else measured

    def plan(self, instance: str, accuracy_min: float) -> None:
        """What planning asked of an instance, so that plans of others count on no more than that."""
        if instance in self.flying:
            self.planned[instance] = accuracy_min
            path = self.flying[instance].node.path
            self.least_planned[path] = min(self.least_planned.get(path, 1.0), accuracy_min)

    def sent(self, instance: str, variant: str, accuracy: float) -> None:
        """A worker has the instance, with this variant: plans of others need not fear a less accurate one. Without it they do."""
        if instance in self.flying:
            self.planned[instance] = accuracy
            if self._counts(self.flying[instance]):
                self.pinned[instance] = variant_name(variant)

    def _counts(self, state: State) -> bool:
        """Whether measured combinations name the stage: they do where it runs a model for the answer."""
        return not state.shadow and self.graph.stages[state.node.path].model

    def forget(self, instance: str) -> None:
        """The instance is at no worker any more."""
        self.planned.pop(instance, None)
        self.pinned.pop(instance, None)

    def snapshot(self) -> dict[str, Any]:
        """For messages and tests: sizes of what it holds."""
        held = sum(len(tensor.data) for state in self.top.states.values() if state.result for tensor in state.result.tensors.values())
        running = [name for name, state in self.flying.items() if state.phase is Phase.RUNNING]
        return {"states": len(self.top.states), "bytes": held, "flying": running, "early": len(self.early), "copies": len(self.copies)}

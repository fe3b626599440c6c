"""What the most accurate variant says to a sampled request that another one has answered: a run of one stage, which is a shadow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphs.commands import Command, RunStage, ShadowDone
from graphs.compiled import Graph, compile_graph
from graphs.errors import GraphInvalid
from graphs.events import Abandoned, Event, StageDone, StageFailed, Started
from graphs.steps import part
from schemas.catalog import EndpointSpec, TaskSpec, VariantSpec, variant_key
from schemas.graph import REQUEST, GraphSpec, StageNode

AGREEMENT = "agreement"
"""The stage, and so what its topic's name ends with. A salt, too: another sample than that of the taps, or of a canary."""


def reference_of(task: TaskSpec) -> VariantSpec | None:
    """The variant whose answers others are compared with: the most accurate one, as declared; None where there is nothing to compare."""
    return max(task.variants, key=lambda variant: (variant.accuracy, variant.name)) if len(task.variants) > 1 else None


def is_sampled(request_id: str, share: float) -> bool:
    """The id alone decides, so that whoever compares answers knows which ones to keep."""
    return part(AGREEMENT, request_id) < share


def second_opinion_graph(endpoint: EndpointSpec, tasks: Mapping[str, TaskSpec]) -> tuple[Graph, str] | None:
    """One stage for the reference, and the reference's key; None where the endpoint asks for none, or cannot have any."""
    task = tasks.get(endpoint.task)
    reference = reference_of(task) if task is not None and endpoint.agreement is not None else None
    if reference is None or not reference.inputs:
        return None
    inputs = {tensor.name: f"{REQUEST}.{tensor.name}" for tensor in reference.inputs}
    node = StageNode(task=endpoint.task, inputs=inputs, variants=(reference.name,))
    try:
        return compile_graph(GraphSpec(nodes={AGREEMENT: node}, output=AGREEMENT), tasks), variant_key(endpoint.task, reference.name)
    except GraphInvalid:
        return None


class SecondOpinion:
    """Does what `Run` does for a shadow's copy when the answer is there; nothing else is left to do."""

    __slots__ = ("finished", "floor", "graph")

    def __init__(self, graph: Graph) -> None:
        """Of `second_opinion_graph`."""
        assert graph.line is not None
        self.graph = graph
        self.floor = 0.0
        self.finished = False

    @property
    def idle(self) -> bool:
        """Nothing more can come of it."""
        return self.finished

    @property
    def copies(self) -> Mapping[str, Any]:
        """What has not answered."""
        return {} if self.finished else {AGREEMENT: self}

    def sent(self, instance: str, variant: str, accuracy: float) -> None:
        """Nothing else is planned beside it."""

    def advance(self, event: Event, now_ms: float) -> list[Command]:
        """Let the event happen."""
        if self.finished:
            return []
        if isinstance(event, Started):
            assert self.graph.line is not None
            step = self.graph.line[0]
            return [RunStage(AGREEMENT, step.stage, {}, step.request_inputs, final=False, shadow=True)]
        self.finished = isinstance(event, StageDone | StageFailed | Abandoned)
        if isinstance(event, StageDone):
            return [ShadowDone(AGREEMENT, list(event.tensors.values()), event.accuracy, [event.step])]
        return []

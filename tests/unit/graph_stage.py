"""Graphs in a few words, and a worker that answers at once, for the tests of graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphs.commands import Command, Fail, Finish, RunStage
from graphs.compiled import Graph, compile_graph
from graphs.events import StageDone, Started
from graphs.run import Run, advance
from graphs.tensor import Tensor
from schemas.catalog import TaskSpec, TensorSpec, VariantSpec
from schemas.graph import GraphSpec, Node, StageNode
from schemas.terminal import PathStep

DEADLINE_MS = 1_000.0
RESERVE_MS = 50.0
Y = {"y": Tensor("y", "FP32", (1, 2), np.array([[0.2, 0.8]], "<f4").tobytes())}
Tensors = Mapping[str, Tensor]
Outputs = Callable[[RunStage], dict[str, Tensor]]


def task(name: str, *accuracies: float, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()) -> TaskSpec:
    variants = [VariantSpec(name=f"v{i}", file="f", accuracy=a, inputs=inputs, outputs=outputs) for i, a in enumerate(accuracies or (0.8, 0.9))]
    return TaskSpec(name=name, variants=tuple(variants))


def python_task(name: str) -> TaskSpec:
    return TaskSpec(name=name, variants=(VariantSpec(name="call", call="package:function", accuracy=1.0),))


TASKS: dict[str, TaskSpec] = {name: task(name) for name in "abcd"} | {"python": python_task("python")}


def stage(name: str, **inputs: str) -> StageNode:
    return StageNode(task=name, inputs=inputs)


def compiled(output: str, nodes: Mapping[str, Node], **more: Any) -> Graph:
    return compile_graph(GraphSpec(nodes=dict(nodes), output=output, **more), TASKS)


def reals(name: str, values: Any) -> Tensor:
    array = np.asarray(values, "<f4")
    return Tensor(name, "FP32", array.shape, array.tobytes())


def step(path: str, variant: str = "v0", device: str = "d") -> PathStep:
    return PathStep(stage=path, variant=variant, accuracy=0.8, accelerator="cpu", device=device, queued_ms=0.0, computed_ms=1.0, batch_size=1)


def done(command: RunStage, tensors: dict[str, Tensor], accuracy: float = 0.8, variant: str = "") -> StageDone:
    variant = variant or command.stage.variants[0]
    return StageDone(command.instance, tensors, variant, accuracy, step(command.stage.path, variant))


def new_run(graph: Graph, **more: Any) -> Run:
    return Run(graph, more.get("request_id", "id"), more.get("tenant", "tenant"), more.get("floor", 0.0), DEADLINE_MS, reserve_ms=RESERVE_MS)


class Driven:
    """A run whose every stage is answered at once; what was done stays to be looked at."""

    def __init__(
        self, graph: Graph, outputs: Outputs, *, fields: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.run = new_run(graph)
        self.stages: list[RunStage] = []
        self.others: list[Command] = []
        todo = advance(self.run, Started(fields or {}, tensors or {}), 0.0)
        while todo:
            command = todo.pop(0)
            if isinstance(command, RunStage):
                self.stages.append(command)
                todo += advance(self.run, done(command, outputs(command)), 0.0)
            else:
                self.others.append(command)

    @property
    def instances(self) -> list[str]:
        return [command.instance for command in self.stages]

    @property
    def end(self) -> Finish | Fail:
        (end,) = [command for command in self.others if isinstance(command, Finish | Fail)]
        return end


def run_stages(commands: list[Command]) -> dict[str, RunStage]:
    return {command.instance: command for command in commands if isinstance(command, RunStage)}

"""Random graphs, and a world of workers that are slow, lossy, repetitive and restarted under them."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from graphs.commands import Cancel, Command, Fail, Finish, RunStage, ShadowDone, Wake
from graphs.compiled import Graph, compile_graph
from graphs.errors import GraphInvalid
from graphs.events import Event, StageDone, StageFailed, Started, Woken
from graphs.planning import Cost, Estimates, plan_stage
from graphs.run import Run, advance
from graphs.stage import Stage
from graphs.tensor import Tensor
from schemas.catalog import TaskSpec, TensorSpec, VariantSpec
from schemas.graph import (
    Branch,
    CanaryNode,
    Case,
    EnsembleNode,
    ForEachNode,
    GraphSpec,
    Node,
    ShadowNode,
    SplitterNode,
    StageNode,
    SwitchNode,
)
from schemas.terminal import PathStep

ACCURACIES = (0.7, 0.8, 0.9, 1.0)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 1)), TensorSpec("rows", "INT64", (-1, 1)))
TASK = TaskSpec(name="t", variants=tuple(VariantSpec(name=f"v{i}", file="f", accuracy=a, outputs=OUTPUTS) for i, a in enumerate(ACCURACIES)))
PYTHON = TaskSpec(name="p", variants=(VariantSpec(name="v", call="a:b", accuracy=1.0, outputs=OUTPUTS),))
TASKS = {"t": TASK, "p": PYTHON}
TENSORS = ("y", "rows")
DEADLINE_MS = 1_000.0
RESERVE_MS = 50.0


def whole(name: str, values: list[int]) -> Tensor:
    array = np.array(values, "<i8").reshape(-1, 1)
    return Tensor(name, "INT64", array.shape, array.tobytes())


def real(name: str, value: float) -> Tensor:
    array = np.array([[value]], "<f4")
    return Tensor(name, "FP32", array.shape, array.tobytes())


@st.composite
def stages(draw: st.DrawFn, names: list[str], *, row: bool = False) -> StageNode:
    known = [*(f"{name}.{tensor}" for name in names for tensor in TENSORS), "request.rows", *(["row.x"] if row else [])]
    inputs = {f"i{index}": draw(st.sampled_from(known)) for index in range(draw(st.integers(1, 2)))}
    return StageNode(task=draw(st.sampled_from(["t", "t", "p"])), inputs=inputs)


@st.composite
def for_eaches(draw: st.DrawFn, names: list[str]) -> ForEachNode:
    inner: dict[str, Node] = {}
    seen = list(names)
    prefix = f"r{len(names)}"
    for index in range(draw(st.integers(1, 3))):
        inner[f"{prefix}{index}"] = draw(stages(seen, row=True))
        seen.append(f"{prefix}{index}")
    if draw(st.booleans()):
        choices = draw(st.lists(st.sampled_from(seen), min_size=2, max_size=2))
        inner[f"{prefix}s"] = SwitchNode(cases=(Case("max(row.x) > 1", choices[0]),), otherwise=choices[1])
    policy = draw(st.sampled_from(["all", "at_least", "best_by_deadline"]))
    over = draw(st.sampled_from([*(f"{name}.rows" for name in names), "request.rows"]))
    return ForEachNode(over={"x": over}, nodes=inner, output=list(inner)[-1], policy=policy, least=1 if policy == "at_least" else 0)


@st.composite
def nodes(draw: st.DrawFn, names: list[str]) -> Node:
    kind = draw(st.sampled_from(["stage"] * 3 + ["switch", "splitter", "canary", "ensemble", "shadow", "for_each", "for_each"]))
    others = list(dict.fromkeys(draw(st.lists(st.sampled_from(names), min_size=2, max_size=3)))) if names else []
    if kind == "for_each":
        return draw(for_eaches(names))
    if kind == "stage" or len(others) < 2:
        return draw(stages(names))
    if kind == "switch":
        return SwitchNode(cases=(Case(f"max({draw(st.sampled_from(names))}.y) > 0.5", others[0]),), otherwise=others[1])
    if kind == "splitter":
        return SplitterNode(branches=tuple(Branch(draw(st.floats(0.1, 2.0)), name) for name in others))
    if kind == "canary":
        return CanaryNode(stable=others[0], candidate=others[1], percent=draw(st.floats(0.0, 100.0)), sticky="tenant")
    if kind == "shadow":
        return ShadowNode(primary=others[0], copy=others[1])
    wait = draw(st.integers(0, len(others)))
    return EnsembleNode(members=tuple(others), wait=wait, by_deadline=draw(st.booleans()), tensors=("y", "rows"))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph of every kind of node, without what its output does not need; sometimes without its shadows, too."""
    graph = _needed(draw(levels(1)))
    return graph.lean if graph.lean is not None and draw(st.booleans()) else graph


@st.composite
def shadowed_graphs(draw: st.DrawFn) -> Graph:
    """With a shadow at the end."""
    chosen = draw(levels(2))
    *others, last = chosen
    return _needed(chosen | {"out": ShadowNode(primary=last, copy=draw(st.sampled_from(others)))})


@st.composite
def levels(draw: st.DrawFn, least: int) -> dict[str, Node]:
    """The outermost level."""
    chosen: dict[str, Node] = {}
    for index in range(draw(st.integers(least, 9))):
        chosen[f"n{index}"] = draw(nodes(list(chosen)))
    return chosen


def _needed(chosen: dict[str, Node]) -> Graph:
    while True:
        try:
            return compile_graph(GraphSpec(nodes=chosen, output=list(chosen)[-1]), TASKS)
        except GraphInvalid as error:
            for problem in error.problems:
                if problem.message != "nothing that leads to the output needs this node":
                    raise
                level = chosen
                for name in problem.node[:-1]:
                    holder = level[name]
                    assert isinstance(holder, ForEachNode)
                    level = holder.nodes
                del level[problem.node[-1]]


class World:
    """Runs one request to its end; `check` after every command."""

    def __init__(self, graph: Graph, random: Random, floor: float, *, losses: float, restarts: bool) -> None:
        self.graph = graph
        self.random = random
        self.losses = losses
        self.floor = floor
        self.restarts = restarts
        self.now_ms = 0.0
        self.agenda: list[tuple[float, int, Event]] = []
        self.count = 0
        self.done: dict[str, StageDone] = {}
        self.estimates = Estimates(self._costs, 1.0, lambda _: 2.0)
        self.floor_holds = True
        self.ends: list[Command] = []
        self.shadows: list[ShadowDone] = []
        self.run = self._new()

    def _costs(self, stage: Stage) -> list[Cost]:
        if not stage.model:
            return []
        return [Cost(f"v{index}", accuracy, 1.0 + index, 1.0) for index, accuracy in enumerate(ACCURACIES)]

    def _new(self) -> Run:
        self.dispatched: set[str] = set()
        self.cancelled: set[str] = set()
        self.lives_ended = 0
        return Run(self.graph, "id", "tenant", self.floor, DEADLINE_MS, reserve_ms=RESERVE_MS)

    def go(self) -> None:
        self._happen(Started({}, {"rows": whole("rows", [5, 6])}))
        steps = 0
        while self.agenda:
            steps += 1
            assert steps < 5_000
            self.agenda.sort(key=lambda item: item[:2])
            self.now_ms, _, event = self.agenda.pop(0)
            self._happen(event)
            if self.restarts and self.random.random() < 0.1:
                self._restart()

    def _restart(self) -> None:
        if self.ends:
            return
        self.run = self._new()
        self.floor_holds = False
        records = list(self.done.values())
        self.random.shuffle(records)
        cut = self.random.randint(0, len(records))
        for record in records[:cut]:
            self._happen(record)
        self._happen(Started({}, {"rows": whole("rows", [5, 6])}))
        for record in records[cut:]:
            self._happen(record)

    def _later(self, event: Event, at_ms: float) -> None:
        self.count += 1
        self.agenda.append((at_ms, self.count, event))

    def _happen(self, event: Event) -> None:
        if isinstance(event, StageDone):
            self.done.setdefault(event.instance, event)
        for command in advance(self.run, event, self.now_ms):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        if isinstance(command, RunStage):
            self._work(command)
        elif isinstance(command, Cancel):
            assert set(command.instances) <= self.dispatched
            assert not set(command.instances) & self.cancelled
            self.cancelled |= set(command.instances)
        elif isinstance(command, Wake):
            assert command.at_ms == DEADLINE_MS - RESERVE_MS
            self._later(Woken(), command.at_ms)
        elif isinstance(command, ShadowDone):
            self.shadows.append(command)
        else:
            assert isinstance(command, Finish | Fail)
            self.ends.append(command)
            self.lives_ended += 1
            assert self.lives_ended == 1

    def _work(self, command: RunStage) -> None:
        assert command.instance not in self.dispatched, "dispatched twice"
        assert not self.run.finished or command.shadow, "work for a finished request"
        assert command.final == self.run.is_final(command.instance)
        self.dispatched.add(command.instance)
        accuracy = self._plan(command)
        variant = f"t/v{ACCURACIES.index(accuracy)}" if command.stage.model else "p/v"
        at_ms = self.now_ms + self.random.choice([0.0, 1.0, 5.0, 30.0, 400.0, 1_500.0])
        if not command.shadow and self.random.random() < self.losses:
            self._later(StageFailed(command.instance, "attempts_exhausted", "lost"), at_ms)
            return
        for _ in range(self.random.choice([1, 1, 2])):
            step = PathStep(
                stage=command.stage.path,
                variant=variant,
                accuracy=accuracy,
                accelerator="cpu",
                device="d",
                queued_ms=0.0,
                computed_ms=1.0,
                batch_size=1,
            )
            self._later(StageDone(command.instance, self._outputs(command), variant, accuracy, step, at_ms), at_ms)
            at_ms += self.random.choice([0.0, 20.0])

    def _plan(self, command: RunStage) -> float:
        plan = plan_stage(self.run, command.instance, self.estimates, 1e6)
        if plan is None:
            # Possible at the start only: later there is always the way that was planned before.
            assert not self.floor_holds or not self.run.steps.steps()
            self.floor_holds = False
            return self.random.choice(ACCURACIES) if command.stage.model else 1.0
        assert 0.0 <= plan.rest_ms <= plan.total_ms
        assert plan.work_ms >= 0.0
        if not command.stage.model:
            return 1.0
        accuracy = self.random.choice([accuracy for accuracy in ACCURACIES if accuracy >= plan.accuracy_min - 1e-9])
        if self.random.random() < 0.5:
            self.run.sent(command.instance, "", accuracy)
        return accuracy

    def _outputs(self, command: RunStage) -> dict[str, Tensor]:
        rows = [self.random.randrange(9) for _ in range(self.random.randint(0, 3))]
        tensors: dict[str, Any] = {"y": real("y", self.random.random()), "rows": whole("rows", rows)}
        wanted = command.stage.outputs
        return {name: tensor for name, tensor in tensors.items() if wanted is None or name in wanted}

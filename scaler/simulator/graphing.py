"""Graphs in the simulator: which branch a request takes and how many rows a stage finds are drawn, as the load says; tensors have no content.

A switch whose branches the load weighs keeps what it waits for, but decides by a parameter of the request: its condition becomes
`size(node.tensor) >= 0 and request.parameters.branch_N == I`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from math import exp
from typing import Any
from zlib import crc32

import msgspec
import numpy as np

from graphs.compiled import Graph, compile_graph
from graphs.conditions import Condition
from graphs.errors import GraphInvalid
from graphs.planning import Cost, Estimates, best
from graphs.stage import Stage
from graphs.tensor import Tensor
from scaler.simulator.errors import InvalidScenario
from scaler.simulator.records import Request
from scaler.simulator.scenario import Load, Scenario
from schemas.catalog import Catalog, EndpointSpec, variant_key
from schemas.graph import (
    REQUEST,
    ROW,
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

ANY = "*"
ROWS_MAX = 256


class Branching(msgspec.Struct, frozen=True):
    """A switch that is decided by chance: the parameter that says how; a draw below the n-th number (and no earlier one) takes the n-th branch."""

    parameter: str
    below: tuple[float, ...]


class Graphing:
    """Of one scenario and seed. What is drawn follows from the request's key, so that it is the same whoever asks, and when."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._salt = b"%d/" % seed
        self._branchings: dict[str, list[Branching]] = {}
        self._means: dict[tuple[str, str], dict[str, tuple[str, Mapping[str, float]]]] = {}
        """By endpoint and stage path: for each of its tensors that a for_each goes over, that one's path and the mean rows by variant key."""
        self._outputs = {key: tuple(tensor.name for tensor in spec.outputs) for key, spec in scenario.catalog.variants().items()}
        loads: dict[str, Load] = {}
        for load in scenario.loads:
            loads.setdefault(load.endpoint, load)
        endpoints = {name: self._prepared(endpoint, loads.get(name)) for name, endpoint in scenario.catalog.endpoints.items()}
        self.catalog = Catalog(scenario.catalog.tasks, endpoints)
        """With switches that the loads decide."""

    # -- what is asked

    def open(self, payload: object, graph: Graph) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """The parameters and tensors of a request that its graph looks at."""
        request: Request = payload  # pyright: ignore[reportAssignmentType]
        fields: dict[str, Any] = {}
        for branching in self._branchings.get(request.endpoint, ()):
            drawn = self._uniform(request.key, branching.parameter)
            fields[branching.parameter] = min(bisect_right(branching.below, drawn), len(branching.below) - 1)
        tensors: dict[str, Tensor] = {}
        over = self._means.get((request.endpoint, REQUEST), {})
        for name in graph.request_tensors:
            path, means = over.get(name, ("", {}))
            rows = self._poisson(request.key, path, means.get(ANY, 1.0)) if path else request.rows
            tensors[name] = Tensor.of(name, np.zeros((rows, 1), np.float32))
        return {name: value for name, value in fields.items() if name in graph.fields}, tensors

    def outputs(self, endpoint: str, instance: str, key: bytes, variant: str, wanted: tuple[str, ...] | None, rows: int) -> dict[str, int]:
        """Rows of each tensor that a stage gives."""
        path, _, _ = instance.partition("#")
        over = self._means.get((endpoint, path), {})
        found: dict[str, int] = {}
        for name in self._outputs.get(variant, ()) if wanted is None else wanted:
            loop, means = over.get(name, ("", {}))
            found[name] = self._poisson(key, f"{instance}/{loop}", means.get(variant, means.get(ANY, 1.0))) if loop else rows
        return found

    # -- chance

    def _uniform(self, key: bytes, what: str) -> float:
        return crc32(what.encode(), crc32(self._salt + key)) / 2.0**32

    def _poisson(self, key: bytes, what: str, mean: float) -> int:
        """By inversion: a better detector, with a higher mean, finds more in the same picture."""
        drawn, part, rows = self._uniform(key, what), exp(-mean), 0
        while drawn >= part and rows < ROWS_MAX:
            drawn -= part
            rows += 1
            part *= mean / rows
        return rows

    # -- preparing

    def _prepared(self, endpoint: EndpointSpec, load: Load | None) -> EndpointSpec:
        if endpoint.graph is None or load is None:
            return endpoint
        for path, means in load.fan_out.items():
            if not _mark(endpoint.graph.nodes, "", path, means, endpoint.name, self._means):
                raise InvalidScenario(f"fan_out of {endpoint.name!r}: there is no for_each {path!r}")
        left = dict(load.branches)
        nodes = self._decided(endpoint.name, endpoint.graph.nodes, left)
        if left:
            raise InvalidScenario(f"branches of {endpoint.name!r}: there is no switch {min(left)!r}")
        return msgspec.structs.replace(endpoint, graph=msgspec.structs.replace(endpoint.graph, nodes=nodes))

    def _decided(self, endpoint: str, nodes: Mapping[str, Node], left: dict[str, dict[str, float]]) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name, node in nodes.items():
            if isinstance(node, ForEachNode):
                found[name] = msgspec.structs.replace(node, nodes=self._decided(endpoint, node.nodes, left))
            elif isinstance(node, SwitchNode) and name in left:
                found[name] = self._switch(endpoint, name, node, left.pop(name), nodes)
            else:
                found[name] = node
        return found

    def _switch(self, endpoint: str, name: str, node: SwitchNode, parts: Mapping[str, float], nodes: Mapping[str, Node]) -> SwitchNode:
        """A branch that the load does not name is never taken."""
        branches = [case.then for case in node.cases] + [node.otherwise]
        total = sum(parts.values())
        unknown = [branch for branch in parts if branch not in branches]
        if unknown or total <= 0.0:
            raise InvalidScenario(f"branches of {endpoint!r}: switch {name!r} has the branches {', '.join(branches)}, with parts above zero")
        known = self._branchings.setdefault(endpoint, [])
        parameter = f"branch_{len(known)}"
        shares = [parts.get(branch, 0.0) / total if branches.index(branch) == at else 0.0 for at, branch in enumerate(branches)]
        known.append(Branching(parameter, tuple(accumulate(shares))))
        cases: list[Case] = []
        for at, case in enumerate(node.cases):
            looked_at = [
                reference
                for reference in Condition(case.when, lambda node: node in nodes or node in (REQUEST, ROW)).references
                if not reference.field
            ]
            waits = [f"size({_holder(reference.node)}[{reference.tensor!r}]) >= 0" for reference in looked_at]
            cases.append(Case(" and ".join([*waits, f"request.parameters.{parameter} == {at}"]), case.then))
        return msgspec.structs.replace(node, cases=tuple(cases))


def _holder(node: str) -> str:
    return node if node in (REQUEST, ROW) else f"nodes[{node!r}]"


def _mark(
    nodes: Mapping[str, Node], prefix: str, wanted: str, means: Mapping[str, float], endpoint: str,
    found: dict[tuple[str, str], dict[str, tuple[str, Mapping[str, float]]]],
) -> bool:  # fmt: skip
    """Note which stages' tensors the for_each of this path goes over; False where there is none."""
    for name, node in nodes.items():
        if not isinstance(node, ForEachNode):
            continue
        if prefix + name == wanted:
            for source in node.over.values():
                holder, _, tensor = source.rpartition(".")
                for path in [REQUEST] if holder == REQUEST else _stages(nodes, holder, prefix):
                    found.setdefault((endpoint, path), {})[tensor] = (wanted, means)
            return True
        if _mark(node.nodes, f"{prefix}{name}/", wanted, means, endpoint, found):
            return True
    return False


def _stages(nodes: Mapping[str, Node], name: str, prefix: str) -> list[str]:
    """Paths of the stages that a node's tensors may come from."""
    node = nodes.get(name)
    if isinstance(node, StageNode | EnsembleNode):
        return [prefix + name]
    behind: list[str] = []
    if isinstance(node, SwitchNode):
        behind = [case.then for case in node.cases] + [node.otherwise]
    elif isinstance(node, SplitterNode):
        behind = [branch.then for branch in node.branches]
    elif isinstance(node, CanaryNode):
        behind = [node.stable, node.candidate]
    elif isinstance(node, ShadowNode):
        behind = [node.primary]
    return [path for other in behind for path in _stages(nodes, other, prefix)]


def best_accuracies(scenario: Scenario) -> dict[str, float]:
    """By endpoint: what its most accurate path has."""
    runnable = {variant.key for variant in scenario.variants if variant.costs}
    found: dict[str, float] = {}
    for name, endpoint in scenario.catalog.endpoints.items():
        if endpoint.graph is not None:
            found[name] = _best_of(endpoint.graph, scenario.catalog)
            continue
        task = scenario.catalog.tasks.get(endpoint.task)
        accuracies = [spec.accuracy for spec in task.variants if variant_key(task.name, spec.name) in runnable] if task else []
        found[name] = max(accuracies, default=0.0)
    return found


def _best_of(spec: GraphSpec, catalog: Catalog) -> float:
    try:
        graph = compile_graph(spec, catalog.tasks)
    except GraphInvalid as error:
        raise InvalidScenario(f"a graph cannot run: {error}") from error
    accuracies = {key: variant.accuracy for key, variant in catalog.variants().items()}

    def costs(stage: Stage) -> list[Cost]:
        return [Cost(key, accuracies.get(key, 1.0), 1.0, 1.0) for key in stage.variants]

    offer = best(graph, 0.0, Estimates(costs, 0.0, lambda _: 1.0), float("inf"))
    return offer.accuracy if offer is not None else 0.0

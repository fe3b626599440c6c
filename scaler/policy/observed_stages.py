"""An endpoint's stages as a tree: each below the stage whose answer it waits for last, with the rows that reach it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from graphs.compiled import Graph, compile_graph
from graphs.errors import GraphInvalid
from graphs.node import EnsembleNode, ForEachNode, Node, StageNode, SwitchNode
from graphs.outline import Outline, branches
from graphs.stage import Stage
from scaler.optimizers.snapshot import ANY_VARIANT, MeasuredPath, StageDemand
from schemas.catalog import Catalog, EndpointSpec, variant_key

FIRST_GUESS = 4.0
"""Rows of a for_each until some were seen, as dispatchers guess."""
ROWS_MIN = 20
"""Rows that must have been answered before what they led to is believed."""


class Place(msgspec.Struct, frozen=True):
    """One stage in the tree."""

    name: str
    task: str
    after: str | None
    fans: tuple[str, ...]
    """Paths of the for_eaches that it is in and the stage before is not."""
    switch: str = ""
    """In a for_each: the switch that takes this stage or another one."""


class Flow(msgspec.Struct):
    """What was seen of one stage lately, as differences of counters."""

    rows: float = 0.0
    done: dict[str, float] = {}
    led_to: dict[str, dict[str, float]] = {}


class StageTree(msgspec.Struct, frozen=True):
    """The stages of one endpoint, parents first."""

    places: tuple[Place, ...]
    measured: tuple[MeasuredPath, ...] = ()
    problem: str = ""

    def demand(self, flows: Mapping[str, Flow], fan_out: Mapping[str, tuple[float, float]], rows_per_request: float) -> tuple[StageDemand, ...]:
        """With the rows as seen (`flows` by stage), else as published for its for_eaches, else as guessed."""
        return tuple(self._stage(place, flows, fan_out, rows_per_request) for place in self.places)

    def _stage(self, place: Place, flows: Mapping[str, Flow], fan_out: Mapping[str, tuple[float, float]], rows_per_request: float) -> StageDemand:
        mean, upper = (rows_per_request, rows_per_request) if place.after is None else (1.0, 1.0)
        for path in place.fans:
            mean_rows, upper_rows = fan_out.get(path, (FIRST_GUESS, FIRST_GUESS))
            mean, upper = mean * max(mean_rows, 1e-3), upper * max(upper_rows, mean_rows, 1e-3)
        rows = {ANY_VARIANT: mean}
        before = flows.get(place.after) if place.after is not None else None
        if before is not None:
            answered = sum(before.done.values())
            here = flows.get(place.name)
            if answered >= ROWS_MIN:
                rows[ANY_VARIANT] = (here.rows if here is not None else 0.0) / answered
            for key, done in before.done.items():
                led_to = before.led_to.get(key, {}).get(place.name, 0.0)
                if done >= ROWS_MIN and led_to > 0.0:
                    rows[key] = led_to / done
        factor = max(upper / mean, 1.0)
        return StageDemand(
            name=place.name,
            task=place.task,
            after=place.after,
            rows=rows,
            rows_upper={key: value * factor for key, value in rows.items()},
            switch=place.switch,
        )


def stage_tree(endpoint: EndpointSpec, catalog: Catalog) -> StageTree:
    """Of an endpoint with or without a graph; a graph that cannot run has no stages and says why."""
    if endpoint.graph is None:
        return StageTree((Place("", endpoint.task, None, ()),) if endpoint.task in catalog.tasks else ())
    try:
        graph = compile_graph(endpoint.graph, catalog.tasks)
    except GraphInvalid as error:
        return StageTree((), problem=str(error))
    return StageTree(_places(graph), _measured(graph))


def _places(graph: Graph) -> tuple[Place, ...]:
    outline = graph.outline
    depth: dict[Node, int] = {}
    found: list[Place] = []
    for node in sorted(outline.order, key=lambda node: len(outline.gates[node])):
        _depth(node, outline, depth)
    taken_by = _branch_ends(outline)
    staged = [(node, stage) for node in outline.order if (stage := _stage_of(node)) is not None]
    for node, stage in sorted(staged, key=lambda each: (depth[each[0]], each[1].path)):
        before = max(_before(node, outline), key=lambda other: (depth[other], other.path), default=None)
        outside = set(_over(before)) if before is not None else set[str]()
        fans = tuple(path for path in stage.over if path not in outside)
        found.append(Place(stage.path, stage.task, before.path if before is not None else None, fans, taken_by.get(node, "")))
    return tuple(found)


def _branch_ends(outline: Outline) -> dict[Node, str]:
    """By stage: the switch that takes it or another one, row by row of a for_each, whose answer is as accurate as its rows are on average.

    Where one end waits for another, as in a cascade, how many rows end where does not follow from how many reach each.
    """
    found: dict[Node, str] = {}
    for node in outline.order:
        if isinstance(node, SwitchNode) and outline.owner[node] is not None:
            ends = {end for link in branches(node) for end in _answering(link.node, outline)}
            if not any(_before(end, outline) & ends for end in ends):
                found |= dict.fromkeys(ends, node.path)
    return found


def _stage_of(node: Node) -> Stage | None:
    return node.stage if isinstance(node, StageNode | EnsembleNode) else None


def _over(node: Node) -> tuple[str, ...]:
    stage = _stage_of(node)
    return stage.over if stage is not None else ()


def _before(node: Node, outline: Outline) -> set[Node]:
    """Stages that have answered before this one can start."""
    needed = {edge.other for edge in outline.edges[node]} | set(outline.gates[node])
    return {stage for other in needed for stage in _answering(other, outline)} - {node}


def _answering(node: Node, outline: Outline) -> set[Node]:
    """The stages that a node's answer can come from."""
    if _stage_of(node) is not None:
        return {node}
    if isinstance(node, ForEachNode) and node.sink is not None:
        inner = {link.node for link in node.sink.links()}
        return {stage for other in inner for stage in _answering(other, outline)}
    return {stage for edge in outline.edges[node] for stage in _answering(edge.other, outline)}


def _depth(node: Node, outline: Outline, depth: dict[Node, int]) -> int:
    """Stages on the longest way to a node."""
    if node not in depth:
        depth[node] = -1  # graphs have no cycles; gates of a node never lead back to it
        depth[node] = 1 + max((_depth(other, outline, depth) for other in _before(node, outline)), default=-1)
    return depth[node]


def _measured(graph: Graph) -> tuple[MeasuredPath, ...]:
    return tuple(
        MeasuredPath({path: variant_key(graph.stages[path].task, name) for path, name in combination.variants.items()}, combination.accuracy)
        for combination in graph.measured.values()
        if combination.variants.keys() <= graph.stages.keys()
    )

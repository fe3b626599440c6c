"""A graph that has been checked and can run."""

from __future__ import annotations

from collections.abc import Mapping

from graphs.building import Builder
from graphs.errors import GraphInvalid
from graphs.line_steps import LineStep, line_steps
from graphs.node import EnsembleNode, Link, Node, ShadowNode, SinkNode, StageNode
from graphs.outline import Outline
from graphs.path import Combination
from graphs.rewriting import with_comparisons
from graphs.stage import Stage
from graphs.validation import problems_of
from schemas.catalog import TaskSpec
from schemas.graph import GraphSpec


class Graph:
    """The nodes of a graph with all names looked up; immutable, shared by all its runs."""

    def __init__(self, spec: GraphSpec, built: Builder, lean: Graph | None = None) -> None:
        """From a spec without problems: use `compile_graph`."""
        self.lean = lean
        """The same without its shadows; None where it has none."""
        self.spec = spec
        self.stages: dict[str, Stage] = built.stages
        """By path; an ensemble's combine stage under the ensemble's path."""
        self.nodes: dict[str, Node] = built.nodes
        """Of the outermost level."""
        self.output = spec.output
        self.answers = spec.outputs
        self.sink = SinkNode("", "", main=True, link=Link(0, self.nodes[spec.output]))
        self.fields: frozenset[str] = frozenset(built.fields)
        """Request parameters that conditions or splitters look at."""
        self.request_tensors: frozenset[str] = frozenset(built.request_tensors)
        """Tensors of the request that conditions or for_eaches look at."""
        self.measured = {key: Combination(dict(part.split("=", 1) for part in key.split(",")), value) for key, value in spec.measured.items()}
        self.final: str | None = self._final()
        """Path of the stage whose completion is always the whole answer; None: it depends, ask `Run.is_final`."""
        self.outline = Outline(self.nodes[spec.output])
        self.line: tuple[LineStep, ...] | None = None if self.measured else line_steps(self.nodes[spec.output], self.outline.order)
        """Its stages, where one follows the other and nothing else has to be decided."""
        self._limits = {path: tuple(built.rows_max[over] for over in stage.over) for path, stage in self.stages.items()}

    @property
    def topics(self) -> tuple[str, ...]:
        """What the names of its stages' topics end with."""
        return tuple(stage.topic for stage in self.stages.values())

    def knows(self, path: str, rows: str) -> bool:
        """Whether a run can have this instance."""
        limits = self._limits.get(path)
        if limits is None:
            return False
        indices = rows.split(".") if rows else []
        return len(indices) == len(limits) and all(
            index.isascii() and index.isdecimal() and int(index) < limit for index, limit in zip(indices, limits, strict=True)
        )

    def _final(self) -> str | None:
        node = self.nodes[self.output]
        while isinstance(node, ShadowNode) and node.primary is not None and len(node.consumers) == 0:
            node, shadow = node.primary.node, node
            if node.consumers != [shadow]:
                return None
        return node.path if isinstance(node, StageNode | EnsembleNode) and all(isinstance(other, ShadowNode) for other in node.consumers) else None


def compile_graph(spec: GraphSpec, tasks: Mapping[str, TaskSpec]) -> Graph:
    """Check a graph against the catalog's tasks, and look all its names up. Raises GraphInvalid with every problem that was found."""
    problems = problems_of(spec, tasks)
    if problems:
        raise GraphInvalid(problems)
    compared = with_comparisons(spec)
    built = _built(compared, tasks, shadows=True)
    shadows = any(stage.shadow for stage in built.stages.values())
    return Graph(spec, built, Graph(spec, _built(compared, tasks, shadows=False)) if shadows else None)


def _built(spec: GraphSpec, tasks: Mapping[str, TaskSpec], *, shadows: bool) -> Builder:
    built = Builder(spec, tasks, shadows=shadows)
    built.build()
    return built

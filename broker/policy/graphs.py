"""The compiled graphs of the catalog's endpoints, and the ladders that their stages are served by."""

from __future__ import annotations

import msgspec

from broker.policy.ladder import Ladder
from graphs.compiled import Graph, compile_graph
from graphs.errors import GraphInvalid
from graphs.stage import Stage
from schemas.catalog import Catalog, TaskSpec, variant_key


class Compiled(msgspec.Struct, frozen=True):
    """An endpoint's graph as it runs now, or why it cannot."""

    revision: int
    graph: Graph | None
    problem: str = ""


class Graphs:
    """A fold over catalogs. Ladders of earlier revisions stay: requests may still run on them."""

    def __init__(self) -> None:
        self._compiled: dict[str, Compiled] = {}
        self._ladders: dict[tuple[str, tuple[str, ...]], str] = {}
        """The ladder's name by (task, variant keys that a stage allows)."""

    def observe(self, catalog: Catalog) -> None:
        """Compile what the catalog holds now; a graph that does not fit its tasks any more says so to whoever calls it."""
        self._compiled = {}
        for name, endpoint in catalog.endpoints.items():
            if endpoint.graph is None:
                continue
            try:
                graph = compile_graph(endpoint.graph, catalog.tasks)
            except GraphInvalid as error:
                self._compiled[name] = Compiled(endpoint.revision, None, str(error))
                continue
            self._compiled[name] = Compiled(endpoint.revision, graph)
            for stage in graph.stages.values():
                self._name(stage, catalog)

    def of(self, endpoint: str) -> Compiled:
        """The present graph of an endpoint that has one."""
        return self._compiled[endpoint]

    @property
    def stage_topics(self) -> set[tuple[str, str]]:
        """(endpoint, stage as topics name it) of every present graph."""
        found = {name: compiled.graph for name, compiled in self._compiled.items() if compiled.graph is not None}
        return {(name, stage.topic) for name, graph in found.items() for stage in graph.stages.values()}

    def ladder_of(self, stage: Stage) -> str:
        """The task's own ladder, or that of the variants which the stage allows."""
        return self._ladders[stage.task, stage.variants]

    def _name(self, stage: Stage, catalog: Catalog) -> None:
        task = catalog.tasks.get(stage.task)
        every = {variant_key(task.name, variant.name) for variant in task.variants} if task is not None else set[str]()
        allowed = ",".join(key.partition("/")[2] for key in stage.variants)
        self._ladders[stage.task, stage.variants] = stage.task if every <= set(stage.variants) else f"{stage.task}[{allowed}]"

    def ladders(self, catalog: Catalog) -> dict[str, Ladder]:
        """Of every stage that was ever seen, with the variants that are left of it."""
        found: dict[str, Ladder] = {}
        for (task_name, allowed), name in self._ladders.items():
            task = catalog.tasks.get(task_name)
            kept = tuple(variant for variant in (task.variants if task else ()) if variant_key(task_name, variant.name) in allowed)
            if name != task_name or task is None:
                found[name] = Ladder(TaskSpec(name=task_name, variants=kept), name=name)
        return found

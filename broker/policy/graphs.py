"""The compiled graphs of the catalog's endpoints, and the ladders that their stages are served by."""

from __future__ import annotations

import msgspec

from broker.policy.ladder import Ladder
from graphs.compiled import Graph, compile_graph
from graphs.errors import GraphInvalid
from graphs.second_opinion import second_opinion_graph
from graphs.stage import Stage
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, variant_key
from schemas.graph import GraphSpec


class Compiled(msgspec.Struct, frozen=True):
    """An endpoint's graph as it runs now, or why it cannot."""

    revision: int
    graph: Graph | None
    problem: str = ""


class SecondOpinions(msgspec.Struct, frozen=True):
    """What a share of an endpoint's answers is compared with."""

    compiled: Compiled
    reference: str
    """Variant key: its own answers are compared with nothing."""
    share: float


class Graphs:
    """A fold over catalogs. Ladders of earlier revisions stay: requests may still run on them."""

    def __init__(self) -> None:
        self._compiled: dict[str, Compiled] = {}
        self.second_opinions: dict[str, SecondOpinions] = {}
        """By endpoint of one stage; mostly empty."""
        self._seen = Catalog()
        self._ladders: dict[tuple[str, tuple[str, ...]], str] = {}
        """The ladder's name by (task, variant keys that a stage allows)."""

    def observe(self, catalog: Catalog) -> None:
        """Compile what the catalog holds now; a graph that does not fit its tasks any more says so to whoever calls it."""
        seen, self._seen = self._seen, Catalog(dict(catalog.tasks), dict(catalog.endpoints))
        # A canary's share moves every few minutes: that must not compile every graph there is while requests wait.
        kept = self._compiled if seen.tasks == catalog.tasks else {}
        self._compiled = {}
        self.second_opinions = {}
        for name, endpoint in catalog.endpoints.items():
            if endpoint.agreement is not None:
                self._compare(endpoint, endpoint.agreement.sample, catalog)
            if endpoint.graph is not None:
                known = kept.get(name) if seen.endpoints.get(name) == endpoint else None
                self._compiled[name] = known or self._compile(endpoint.graph, endpoint.revision, catalog)

    def _compile(self, spec: GraphSpec, revision: int, catalog: Catalog) -> Compiled:
        try:
            graph = compile_graph(spec, catalog.tasks)
        except GraphInvalid as error:
            return Compiled(revision, None, str(error))
        for stage in graph.stages.values():
            self._name(stage, catalog)
        return Compiled(revision, graph)

    def _compare(self, endpoint: EndpointSpec, share: float, catalog: Catalog) -> None:
        found = second_opinion_graph(endpoint, catalog.tasks)
        if found is not None:
            graph, reference = found
            for stage in graph.stages.values():
                self._name(stage, catalog)
            self.second_opinions[endpoint.name] = SecondOpinions(Compiled(endpoint.revision, graph), reference, share)

    def of(self, endpoint: str) -> Compiled:
        """The present graph of an endpoint that has one."""
        return self._compiled[endpoint]

    @property
    def stage_topics(self) -> set[tuple[str, str]]:
        """(endpoint, stage as topics name it) of every present graph, and of second opinions."""
        every = self._compiled | {name: asked.compiled for name, asked in self.second_opinions.items()}
        found = {name: compiled.graph for name, compiled in every.items() if compiled.graph is not None}
        return {(name, topic) for name, graph in found.items() for topic in graph.topics}

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

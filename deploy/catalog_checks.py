"""What catalog documents say about each other and about the catalog as it stands: references, floors, and graphs as a whole."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from deploy.catalog_graphs import Draft, Place
from deploy.catalog_taps import check_taps
from deploy.catalog_tasks import COMBINE
from deploy.graph_resolution import Resolved, calls_of, graph_of_task, resolve, tasks_of
from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields
from graphs.compiled import Graph, compile_graph
from graphs.errors import GraphInvalid, Problem
from graphs.node import Node, SplitterNode
from graphs.planning import Cost, Estimates
from graphs.search import search
from graphs.situation import CHOSEN, Situation, Status
from graphs.state import ROUNDING
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, variant_key
from schemas.graph import GraphSpec


class StatedTask(msgspec.Struct, frozen=True):
    """A task with the place that states it, for problems found later."""

    spec: TaskSpec
    fields: Fields


class StatedEndpoint(msgspec.Struct, frozen=True):
    """An endpoint with the place that states it, and the draft of its graph where it has one."""

    spec: EndpointSpec
    fields: Fields
    draft: Draft | None = None


class Statements(msgspec.Struct):
    """Everything that the files state; what is incomplete is named, but has problems of its own: what refers to it is not blamed for it."""

    tasks: dict[str, StatedTask] = {}
    endpoints: dict[str, StatedEndpoint] = {}
    incomplete_tasks: set[str] = set()
    incomplete_endpoints: set[str] = set()


class CatalogChecks:
    """Checks statements as a whole; `present` is the catalog as it stands, None where that is not known."""

    def __init__(self, stated: Statements, present: Catalog | None) -> None:
        self._stated = stated
        self._known = present is not None
        self._present = present or Catalog()
        self._tasks = self._present.tasks | {name: task.spec for name, task in stated.tasks.items()} | {COMBINE.name: COMBINE}
        self._resolved: dict[str, Resolved | None] = {}
        self._open: list[str] = []
        """Endpoints whose graphs are being resolved, each called by the one before."""

    def endpoints(self) -> tuple[EndpointSpec, ...]:
        """The endpoints with their graphs; everything wrong is reported at its place."""
        found: list[EndpointSpec] = []
        for name, stated in self._stated.endpoints.items():
            if stated.draft is None:
                self._check_task(stated)
                found.append(stated.spec)
                continue
            resolved = self._resolve(name, stated.draft)
            if resolved is not None:
                spec = msgspec.structs.replace(stated.spec, graph=resolved.graph)
                self._check_graph(spec, stated.fields, resolved)
                found.append(spec)
        for endpoint in self._present.endpoints.values():
            if endpoint.name not in self._stated.endpoints:
                self._check_present(endpoint)
        return tuple(found)

    def _check_task(self, stated: StatedEndpoint) -> None:
        task = self._tasks.get(stated.spec.task)
        if task is not None and stated.spec.defaults.min_accuracy > _best(task):
            stated.fields.problem("defaults", _floor_message(stated.spec, f"variant of task {task.name!r}", _best(task)))
        elif task is None and self._known and stated.spec.task not in self._stated.incomplete_tasks:
            known = did_you_mean(stated.spec.task, self._tasks)
            stated.fields.problem("task", f"task {stated.spec.task!r} is neither in these files nor in the catalog{known}")
        if task is not None:
            check_taps(stated.spec, stated.fields, {task.name: task}, ())

    def _resolve(self, name: str, draft: Draft) -> Resolved | None:
        if name not in self._resolved:
            self._open.append(name)
            called = {call.endpoint: self._called(call.endpoint, place) for call, place in calls_of(draft)}
            graphs = {endpoint: graph for endpoint, graph in called.items() if graph is not None}
            self._resolved[name] = resolve(draft, self._tasks, graphs) if len(graphs) == len(called) else None
            self._open.pop()
        return self._resolved[name]

    def _called(self, name: str, place: Place) -> GraphSpec | None:
        """The graph of an endpoint that is called; None where there is none, which is reported."""
        if name in self._open:
            place.problem("endpoint", f"an endpoint cannot call itself: {' calls '.join([*self._open[self._open.index(name) :], name])}")
            return None
        stated = self._stated.endpoints.get(name)
        if stated is not None and stated.draft is not None:
            resolved = self._resolve(name, stated.draft)
            return None if resolved is None else resolved.graph
        spec = self._present.endpoints.get(name) if stated is None else stated.spec
        if name in self._stated.incomplete_endpoints or (spec is None and not self._known):
            return None
        if spec is None:
            known = did_you_mean(name, {*self._stated.endpoints, *self._present.endpoints} - {*self._open})
            place.problem("endpoint", f"endpoint {name!r} is neither in these files nor in the catalog{known}")
            return None
        if spec.graph is None:
            return graph_of_task(spec.task, self._tasks)
        caller = next((caller for caller in self._open if caller in spec.graph.calls), None)
        if caller is not None:
            place.problem("endpoint", f"an endpoint cannot call itself: {name!r} calls {caller!r}")
            return None
        return spec.graph

    def _check_graph(self, spec: EndpointSpec, fields: Fields, resolved: Resolved) -> None:
        if not resolved.sound or (resolved.unknown_tasks and (not self._known or resolved.unknown_tasks & self._stated.incomplete_tasks)):
            return
        found = check_graph(resolved.graph, self._tasks)
        for path, key, message in found.problems:
            _place(resolved, path).problem(key, message)
        if found.problems:
            return
        if spec.defaults.min_accuracy > found.best:
            fields.problem("defaults", _floor_message(spec, "path of its graph", found.best))
        tasks = {name: self._tasks[name] for name in tasks_of(resolved.graph.nodes)}
        check_taps(spec, fields, tasks, [topic.replace(".", "/") for topic in stage_topics(resolved.graph, tasks | {COMBINE.name: COMBINE})])

    def _check_present(self, endpoint: EndpointSpec) -> None:
        """An endpoint that stays as it is must fit the tasks that change."""
        if endpoint.graph is None:
            changed = self._stated.tasks.get(endpoint.task)
            if changed is not None and endpoint.defaults.min_accuracy > _best(changed.spec):
                changed.fields.problem("variants", _floor_message(endpoint, f"variant of task {changed.spec.name!r}", _best(changed.spec)))
            return
        concerned = [self._stated.tasks[task] for task in tasks_of(endpoint.graph.nodes) if task in self._stated.tasks]
        if not concerned or self._stated.incomplete_tasks:
            return
        found = check_graph(endpoint.graph, self._tasks)
        for path, _, message in found.problems:
            concerned[0].fields.problem("variants", f"with this task, node {'/'.join(path)!r} of endpoint {endpoint.name!r} is wrong: {message}")
        if not found.problems and endpoint.defaults.min_accuracy > found.best:
            concerned[0].fields.problem("variants", _floor_message(endpoint, "path of its graph", found.best))


class GraphCheck(msgspec.Struct, frozen=True):
    """What is wrong with a graph, and the accuracy that its most accurate path reaches."""

    problems: list[Problem]
    best: float = 1.0


def check_graph(graph: GraphSpec, tasks: Mapping[str, TaskSpec]) -> GraphCheck:
    """Compile a graph for its problems."""
    try:
        compiled = compile_graph(graph, tasks)
    except GraphInvalid as invalid:
        return GraphCheck(invalid.problems)
    return GraphCheck([], best_accuracy(compiled, tasks))


def best_accuracy(graph: Graph, tasks: Mapping[str, TaskSpec]) -> float:
    """What the most accurate path promises, however long it takes: splitters take their best branch, switches any."""
    accuracies = {variant_key(task.name, variant.name): variant.accuracy for task in tasks.values() for variant in task.variants}
    estimates = Estimates(lambda stage: [Cost(key, accuracies[key], 0.0, 0.0) for key in stage.variants], 0.0, lambda _: 1.0)
    splitters = [node for node in graph.outline.order if isinstance(node, SplitterNode)]
    chosen = {splitter: splitter.branches[0].node for splitter in splitters}

    def promised(splitter: SplitterNode | None = None, branch: Node | None = None) -> float:
        taken = chosen | ({splitter: branch} if splitter and branch else {})
        known = tuple((node, Status(CHOSEN, chosen=other)) for node, other in taken.items())
        return max((accuracy for accuracy, _ in search(Situation(graph, None, known, tuple(graph.measured)), estimates)), default=0.0)

    for splitter in splitters:
        chosen[splitter] = max((link.node for link in splitter.branches), key=lambda branch, splitter=splitter: promised(splitter, branch))
    return promised() + ROUNDING


def stage_topics(graph: GraphSpec, tasks: Mapping[str, TaskSpec]) -> list[str]:
    """The last parts of the names of the topics that the graph's stages write to."""
    return list(compile_graph(graph, tasks).topics)


def _place(resolved: Resolved, path: tuple[str, ...]) -> Place:
    """Of a node, or of the nearest around it."""
    while path not in resolved.places:
        path = path[:-1]
    return resolved.places[path]


def _best(task: TaskSpec) -> float:
    return max((variant.accuracy for variant in task.variants), default=0.0)


def _floor_message(endpoint: EndpointSpec, best: str, accuracy: float) -> str:
    return (
        f"endpoint {endpoint.name!r} asks for an accuracy of {endpoint.defaults.min_accuracy:g} by default, but the best {best} reaches {accuracy:g}"
    )

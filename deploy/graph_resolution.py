"""From drafts to graphs: endpoints that are called stand in their place, and inputs left to be found by name are found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from deploy.catalog_graphs import NODES_MAX, CallNode, Draft, DraftNode, Place, RowsNode
from deploy.suggestions import did_you_mean
from graphs.combiners import ANSWERED
from graphs.fanout import ALL, MISSING
from schemas.catalog import TaskSpec, TensorSpec, VariantSpec
from schemas.graph import REQUEST, ROW, CanaryNode, EnsembleNode, ForEachNode, GraphSpec, Node, ShadowNode, SplitterNode, StageNode, SwitchNode

PARAMETERS = "parameters"
"""`request.parameters.name` in a condition is no tensor."""
_WORDS = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*')
"""Of a condition: texts, and names with dots."""
Table = dict[str, str]
"""What references are called elsewhere: a node, or `node.tensor`."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """A graph with what became known on the way."""

    graph: GraphSpec
    places: dict[tuple[str, ...], Place]
    """Of every node, those of called endpoints too: they point to the call."""
    unknown_tasks: frozenset[str]
    """Named by stages, and not known (yet): inputs left out are missing there."""
    sound: bool
    """False: problems were reported, and the graph makes no sense without what they are about."""


class _Scope(msgspec.Struct, frozen=True):
    """Nodes that see each other; `around` is the path of the for_each that they stand in, `parent` the nodes outside of it."""

    nodes: Mapping[str, DraftNode]
    around: tuple[str, ...] = ()
    parent: _Scope | None = None
    over: tuple[str, ...] = ()

    def before(self, name: str) -> str | None:
        names = list(self.nodes)
        at = names.index(name)
        return names[at - 1] if at else None


def calls_of(draft: Draft) -> list[tuple[CallNode, Place]]:
    """Every call of a draft, with its place."""
    return list(_calls(draft, draft.nodes, ()))


def _calls(draft: Draft, nodes: Mapping[str, DraftNode], around: tuple[str, ...]) -> Iterator[tuple[CallNode, Place]]:
    for name, node in nodes.items():
        if isinstance(node, CallNode):
            yield node, draft.places[*around, name]
        elif isinstance(node, RowsNode):
            yield from _calls(draft, node.nodes, (*around, name))


def graph_of_task(task: str, tasks: Mapping[str, TaskSpec]) -> GraphSpec:
    """What an endpoint of one stage is where a graph calls it."""
    name = re.sub(r"\W", "_", task)
    known = tasks.get(task)
    wanted = (None if known is None else common_tensors(known, (), _inputs)) or ()
    return GraphSpec(nodes={name: StageNode(task=task, inputs={tensor: f"{REQUEST}.{tensor}" for tensor in wanted})}, output=name)


def resolve(draft: Draft, tasks: Mapping[str, TaskSpec], called: Mapping[str, GraphSpec]) -> Resolved:
    """The graph of a draft; `called` has the graph of every endpoint that it calls. Problems are reported at their places."""
    return _Resolution(draft, tasks, called).resolve()


class _Resolution:
    def __init__(self, draft: Draft, tasks: Mapping[str, TaskSpec], called: Mapping[str, GraphSpec]) -> None:
        self.draft = draft
        self.tasks = tasks
        self.called = called
        self.places = dict(draft.places)
        self.unknown: set[str] = set()
        self.sound = True

    def _problem(self, place: Place, key: str, message: str) -> None:
        self.sound = False
        place.problem(key, message)

    def resolve(self) -> Resolved:
        draft = self.draft
        scope = _Scope(draft.nodes)
        table = self._answers(scope, {})
        nodes = self._scope(scope, table)
        if len(self.places) > NODES_MAX:
            self._problem(
                draft.places[()], "nodes", f"{len(self.places) - 1} nodes with those of the endpoints that are called, the limit is {NODES_MAX}"
            )
        output = draft.nodes.get(draft.output)
        answered = dict(self.called[output.endpoint].outputs) if isinstance(output, CallNode) else {}
        outputs = {label: answered.get(tensor, tensor) for label, tensor in draft.outputs.items()} or answered
        calls = {call.endpoint for call, _ in calls_of(draft)}
        calls = calls.union(*(self.called[endpoint].calls for endpoint in calls))
        graph = GraphSpec(
            nodes=nodes, output=renamed(table, draft.output), outputs=outputs, measured=draft.measured, fuse=draft.fuse, calls=tuple(sorted(calls))
        )
        return Resolved(graph=graph, places=self.places, unknown_tasks=frozenset(self.unknown), sound=self.sound)

    def _answers(self, scope: _Scope, outside: Table) -> Table:
        """By which names the answers of the calls in a scope are found once their nodes stand there."""
        table = {name: new for name, new in outside.items() if name.partition(".")[0] not in scope.nodes}
        for name, node in scope.nodes.items():
            if isinstance(node, CallNode):
                graph = self.called[node.endpoint]
                table[name] = f"{name}.{graph.output}"
                table |= {f"{name}.{label}": f"{name}.{graph.output}.{tensor}" for label, tensor in graph.outputs.items()}
        return table

    def _scope(self, scope: _Scope, table: Table) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name, node in scope.nodes.items():
            if isinstance(node, CallNode):
                found |= self._in_its_place(scope, table, name, node)
            elif isinstance(node, RowsNode):
                inner = _Scope(node.nodes, (*scope.around, name), scope, tuple(node.node.over))
                inner_table = self._answers(inner, table)
                nodes = self._scope(inner, inner_table)
                over = {row: renamed(table, reference) for row, reference in node.node.over.items()}
                found[name] = msgspec.structs.replace(node.node, nodes=nodes, over=over, output=renamed(inner_table, node.node.output))
            elif isinstance(node, StageNode):
                found[name] = self._stage(scope, table, name, node)
            else:
                found[name] = renamed_node(table, node)
        return found

    def _stage(self, scope: _Scope, table: Table, name: str, stage: StageNode) -> StageNode:
        """With every input that is not stated taken by name: from the node before, else from the row, else from the request."""
        stated = {tensor: renamed(table, reference) for tensor, reference in stage.inputs.items()}
        task = self.tasks.get(stage.task)
        before = scope.before(name)
        if task is None:
            self.unknown.add(stage.task)
            return msgspec.structs.replace(stage, inputs=stated)
        wanted = common_tensors(task, stage.variants, _inputs)
        if wanted is None and not stated and before is not None:
            # A Python task that takes whatever comes.
            wanted = self._tensors(scope, before)
        found = {tensor: stated[tensor] if tensor in stated else self._by_name(scope, table, name, tensor) for tensor in wanted or ()}
        if not found and not stated:
            told = f"stage {name!r} needs `inputs`: task {stage.task!r} declares none, and what comes before it is not declared either"
            self._problem(self.places[*scope.around, name], "", told)
        return msgspec.structs.replace(stage, inputs=found | stated)

    def _by_name(self, scope: _Scope, table: Table, name: str, tensor: str) -> str:
        before = scope.before(name)
        if before is not None and tensor in (self._tensors(scope, before) or ()):
            return renamed(table, f"{before}.{tensor}")
        inside = scope
        while inside.parent is not None and tensor not in inside.over:
            inside = inside.parent
        return f"{ROW if tensor in inside.over else REQUEST}.{tensor}"

    def _in_its_place(self, scope: _Scope, table: Table, name: str, call: CallNode) -> dict[str, Node]:
        """The nodes of the called graph, as `name.node`; what they take of the request is what the call gives them."""
        graph = self.called[call.endpoint]
        place = self.places[*scope.around, name]
        wanted = request_tensors(graph.nodes)
        for tensor in call.inputs:
            if tensor not in wanted:
                self._problem(place, f"inputs.{tensor}", f"endpoint {call.endpoint!r} takes no tensor {tensor!r}{did_you_mean(tensor, wanted)}")
        given = {t: renamed(table, call.inputs[t]) if t in call.inputs else self._by_name(scope, table, name, t) for t in wanted}
        moved = {node: f"{name}.{node}" for node in graph.nodes} | {f"{REQUEST}.{t}": reference for t, reference in given.items()}
        self._refuse_hidden(graph, given, place)
        self.places |= {(*scope.around, *(f"{name}.{path[0]}", *path[1:])): place for path in _paths(graph.nodes)}
        return {f"{name}.{inner}": renamed_node(moved, node) for inner, node in graph.nodes.items()}

    def _refuse_hidden(self, graph: GraphSpec, given: Mapping[str, str], place: Place) -> None:
        """Inside a for_each of the called graph a row of ours is hidden where its rows have a tensor of the same name."""
        for each in graph.nodes.values():
            for tensor in request_tensors(each.nodes) if isinstance(each, ForEachNode) else ():
                source, _, row = given[tensor].partition(".")
                if source == ROW and isinstance(each, ForEachNode) and row in each.over:
                    told = f"the called endpoint takes `{REQUEST}.{tensor}` inside a for_each whose rows have a tensor {row!r} too: rename it"
                    self._problem(place, "", told)

    def _tensors(self, scope: _Scope, name: str, asked: tuple[str, ...] = ()) -> tuple[str, ...] | None:
        """Names of a node's tensors; None where they are not known."""
        at: _Scope | None = scope
        while at is not None and name not in at.nodes:
            at = at.parent
        if at is None or name in asked:
            return None
        node, asked = at.nodes[name], (*asked, name)
        if isinstance(node, StageNode):
            task = self.tasks.get(node.task)
            return None if task is None else common_tensors(task, node.variants, _outputs)
        if isinstance(node, CallNode):
            graph = self.called[node.endpoint]
            return tuple(graph.outputs) or self._tensors(_Scope(graph.nodes), graph.output)
        if isinstance(node, (RowsNode, ForEachNode)):
            each = node.node if isinstance(node, RowsNode) else node
            rows = self._tensors(_Scope(node.nodes, parent=at), each.output)
            return rows if rows is None or each.policy == ALL else (*rows, MISSING)
        shared = _shared([self._tensors(at, taken, asked) for taken in takes(node)])
        if isinstance(node, EnsembleNode):
            merged = node.tensors or shared
            return None if merged is None else (*merged, ANSWERED)
        return shared


def _shared(each: list[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Those that all have, in the order of the first; None where one is not known."""
    known = [tensors for tensors in each if tensors is not None]
    if not known or len(known) < len(each):
        return None
    return tuple(tensor for tensor in known[0] if all(tensor in others for others in known))


def _inputs(variant: VariantSpec) -> tuple[TensorSpec, ...]:
    return variant.inputs


def _outputs(variant: VariantSpec) -> tuple[TensorSpec, ...]:
    return variant.outputs


def common_tensors(task: TaskSpec, variants: Iterable[str], side: Callable[[VariantSpec], tuple[TensorSpec, ...]]) -> tuple[str, ...] | None:
    """Names of the inputs or outputs that the variants (none named, or none that the task has: all) share; None where one declares none."""
    chosen = [variant for variant in task.variants if variant.name in variants] or task.variants
    return _shared([tuple(tensor.name for tensor in side(variant)) or None for variant in chosen])


def takes(node: Node) -> tuple[str, ...]:
    """The nodes that a node may be, or merges."""
    if isinstance(node, SwitchNode):
        return (*(case.then for case in node.cases), node.otherwise)
    if isinstance(node, SplitterNode):
        return tuple(branch.then for branch in node.branches)
    if isinstance(node, CanaryNode):
        return node.stable, node.candidate
    if isinstance(node, ShadowNode):
        return (node.primary,)
    return node.members if isinstance(node, EnsembleNode) else ()


def renamed(table: Table, reference: str) -> str:
    """A reference by the names of a table: the longest beginning that stands there counts."""
    parts = reference.split(".")
    for length in range(len(parts), 0, -1):
        start = ".".join(parts[:length])
        if start in table:
            return ".".join((table[start], *parts[length:]))
    return reference


def renamed_condition(table: Table, condition: str) -> str:
    """The names in a condition; its texts stay as they are."""
    return _WORDS.sub(lambda found: found[0] if found[0][0] in "\"'" else renamed(table, found[0]), condition)


def renamed_node(table: Table, node: Node) -> Node:
    """A node with every node and tensor that it names by the names of a table."""
    change: dict[str, Any]
    if isinstance(node, StageNode):
        change = {"inputs": {tensor: renamed(table, reference) for tensor, reference in node.inputs.items()}}
    elif isinstance(node, SwitchNode):
        cases = tuple(msgspec.structs.replace(c, when=renamed_condition(table, c.when), then=renamed(table, c.then)) for c in node.cases)
        change = {"cases": cases, "otherwise": renamed(table, node.otherwise)}
    elif isinstance(node, SplitterNode):
        change = {"branches": tuple(msgspec.structs.replace(branch, then=renamed(table, branch.then)) for branch in node.branches)}
    elif isinstance(node, CanaryNode):
        change = {"stable": renamed(table, node.stable), "candidate": renamed(table, node.candidate)}
    elif isinstance(node, ShadowNode):
        change = {"primary": renamed(table, node.primary), "copy": renamed(table, node.copy)}
    elif isinstance(node, EnsembleNode):
        change = {"members": tuple(renamed(table, member) for member in node.members)}
    else:
        inner = {name: new for name, new in table.items() if name.partition(".")[0] not in node.nodes}
        nodes = {name: renamed_node(inner, each) for name, each in node.nodes.items()}
        change = {"over": {row: renamed(table, reference) for row, reference in node.over.items()}, "nodes": nodes}
    return msgspec.structs.replace(node, **change)


def request_tensors(nodes: Mapping[str, Node]) -> list[str]:
    """The tensors of the request that nodes take, in the order of first use."""
    of_request = (reference for reference in references(nodes) if reference.startswith(f"{REQUEST}."))
    return list(dict.fromkeys(name for reference in of_request if (name := reference.removeprefix(f"{REQUEST}.")).partition(".")[0] != PARAMETERS))


def references(nodes: Mapping[str, Node]) -> Iterator[str]:
    """Every `node.tensor` that nodes name, in conditions too."""
    for node in nodes.values():
        if isinstance(node, StageNode):
            yield from node.inputs.values()
        elif isinstance(node, SwitchNode):
            yield from (word for case in node.cases for word in _WORDS.findall(case.when))
        elif isinstance(node, ForEachNode):
            yield from node.over.values()
            yield from references(node.nodes)


def tasks_of(nodes: Mapping[str, Node]) -> set[str]:
    """The tasks that stages run; an ensemble's merging is not among them."""
    found: set[str] = set()
    for node in nodes.values():
        if isinstance(node, StageNode):
            found.add(node.task)
        elif isinstance(node, ForEachNode):
            found |= tasks_of(node.nodes)
    return found


def has_ensemble(nodes: Mapping[str, Node]) -> bool:
    """Whether something has to be merged."""
    return any(isinstance(node, EnsembleNode) or (isinstance(node, ForEachNode) and has_ensemble(node.nodes)) for node in nodes.values())


def _paths(nodes: Mapping[str, Node]) -> Iterator[tuple[str, ...]]:
    for name, node in nodes.items():
        yield (name,)
        if isinstance(node, ForEachNode):
            yield from ((name, *path) for path in _paths(node.nodes))

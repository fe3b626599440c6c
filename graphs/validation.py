"""What is wrong with a graph: every problem at once, each with the node and the key that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graphs.conditions import Condition
from graphs.declared import Declared
from graphs.errors import Problem
from graphs.names import Sight, near, split_reference
from graphs.node_checks import ROWS_TOTAL_MAX, own_problems, references, targets
from graphs.shapes import answer_problems, input_problems, reference_problems
from graphs.stage import COMBINE_TASK
from schemas.catalog import TaskSpec
from schemas.graph import REQUEST, ROW, ForEachNode, GraphSpec, Node, ShadowNode, StageNode, SwitchNode
from schemas.limits import Limits
from schemas.names import NAME

RESERVED = (REQUEST, ROW, "nodes")
NODES_MAX = 256
"""Nodes of a graph, those inside for_eaches included."""
DEPTH_MAX = 4
"""for_eaches inside one another."""
Path = tuple[str, ...]


def problems_of(spec: GraphSpec, tasks: Mapping[str, TaskSpec]) -> list[Problem]:
    """Every problem of a graph, in the order of its nodes."""
    check = _Check(spec, tasks)
    check.run()
    return list(dict.fromkeys(check.problems))


class _Check:
    """One graph being looked at."""

    def __init__(self, spec: GraphSpec, tasks: Mapping[str, TaskSpec]) -> None:
        self.problems: list[Problem] = []
        self._spec = spec
        self._tasks = tasks
        self._declared = Declared(tasks)
        self._edges: dict[Path, list[Path]] = {}
        self._topics: dict[str, Path] = {}

    def run(self) -> None:
        """Nodes, then what they make together."""
        sight = Sight(self._spec.nodes)
        if _count(self._spec.nodes) > NODES_MAX:
            self._add((), "nodes", f"{_count(self._spec.nodes)} nodes, the limit is {NODES_MAX}")
            return
        self._level(sight, 1)
        if not self._spec.nodes:
            self._add((), "nodes", "a graph has at least one node")
        elif self._spec.output not in self._spec.nodes:
            self._add((), "output", f"there is no node {self._spec.output!r}{near(self._spec.output, self._spec.nodes)}")
        else:
            self._reach()
        self.problems += answer_problems(self._declared, sight, self._spec)
        self._cycles()
        self._measured()

    def _add(self, path: Path, key: str, message: str) -> None:
        self.problems.append(Problem(path, key, message))

    def _level(self, sight: Sight, rows: int) -> None:
        for name, spec in sight.nodes.items():
            path = (*sight.path, name)
            self._edges[path] = []
            self._name(name, path, sight)
            for key, message in own_problems(spec):
                self._add(path, key, message)
            for named in targets(spec):
                if self._target(path, named.key, named.name, sight):
                    self._depends(path, named.name, sight)
            for named in references(spec):
                self._reference(path, named.key, named.name, sight)
            if isinstance(spec, StageNode):
                self._stage(path, spec, sight)
            elif isinstance(spec, SwitchNode):
                self._conditions(path, spec, sight)
            elif isinstance(spec, ShadowNode) and sight.parent is not None:
                self._add(path, "", "a shadow stands outside for_eaches: its copy is one sub-graph for the whole request")
            elif isinstance(spec, ForEachNode):
                self._for_each(path, spec, sight, rows)

    def _name(self, name: str, path: Path, sight: Sight) -> None:
        if not NAME.match(name) or len(name.encode()) > Limits().name_bytes_max:
            self._add(path, "", f"{name!r} is no name: letters, digits, '.', '_' and '-', at most {Limits().name_bytes_max}")
        if name in RESERVED:
            self._add(path, "", f"{name!r} is a reserved name: {', '.join(RESERVED)} have a meaning of their own")
        if sight.parent is not None and sight.parent.find(name) is not None:
            self._add(path, "", f"{name!r} is the name of a node outside, too")
        topic = ".".join(path)
        other = self._topics.setdefault(topic, path)
        if other != path:
            self._add(path, "", f"would have the same topic ({topic}) as {'/'.join(other)}")

    def _target(self, path: Path, key: str, name: str, sight: Sight) -> bool:
        if sight.find(name) is not None:
            return True
        self._add(path, key, f"there is no node {name!r}{near(name, sight.names())}")
        return False

    def _reference(self, path: Path, key: str, reference: str, sight: Sight) -> None:
        node, tensor = split_reference(reference, sight)
        if not tensor or not node:
            self._add(path, key, f"{reference!r} is no tensor: write node.tensor, {REQUEST}.tensor{', row.tensor' if sight.parent else ''}")
        elif node == ROW:
            self._row(path, key, tensor, sight)
        elif node != REQUEST and self._target(path, key, node, sight):
            self._depends(path, node, sight)
            for message in reference_problems(self._declared, sight, reference):
                self._add(path, key, message)

    def _row(self, path: Path, key: str, tensor: str, sight: Sight) -> None:
        rows = sight.row_tensors()
        if not rows:
            self._add(path, key, f"{ROW}.{tensor} has a meaning inside a for_each only")
        elif not any(tensor in names for names in rows):
            known = [name for names in rows for name in names]
            self._add(path, key, f"a row has no tensor {tensor!r}{near(tensor, known)}")

    def _depends(self, path: Path, name: str, sight: Sight) -> None:
        found = sight.find(name)
        assert found is not None
        self._edges[path].append((*found[1].path, name))

    def _stage(self, path: Path, spec: StageNode, sight: Sight) -> None:
        if not spec.inputs:
            self._add(path, "inputs", "a stage has at least one input")
        task = self._tasks.get(spec.task)
        if task is None or spec.task == COMBINE_TASK:
            self._add(path, "task", f"there is no task {spec.task!r}{near(spec.task, self._tasks)}")
            return
        known = [variant.name for variant in task.variants]
        for name in spec.variants:
            if name not in known:
                self._add(path, "variants", f"task {spec.task!r} has no variant {name!r}{near(name, known)}")
        if not known:
            self._add(path, "task", f"task {spec.task!r} has no variant")
        if spec.parameters and not any(variant.call for variant in self._declared.variants(spec)):
            self._add(path, "parameters", f"are for Python tasks, and {spec.task!r} is a model")
        for key, message in input_problems(self._declared, sight, spec):
            self._add(path, key, message)

    def _conditions(self, path: Path, spec: SwitchNode, sight: Sight) -> None:
        for index, case in enumerate(spec.cases):
            key = f"cases.{index}.when"
            try:
                condition = Condition(case.when, sight.known)
            except ValueError as error:
                self._add(path, key, str(error))
                continue
            for reference in condition.references:
                if not reference.field:
                    self._reference(path, key, f"{reference.node}.{reference.tensor}", sight)

    def _for_each(self, path: Path, spec: ForEachNode, sight: Sight, rows: int) -> None:
        total = rows * max(spec.rows_max, 1)
        if rows > 1 and total > ROWS_TOTAL_MAX:
            self._add(path, "rows_max", f"{total} rows together with the for_eaches around it, the limit is {ROWS_TOTAL_MAX}")
        if len(path) > DEPTH_MAX:
            self._add(path, "", f"for_eaches are nested more than {DEPTH_MAX} deep")
            return
        self._level(Sight(spec.nodes, sight, path, spec), total)
        if spec.output in spec.nodes:
            self._edges[path].append((*path, spec.output))

    def _reach(self) -> None:
        reached: set[Path] = set()
        left: list[Path] = [(self._spec.output,)]
        while left:
            path = left.pop()
            if path not in reached:
                reached.add(path)
                left += self._edges.get(path, [])
        for path in self._edges:
            if path not in reached and (len(path) == 1 or path[:-1] in reached):
                self._add(path, "", "nothing that leads to the output needs this node")

    def _cycles(self) -> None:
        done: set[Path] = set()
        for start in self._edges:
            cycle = _cycle_from(start, self._edges, done)
            if cycle:
                self._add(cycle[0], "", f"a cycle: {' -> '.join('/'.join(path) for path in cycle)}")

    def _measured(self) -> None:
        stages = dict(_model_stages(self._spec.nodes, (), self._declared))
        for key, accuracy in self._spec.measured.items():
            where = f"measured.{key}"
            parts = [part.partition("=") for part in key.split(",")]
            named = {stage: variant for stage, _, variant in parts}
            if not 0.0 <= accuracy <= 1.0:
                self._add((), where, f"an accuracy is between 0 and 1, not {accuracy}")
            if set(named) != set(stages) or list(named) != sorted(named):
                self._add((), where, f"names a variant for each model stage, by name: {','.join(f'{stage}=...' for stage in sorted(stages))}")
                continue
            for stage, variant in named.items():
                if variant not in stages[stage]:
                    self._add((), where, f"stage {stage!r} has no variant {variant!r}{near(variant, stages[stage])}")


def _count(nodes: Mapping[str, Node]) -> int:
    return sum(1 + (_count(spec.nodes) if isinstance(spec, ForEachNode) else 0) for spec in nodes.values())


def _model_stages(nodes: Mapping[str, Node], path: Path, declared: Declared) -> Iterable[tuple[str, list[str]]]:
    for name, spec in nodes.items():
        if isinstance(spec, ForEachNode):
            yield from _model_stages(spec.nodes, (*path, name), declared)
        elif isinstance(spec, StageNode):
            models = [variant.name for variant in declared.variants(spec) if not variant.call]
            if models:
                yield "/".join((*path, name)), models


def _cycle_from(start: Path, edges: Mapping[Path, list[Path]], done: set[Path]) -> list[Path]:
    """The first cycle that is found from a node, its first node twice; nodes without one are `done`."""
    if start in done:
        return []
    way: list[Path] = [start]
    left = [iter(edges.get(start, []))]
    while left:
        following = next(left[-1], None)
        if following is None:
            done.add(way.pop())
            left.pop()
        elif following in way:
            done.update(way)
            return [*way[way.index(following) :], following]
        elif following not in done:
            way.append(following)
            left.append(iter(edges.get(following, [])))
    return []

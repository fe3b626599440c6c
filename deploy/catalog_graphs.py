"""What `graph:` of an endpoint must say: each node of the YAML as a draft, with the lines that problems found later point to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from deploy.yaml_documents import Fields, Source, as_fields, line_of, lines_of
from schemas.errors import ModelRefused
from schemas.graph import (
    REQUEST,
    ROW,
    Branch,
    CanaryNode,
    Case,
    EnsembleNode,
    ForEachNode,
    Guardrails,
    Node,
    ShadowNode,
    SplitterNode,
    StageNode,
    SwitchNode,
)
from schemas.limits import Limits
from workers.models import model_path

GRAPH_KEYS = ("nodes", "output", "outputs", "measured", "fuse")
STAGE_KEYS = ("task", "variants", "inputs", "parameters")
CASE_KEYS = ("when", "then", "otherwise")
SPLITTER_KEYS = ("branches", "sticky")
BRANCH_KEYS = ("weight", "then")
CANARY_KEYS = ("stable", "candidate", "steps", "step_requests", "guardrails", "alerts", "sticky")
GUARDRAIL_KEYS = ("failed_share", "latency_p99", "attainment", "agreement", "accuracy")
SHADOW_KEYS = ("primary", "copy", "share")
ENSEMBLE_KEYS = ("members", "combiner", "weights", "wait", "tensors")
FOR_EACH_KEYS = ("over", "nodes", "output", "rows_max", "policy")
CALL_KEYS = ("endpoint", "inputs")
NODES_MAX = 256
"""Of a whole graph, with those inside a for_each and of the endpoints that it calls."""
MEASURED_MAX = 10_000
MEASURED_BYTES_MAX = 4 << 20
STEP_REQUESTS_MAX = 1_000_000
WEIGHT_MAX = 1e9
FACTOR_MAX = 1e3
NODE_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,63}$")
"""So that a node can be named in a condition; the dot is left for the nodes of an endpoint that is called."""
Given = TypeVar("Given")


class CallNode(msgspec.Struct, frozen=True):
    """Another endpoint's graph in the place of this node; `inputs` as of a stage: the request's tensors that it sees."""

    endpoint: str
    inputs: dict[str, str]


class RowsNode(msgspec.Struct, frozen=True):
    """A for_each whose inner nodes are drafts too."""

    node: ForEachNode
    nodes: dict[str, DraftNode]


DraftNode = Node | CallNode | RowsNode


class Place:
    """Where a node (or the whole graph) stands in its file."""

    def __init__(self, source: Source, line: int, lines: Mapping[str, int]) -> None:
        self.source = source
        self._line = line
        self._lines = dict(lines)

    def problem(self, key: str, message: str) -> None:
        """Report against the line of a key (`inputs.image`), of the nearest key around it, else of the node."""
        while key and key not in self._lines:
            key = key.rpartition(".")[0]
        self.source.add(self._lines.get(key, self._line) if key else self._line, message)


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A graph as it is written: inputs may be left to be found by name, and calls are not yet in their place."""

    nodes: dict[str, DraftNode]
    output: str
    outputs: dict[str, str]
    measured: dict[str, float]
    fuse: bool
    places: dict[tuple[str, ...], Place]
    """By the node's path; the empty path is the graph."""


def read_graph(fields: Fields, limits: Limits) -> Draft | None:
    """The draft of a `graph:` mapping; None where something is missing without which nothing more can be said. Everything wrong is reported."""
    reader = _GraphReader(limits)
    reader.places[()] = Place(fields.source, fields.line, {key: fields.line_of(key) for key in fields.keys()})  # noqa: SIM118 - not a mapping
    nodes = reader.nodes(fields, ())
    output = _required(fields, "output")
    outputs, measured, fuse = fields.words("outputs"), _measured(fields), fields.flag("fuse") is not False
    if nodes is None or output is None:
        return None
    return Draft(nodes=nodes, output=output, outputs=outputs, measured=measured, fuse=fuse, places=reader.places)


class _GraphReader:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.places: dict[tuple[str, ...], Place] = {}
        self.kinds: dict[str, Callable[[Fields, str, tuple[str, ...]], DraftNode | None]] = {
            "stage": self._stage,
            "switch": self._switch,
            "splitter": self._splitter,
            "canary": self._canary,
            "shadow": self._shadow,
            "ensemble": self._ensemble,
            "for_each": self._for_each,
            "call": self._call,
        }

    def nodes(self, fields: Fields, around: tuple[str, ...]) -> dict[str, DraftNode] | None:
        """The nodes of a list by name, in its order; None where there is none."""
        items = fields.items("nodes")
        if not items:
            fields.missing("nodes")
            return None
        found: dict[str, DraftNode] = {}
        for item in items:
            if len(self.places) > NODES_MAX:
                fields.problem("nodes", f"more than {NODES_MAX} nodes in one graph")
                return None
            node = as_fields(fields.source, item, "a node", ("name", *self.kinds))
            if node is None:
                continue
            name = _node_name(node)
            kind = self._kind(node)
            if name is None or kind is None:
                continue
            path = (*around, name)
            if path in self.places:
                node.problem("name", f"node {name!r} stands twice in the graph")
            self.places[path] = Place(fields.source, line_of(item), _lines(node, item, kind))
            read = self.kinds[kind](node, name, path)
            if read is not None:
                found[name] = read
        return found

    def _kind(self, node: Fields) -> str | None:
        stated = [key for key in node.keys() if key != "name"]  # noqa: SIM118 - not a mapping
        if len(stated) == 1:
            return stated[0]
        kinds = ", ".join(f"`{kind}`" for kind in self.kinds)
        node.source.add(node.line, f"a node has a name and one of {kinds}" + (f", not {' and '.join(stated)} together" if stated else ""))
        return None

    def _stage(self, node: Fields, name: str, _path: tuple[str, ...]) -> DraftNode | None:
        fields = node.mapping("stage", f"stage {name!r}", STAGE_KEYS)
        task = None if fields is None else _required(fields, "task")
        if fields is None or task is None:
            return None
        variants = fields.texts("variants")
        if variants == []:
            fields.problem("variants", "`variants` is empty: leave it out for all variants of the task")
        parameters = fields.mapping("parameters", f"`parameters` of {fields.what}", None)
        given = {} if parameters is None else {key: parameters.value(key) for key in parameters.keys()}  # noqa: SIM118 - not a mapping
        return StageNode(task=task, inputs=fields.words("inputs"), variants=_names(variants), parameters=given)

    def _switch(self, node: Fields, _name: str, _path: tuple[str, ...]) -> DraftNode | None:
        cases: list[Case] = []
        otherwise: str | None = None
        items = node.items("switch") or []
        for number, item in enumerate(items, start=1):
            fields = as_fields(node.source, item, "a case of `switch`", CASE_KEYS)
            if fields is None:
                continue
            when, then, stated = fields.text("when"), fields.text("then"), fields.text("otherwise")
            if stated is not None and when is None and then is None and number == len(items):
                otherwise = stated
            elif when is not None and then is not None and stated is None:
                cases.append(Case(when, then))
            else:
                node.source.add(fields.line, "a case is `{when: CONDITION, then: NODE}`, and the last one `{otherwise: NODE}`")
        if otherwise is None:
            node.problem("switch", "the last case of a switch is `{otherwise: NODE}`, for when no condition holds")
            return None
        return SwitchNode(cases=tuple(cases), otherwise=otherwise)

    def _splitter(self, node: Fields, name: str, _path: tuple[str, ...]) -> DraftNode | None:
        fields = node.mapping("splitter", f"splitter {name!r}", SPLITTER_KEYS)
        if fields is None:
            return None
        branches: list[Branch] = []
        items = fields.items("branches")
        if not items:
            fields.missing("branches")
        for item in items or []:
            branch = as_fields(fields.source, item, "a branch", BRANCH_KEYS)
            if branch is None:
                continue
            then, weight = _required(branch, "then"), branch.number("weight", 0.0, WEIGHT_MAX)
            if "weight" not in branch:
                branch.missing("weight")
            if then is not None and weight is not None:
                branches.append(Branch(weight, then))
        return SplitterNode(branches=tuple(branches), **_stated(sticky=fields.text("sticky")))

    def _canary(self, node: Fields, name: str, _path: tuple[str, ...]) -> DraftNode | None:
        fields = node.mapping("canary", f"canary {name!r}", CANARY_KEYS)
        if fields is None:
            return None
        stable, candidate = _required(fields, "stable"), _required(fields, "candidate")
        steps = fields.numbers("steps")
        if steps is not None and (not steps or any(not 0 < step <= 100 for step in steps) or steps != sorted(set(steps))):
            fields.problem("steps", "`steps` are rising percentages of the traffic, above 0 and up to 100: [1, 5, 25, 50, 100]")
        given = _stated(
            steps=None if steps is None else tuple(steps),
            step_requests=fields.integer("step_requests", 1, STEP_REQUESTS_MAX),
            guardrails=_guardrails(fields.mapping("guardrails", "`guardrails`", GUARDRAIL_KEYS)),
            alerts=fields.flag("alerts"),
            sticky=fields.text("sticky"),
        )
        return None if stable is None or candidate is None else CanaryNode(stable=stable, candidate=candidate, **given)

    def _shadow(self, node: Fields, name: str, _path: tuple[str, ...]) -> DraftNode | None:
        fields = node.mapping("shadow", f"shadow {name!r}", SHADOW_KEYS)
        if fields is None:
            return None
        primary, copy, share = _required(fields, "primary"), _required(fields, "copy"), fields.number("share", 0.0, 1.0)
        return None if primary is None or copy is None else ShadowNode(primary=primary, copy=copy, **_stated(share=share))

    def _ensemble(self, node: Fields, name: str, _path: tuple[str, ...]) -> DraftNode | None:
        fields = node.mapping("ensemble", f"ensemble {name!r}", ENSEMBLE_KEYS)
        if fields is None:
            return None
        members = _names(fields.texts("members"))
        if not members:
            fields.missing("members")
        weights = fields.numbers("weights")
        wait = fields.text("wait") or "all"
        if wait not in ("all", "by_deadline") and not (wait.isascii() and wait.isdecimal() and 0 < int(wait) <= len(members)):
            fields.problem("wait", f"`wait` is `all`, `by_deadline`, or for how many of the {len(members)} members")
            return None
        return EnsembleNode(
            members=members,
            weights=tuple(weights or ()),
            wait=int(wait) if wait.isdecimal() else 0,
            by_deadline=wait == "by_deadline",
            tensors=_names(fields.texts("tensors")),
            **_stated(combiner=fields.text("combiner")),
        )

    def _for_each(self, node: Fields, name: str, path: tuple[str, ...]) -> DraftNode | None:
        fields = node.mapping("for_each", f"for_each {name!r}", FOR_EACH_KEYS)
        if fields is None:
            return None
        over, output = fields.words("over"), _required(fields, "output")
        if not over:
            fields.missing("over")
        nodes = self.nodes(fields, path)
        policy, least = self._policy(fields)
        rows_max = fields.integer("rows_max", 1, self.limits.rows_max)
        if output is None or nodes is None:
            return None
        each = ForEachNode(over=over, nodes={}, output=output, policy=policy, least=least, **_stated(rows_max=rows_max))
        return RowsNode(each, nodes)

    def _policy(self, fields: Fields) -> tuple[str, int]:
        if fields.is_mapping("policy"):
            inner = fields.mapping("policy", "`policy`", ("at_least",))
            least = None if inner is None else inner.integer("at_least", 0, self.limits.rows_max)
            if inner is not None and "at_least" not in inner:
                inner.missing("at_least")
            return "at_least", least or 0
        policy = fields.text("policy")
        if policy not in (None, "all", "best_by_deadline"):
            fields.problem("policy", f"{policy!r} is no policy: it is `all`, `{{at_least: K}}` or `best_by_deadline`")
        return policy or "all", 0

    def _call(self, node: Fields, name: str, _path: tuple[str, ...]) -> DraftNode | None:
        fields = node.mapping("call", f"call {name!r}", CALL_KEYS)
        endpoint = None if fields is None else _required(fields, "endpoint")
        return None if fields is None or endpoint is None else CallNode(endpoint, fields.words("inputs"))


def _node_name(node: Fields) -> str | None:
    name = _required(node, "name")
    if name is None:
        return None
    if name in (REQUEST, ROW):
        node.problem("name", f"a node cannot be called {name!r}: that is what stands for the tensors of the {name}")
    elif NODE_NAME.match(name) is None:
        node.problem("name", f"{name[:150]!r} is not a node's name: letters, digits, `_`, a letter first, 64 at most")
    else:
        return name
    return None


def _lines(node: Fields, item: Any, kind: str) -> dict[str, int]:
    """Lines by the names of the spec's fields, which are those of the YAML but for these."""
    lines = lines_of(node.source, item)
    found = {key.removeprefix(f"{kind}."): line for key, line in lines.items() if key.startswith(f"{kind}.")}
    found |= {"": node.line, "name": node.line_of("name"), kind: node.line_of(kind)}
    if kind == "switch":
        found |= {f"cases.{key}": line for key, line in found.items() if key[:1].isdigit()}
        found |= {"cases": node.line_of(kind), "otherwise": max(line for key, line in lines.items() if key.startswith(kind))}
    for key, written in (("least", "policy"), ("by_deadline", "wait")):
        if written in found:
            found[key] = found[written]
    return found


def _guardrails(fields: Fields | None) -> Guardrails | None:
    if fields is None:
        return None
    highest = {"latency_p99": FACTOR_MAX}
    stated: dict[str, float | None] = {}
    for key in fields.keys():  # noqa: SIM118 - not a mapping
        stated[key] = None if fields.text(key) == "off" else fields.number(key, 0.0, highest.get(key, 1.0))
    return Guardrails(**stated)


def _measured(fields: Fields) -> dict[str, float]:
    """A table in the document, or the JSON file that it names (relative to the document)."""
    if "measured" not in fields:
        return {}
    if fields.is_mapping("measured"):
        table = fields.mapping("measured", "`measured`", None)
        stated = {} if table is None else {key: table.number(key, 0.0, 1.0) for key in table.keys()}  # noqa: SIM118 - not a mapping
        found = {key: value for key, value in stated.items() if value is not None}
    else:
        found = _measured_file(fields, fields.text("measured") or "")
    if len(found) > MEASURED_MAX:
        fields.problem("measured", f"{len(found)} combinations, the limit is {MEASURED_MAX}")
    return {_by_stage(key): value for key, value in found.items()}


def _by_stage(key: str) -> str:
    return ",".join(sorted(key.replace(" ", "").split(","), key=lambda part: part.partition("=")[0]))


def _measured_file(fields: Fields, file: str) -> dict[str, float]:
    try:
        path = model_path(fields.source.path.parent, file)
        data = path.read_bytes() if path.stat().st_size <= MEASURED_BYTES_MAX else b""
        return msgspec.json.decode(data, type=_Measured).measured
    except ModelRefused as refused:
        fields.problem("measured", str(refused).replace("model file", "measured file"))
    except OSError as error:
        fields.problem("measured", f"{file}: cannot be read: {error.strerror}")
    except msgspec.DecodeError as error:
        fields.problem("measured", f'{file} is not `{{"measured": {{"stage=variant,...": 0.9, ...}}}}`: {error}')
    return {}


class _Measured(msgspec.Struct):
    measured: dict[str, float]


def _required(fields: Fields, key: str) -> str | None:
    value = fields.text(key)
    if value is None and key not in fields:
        fields.missing(key)
    return value


def _names(stated: list[tuple[str, int]] | None) -> tuple[str, ...]:
    return tuple(name for name, _ in stated or [])


def _stated(**values: Any) -> dict[str, Any]:
    """What is stated; the rest keeps the spec's default."""
    return {key: value for key, value in values.items() if value is not None}

"""A graph as boxes and arrows, in the direction that the data goes, and as Mermaid text; deploy/graph_svg.py makes a picture of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from schemas.graph import (
    REQUEST,
    ROW,
    CanaryNode,
    EnsembleNode,
    ForEachNode,
    GraphSpec,
    Node,
    ShadowNode,
    SplitterNode,
    StageNode,
    SwitchNode,
)

ANSWER = "_answer"
"""No node is called this."""
MERMAID_SHAPES = {
    "stage": ("[", "]"),
    "switch": ("{{", "}}"),
    "splitter": ("{{", "}}"),
    "canary": ("{{", "}}"),
    "shadow": ("[[", "]]"),
    "ensemble": ("[/", "\\]"),
    "end": ("([", "])"),
}


class Arrow(msgspec.Struct, frozen=True):
    """From one box to another of the same drawing; `dotted` where nothing of the answer travels."""

    source: str
    target: str
    label: str = ""
    dotted: bool = False


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """A node with the lines that are written in it; that of a for_each holds a drawing."""

    name: str
    kind: str
    lines: tuple[str, ...]
    inner: Drawing | None = None


class Drawing(msgspec.Struct, frozen=True):
    """Boxes that see each other, and the arrows between them; `output` is what it all is for."""

    boxes: dict[str, Box]
    arrows: list[Arrow]
    output: str


def draw(graph: GraphSpec) -> Drawing:
    """The graph between the request and its answer."""
    drawing = msgspec.structs.replace(_draw(graph.nodes, graph.output, REQUEST), output=ANSWER)
    label = ", ".join(f"{answer} = {tensor}" if answer != tensor else answer for answer, tensor in graph.outputs.items())
    drawing.boxes[ANSWER] = Box(name=ANSWER, kind="end", lines=("answer",))
    if graph.output in drawing.boxes:
        drawing.arrows.append(Arrow(graph.output, ANSWER, label))
    return drawing


def _draw(nodes: Mapping[str, Node], output: str, start: str) -> Drawing:
    boxes = {start: Box(name=start, kind="end", lines=(start,))}
    arrows: list[Arrow] = []
    for name, node in nodes.items():
        inner = _draw(node.nodes, node.output, ROW) if isinstance(node, ForEachNode) else None
        boxes[name] = Box(name=name, kind=kind_of(node), lines=(name, *described(node)), inner=inner)
        arrows.extend(arrow for arrow in arrows_to(name, node) if arrow.source in nodes or arrow.source == start)
    if start == REQUEST and not any(arrow.source == REQUEST for arrow in arrows):
        del boxes[start]
    return Drawing(boxes, _merged(arrows), output)


def kind_of(node: Node) -> str:
    """The word that says the kind of node in YAML."""
    return str(node.__struct_config__.tag)


def described(node: Node) -> tuple[str, ...]:
    """What a node does, in words that fit a box."""
    if isinstance(node, StageNode):
        return (node.task, *([", ".join(node.variants)] if node.variants else []))
    if isinstance(node, SplitterNode):
        return (f"splitter by {node.sticky}",)
    if isinstance(node, CanaryNode):
        return (f"canary by {node.sticky}",)
    if isinstance(node, EnsembleNode):
        wait = "by deadline" if node.by_deadline else f"{node.wait} of {len(node.members)}" if node.wait else f"all {len(node.members)}"
        return (f"ensemble: {node.combiner} of {wait}" if wait.startswith("all") else f"ensemble: {node.combiner}, {wait}",)
    if isinstance(node, ForEachNode):
        policy = {"at_least": f"at least {node.least}", "best_by_deadline": "best by deadline"}.get(node.policy, node.policy)
        return (f"for each row, up to {node.rows_max}: {policy}",)
    return (kind_of(node),)


def arrows_to(name: str, node: Node) -> list[Arrow]:
    """The arrows that end at a node: what it takes and what it looks at."""
    if isinstance(node, StageNode):
        return [_taken(reference, name, tensor) for tensor, reference in node.inputs.items()]
    if isinstance(node, SwitchNode):
        return [*(Arrow(case.then, name, f"when {case.when}") for case in node.cases), Arrow(node.otherwise, name, "otherwise")]
    if isinstance(node, SplitterNode):
        whole = sum(branch.weight for branch in node.branches) or 1.0
        return [Arrow(branch.then, name, f"{branch.weight / whole:.0%}") for branch in node.branches]
    if isinstance(node, CanaryNode):
        return [Arrow(node.stable, name, f"stable {100 - node.percent:g}%"), Arrow(node.candidate, name, f"candidate {node.percent:g}%")]
    if isinstance(node, ShadowNode):
        return [Arrow(node.primary, name, "primary"), Arrow(node.copy, name, f"copy of {node.share:.0%}", dotted=True)]
    if isinstance(node, EnsembleNode):
        weights = node.weights or (None,) * len(node.members)
        return [Arrow(member, name, "" if weight is None else f"{weight:g}") for member, weight in zip(node.members, weights, strict=False)]
    inner = [arrow for inner, each in node.nodes.items() for arrow in arrows_to(inner, each) if arrow.source not in (*node.nodes, ROW)]
    return [*(_taken(reference, name, row) for row, reference in node.over.items()), *(Arrow(a.source, name, a.label, a.dotted) for a in inner)]


def _taken(reference: str, name: str, tensor: str) -> Arrow:
    node, _, taken = reference.rpartition(".")
    return Arrow(node, name, tensor if tensor == taken else f"{taken} as {tensor}")


def _merged(arrows: Iterable[Arrow]) -> list[Arrow]:
    """One arrow between two boxes, with every label."""
    found: dict[tuple[str, str, bool], list[str]] = {}
    for arrow in arrows:
        labels = found.setdefault((arrow.source, arrow.target, arrow.dotted), [])
        if arrow.label and arrow.label not in labels:
            labels.append(arrow.label)
    return [Arrow(source, target, ", ".join(labels), dotted) for (source, target, dotted), labels in found.items()]


def mermaid(drawing: Drawing) -> str:
    """A Mermaid flowchart."""
    return "\n".join(["flowchart LR", *_mermaid(drawing, "", "  ")]) + "\n"


def _mermaid(drawing: Drawing, prefix: str, indent: str) -> Iterator[str]:
    for box in drawing.boxes.values():
        identifier = _identifier(prefix, box.name)
        text = _quoted("<br/>".join(_html(line) for line in box.lines))
        if box.inner is None:
            opened, closed = MERMAID_SHAPES[box.kind]
            yield f"{indent}{identifier}{opened}{text}{closed}"
        else:
            yield f"{indent}subgraph {identifier}[{text}]"
            yield from _mermaid(box.inner, f"{prefix}{box.name}.", indent + "  ")
            yield f"{indent}end"
    for arrow in drawing.arrows:
        line = "-.->" if arrow.dotted else "-->"
        label = f"|{_quoted(_html(arrow.label))}|" if arrow.label else ""
        yield f"{indent}{_identifier(prefix, arrow.source)} {line}{label} {_identifier(prefix, arrow.target)}"


def _identifier(prefix: str, name: str) -> str:
    """`n_` keeps clear of Mermaid's own words (`end`)."""
    return "n_" + f"{prefix}{name}".replace(".", "__")


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;").replace("#", "&num;")


def _quoted(text: str) -> str:
    return f'"{text}"'

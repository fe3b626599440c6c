"""The compiled nodes of a graph: what each needs of which other, all names looked up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from graphs.conditions import Condition, Reference
from graphs.stage import Stage


class Link(NamedTuple):
    """Another node, `up` scopes further out than the node that has the link."""

    up: int
    node: Node


class Source(NamedTuple):
    """A tensor: of a node, of the row (`link` None, `up` scopes further out), or of the request (`link` None, `up` -1)."""

    link: Link | None
    up: int
    tensor: str


@dataclass(eq=False, slots=True)
class Node:
    """A named place in the graph. `main`: the answer can need it; else only a shadow's copy can."""

    name: str
    path: str
    main: bool = False
    consumers: list[Node] = field(default_factory=list["Node"])
    """Nodes of the same scope that have a link to this one (a for_each, where a node inside it has)."""
    near: tuple[Node, ...] | None = None
    """Nodes of the same scope that this one may need, once somebody has asked: looked up for every event of every run."""

    def links(self) -> list[Link]:
        """Every node that this one may need."""
        return []


@dataclass(eq=False, slots=True)
class StageNode(Node):
    """Runs a stage."""

    stage: Stage | None = None
    tensors: tuple[tuple[str, Source], ...] = ()
    """Inputs that come from nodes and rows."""
    request_inputs: dict[str, str] = field(default_factory=dict[str, str])

    def links(self) -> list[Link]:
        return [source.link for _, source in self.tensors if source.link]


@dataclass(eq=False, slots=True)
class Case:
    """A branch of a switch with what its condition looks at."""

    condition: Condition
    sources: tuple[tuple[Reference, Source], ...]
    fields: tuple[Reference, ...]
    then: Link


@dataclass(eq=False, slots=True)
class SwitchNode(Node):
    """Is the node of the first case that holds; a case's condition is looked at when those before it did not hold."""

    cases: tuple[Case, ...] = ()
    otherwise: Link | None = None

    def links(self) -> list[Link]:
        branches = [case.then for case in self.cases] + ([self.otherwise] if self.otherwise else [])
        return [source.link for case in self.cases for _, source in case.sources if source.link] + branches


@dataclass(eq=False, slots=True)
class SplitterNode(Node):
    """Is one of its branches, by a hash; `below` are the upper ends of the branches' parts of [0, 1)."""

    branches: tuple[Link, ...] = ()
    below: tuple[float, ...] = ()
    sticky: str = "id"
    ceilings: tuple[float, ...] = ()
    """The best accuracy of each branch: requests whose floor is above it take another."""

    def links(self) -> list[Link]:
        return list(self.branches)


@dataclass(eq=False, slots=True)
class CopyNode(Node):
    """Waits for a shadow's copy; nobody needs it."""

    copy: Link | None = None

    def links(self) -> list[Link]:
        return [self.copy] if self.copy else []


@dataclass(eq=False, slots=True)
class ShadowNode(Node):
    """Is its primary; `share` of the requests run the copy as well."""

    primary: Link | None = None
    copy: CopyNode | None = None
    share: float = 1.0

    def links(self) -> list[Link]:
        return [self.primary] if self.primary else []


@dataclass(eq=False, slots=True)
class EnsembleNode(Node):
    """Merges its members by a stage of its own."""

    members: tuple[Link, ...] = ()
    stage: Stage | None = None
    wait: int = 0
    by_deadline: bool = False
    tensors: tuple[str, ...] = ()

    def links(self) -> list[Link]:
        return list(self.members)


@dataclass(eq=False, slots=True)
class SinkNode(Node):
    """Waits for what a scope gives: the answer, or a row's part of a join."""

    link: Link | None = None

    def links(self) -> list[Link]:
        return [self.link] if self.link else []


@dataclass(eq=False, slots=True)
class ForEachNode(Node):
    """Runs the nodes inside it for each row of what it goes over."""

    over: tuple[tuple[str, Source], ...] = ()
    inner: dict[str, Node] = field(default_factory=dict[str, Node])
    sink: SinkNode | None = None
    outer: tuple[Link, ...] = ()
    """What nodes inside it need of nodes outside, as seen from the for_each."""
    rows_max: int = 0
    policy: str = "all"
    least: int = 0
    uses: tuple[str, ...] | None = None
    """Tensors of a row that are joined; None: all."""
    empty: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict[str, tuple[str, tuple[int, ...]]])
    """What a join without rows gives: tensor -> (datatype, shape)."""

    def links(self) -> list[Link]:
        return [source.link for _, source in self.over if source.link] + list(self.outer)

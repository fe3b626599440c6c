"""Where a name in a graph points to: the nodes that are in sight, and what is near where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from schemas.graph import REQUEST, ROW, ForEachNode, Node


class Sight:
    """The nodes that can be named from one level of a graph: those beside it, and those further out."""

    def __init__(self, nodes: Mapping[str, Node], parent: Sight | None = None, path: tuple[str, ...] = (), owner: ForEachNode | None = None) -> None:
        self.nodes = nodes
        self.parent = parent
        self.path = path
        self.owner = owner
        """The for_each around this level."""

    def find(self, name: str) -> tuple[int, Sight] | None:
        """How many levels further out the node is, and that level."""
        up, sight = 0, self
        while True:
            if name in sight.nodes:
                return up, sight
            if sight.parent is None:
                return None
            up, sight = up + 1, sight.parent

    def row_tensors(self) -> list[Mapping[str, str]]:
        """Tensors of the rows in sight, the nearest first."""
        return [sight.owner.over for sight in self.levels() if sight.owner is not None]

    def levels(self) -> list[Sight]:
        """This level and those further out."""
        return [self, *(self.parent.levels() if self.parent else [])]

    def known(self, name: str) -> bool:
        """Whether a reference may start with this name."""
        return name == REQUEST or (name == ROW and bool(self.row_tensors())) or self.find(name) is not None

    def names(self) -> list[str]:
        return [name for sight in self.levels() for name in sight.nodes]


def split_reference(reference: str, sight: Sight) -> tuple[str, str]:
    """(node, tensor) of `node.tensor`, the longest name of a node that is known; else as it is read best. Empty tensor: there is no dot."""
    parts = reference.split(".")
    for length in range(len(parts) - 1, 0, -1):
        node = ".".join(parts[:length])
        if sight.known(node):
            return node, ".".join(parts[length:])
    return (".".join(parts[:-1]), parts[-1]) if len(parts) > 1 else (reference, "")


def near(name: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'?`, or what there is."""
    known = sorted(set(known))
    close = get_close_matches(name, known, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f": there is {shown}" if known else ""

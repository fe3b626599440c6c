"""What is wrong with a graph.

HeadraceError
└── CatalogError
    └── GraphInvalid   every problem of one graph, each with the node that it is about
"""

from __future__ import annotations

from typing import NamedTuple

from schemas.errors import CatalogError


class Problem(NamedTuple):
    """One thing that is wrong: the node's path of names, the key inside the node (empty: the node as a whole), and a sentence."""

    node: tuple[str, ...]
    key: str
    message: str


class GraphInvalid(CatalogError):
    """The graph cannot run as it stands."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'/'.join(problem.node) or 'graph'}: {problem.message}" for problem in problems))
        self.problems = problems

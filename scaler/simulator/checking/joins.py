"""Checks of requests on graphs: a join neither loses nor repeats a row."""

from __future__ import annotations

import re

from scaler.simulator.checking.book import Book, Lease, Request
from scaler.simulator.watching import Ended
from schemas.catalog import Catalog
from schemas.graph import EnsembleNode, ForEachNode, GraphSpec, Node, ShadowNode, StageNode
from schemas.work import INSTANCE_MARK

_INSTANCE = re.compile(r"^(.*)#([0-9.]+)$")


class JoinChecks:
    """Looks at the rows that were handed out for graphs whose joins need all of them."""

    def __init__(self, book: Book, catalog: Catalog) -> None:
        self._book = book
        self.whole = {name for name, endpoint in catalog.endpoints.items() if endpoint.graph is not None and _needs_all(endpoint.graph)}
        """Endpoints whose joins need every row."""

    def ended(self, request: Request, ended: Ended) -> None:
        """The first terminal record of a request to one of `whole` says `completed`."""
        if not request.leases:
            return
        rows: dict[str, set[str]] = {}
        for name, lease in request.leases.items():
            found = _INSTANCE.match(name.decode().partition(INSTANCE_MARK)[2])
            if found is None:
                continue
            rows.setdefault(found[1], set()).add(found[2])
            if not lease.begun:
                self._missing(request, name, lease, ended.at_ms)
        for stage, labels in rows.items():
            self._gaps(request, stage, labels, ended.at_ms)

    def _missing(self, request: Request, name: bytes, lease: Lease, at_ms: float) -> None:
        self._book.violated("join", at_ms, f"{request.key!r} completed, and {lease.worker} has not begun {name!r}")

    def _gaps(self, request: Request, stage: str, labels: set[str], at_ms: float) -> None:
        """Rows of one level are numbered from 0 without a gap."""
        groups: dict[str, set[int]] = {}
        for label in labels:
            outer, _, index = label.rpartition(".")
            groups.setdefault(outer, set()).add(int(index))
        for outer, indices in groups.items():
            if indices != set(range(len(indices))):
                missing = sorted(set(range(max(indices) + 1)) - indices)
                self._book.violated("join", at_ms, f"{request.key!r} completed without rows {missing} of {stage}{'#' + outer if outer else ''}")


def _needs_all(spec: GraphSpec) -> bool:
    """Whether every row that is begun must end before the answer: nothing is chosen inside a for_each, and no join goes on without some."""
    return all(_needs_all_of(node, inside=False) for node in spec.nodes.values())


def _needs_all_of(node: Node, *, inside: bool) -> bool:
    if isinstance(node, ForEachNode):
        return node.policy == "all" and all(_needs_all_of(row, inside=True) for row in node.nodes.values())
    if isinstance(node, EnsembleNode):
        return not node.wait and not node.by_deadline
    return isinstance(node, StageNode) or not (inside or isinstance(node, ShadowNode))

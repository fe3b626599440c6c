"""What a run knows of each node that has been asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from graphs.node import Link, Node
from graphs.tensor import Tensor


class Phase(IntEnum):
    """How far a node is."""

    WAITING = 0
    """For what it needs."""
    RUNNING = 1
    """A worker has it."""
    DONE = 2
    FAILED = 3
    DROPPED = 4
    """Nobody needs it any more."""


class Result(NamedTuple):
    """What a node gave: its tensors, and the accuracies that count towards whoever uses them (stage or group -> accuracy)."""

    tensors: Mapping[str, Tensor]
    factors: Mapping[str, float]


class Failure(NamedTuple):
    """Why a node gives nothing."""

    code: str
    message: str
    stage: str


@dataclass(eq=False, slots=True)
class Scope:
    """The nodes of one level for one row; the outermost has no row."""

    parent: Scope | None
    rows: str
    """Of the for_eaches around it: `3`, `3.12`; empty outside."""
    row: dict[str, Tensor]
    shadow: bool
    states: dict[Node, State] = field(default_factory=dict[Node, "State"])

    def out(self, up: int) -> Scope:
        """The scope `up` levels further out."""
        scope = self
        for _ in range(up):
            assert scope.parent is not None
            scope = scope.parent
        return scope


@dataclass(eq=False, slots=True)
class State:
    """One node, asked for in one scope."""

    node: Node
    scope: Scope
    shadow: bool
    phase: Phase = Phase.WAITING
    waiters: dict[State, None] = field(default_factory=dict["State", None])
    result: Result | None = None
    failure: Failure | None = None
    chosen: Link | None = None
    """What a switch, a splitter or a shadow has become."""
    factors: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of a running stage: what its inputs count."""
    detail: Any = None
    """Of a for_each: its rows."""

    @property
    def instance(self) -> str:
        return instance_name(self.node.path, self.scope.rows)


def instance_name(path: str, rows: str) -> str:
    """`lines/recognise#12`; nested: `pages/lines/recognise#3.12`."""
    return f"{path}#{rows}" if rows else path


def split_instance(instance: str) -> tuple[str, str]:
    """(path, rows) of an instance."""
    path, _, rows = instance.partition("#")
    return path, rows


ROUNDING = 1e-9
"""Products of accuracies that should equal a floor may be less by this."""


def product(factors: Mapping[str, float]) -> float:
    """The accuracy that the factors make together."""
    accuracy = 1.0
    for factor in factors.values():
        accuracy *= factor
    return accuracy


def mean_of(members: list[Mapping[str, float]], key: str) -> dict[str, float]:
    """Factors of what several made together: those that all have as they are, the mean of the rest of each as `key`."""
    common = {name: value for name, value in members[0].items() if all(name in member for member in members)}
    rest = sum(product({name: value for name, value in member.items() if name not in common}) for member in members) / len(members)
    return common | {key: rest}

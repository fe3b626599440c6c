"""Feeds what a dispatcher recorded to the policy as it is now, and compares what it decides, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Entry
from broker.policy.graph_requests import Opened as Seen
from broker.policy.recorded import COMMITS, Identities, Made, Opened, Opening, Step, decode_event, made_of
from graphs.compiled import Graph
from graphs.tensor import Tensor
from schemas.errors import RequestError

DIFFERENCES_MAX = 20
"""After the first one, all else follows: a few say as much as all."""


class Difference(msgspec.Struct, frozen=True):
    """A step that the policy decides otherwise now."""

    step: int
    """From 1."""
    now_ms: float
    kind: str
    part: str
    """Which commands differ: sends, answers, letters, taps, wake_ms or commits."""
    recorded: str
    found: str


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a replay."""

    dispatcher: str
    steps: int
    requests: int
    """That arrived; again after a change of hands."""
    sends: int
    answers: int
    span_ms: float
    kinds: dict[str, int] = {}
    """Steps by kind."""
    differing: int = 0
    """Steps that came out otherwise."""
    differences: tuple[Difference, ...] = ()
    """The first of them."""

    @property
    def identical(self) -> bool:
        return self.steps > 0 and not self.differing


class _Openings:
    """Gives graphs what they saw of requests then, in the order in which they ask."""

    def __init__(self) -> None:
        self.left: list[Opened] = []

    def open(self, _payload: object, _graph: Graph) -> Seen:
        if not self.left:
            raise RequestError("nothing was recorded of this request")
        found = self.left.pop(0)
        if found.error_code:
            raise _error(found)
        return found.fields, {key: Tensor(*parts) for key, parts in found.tensors.items()}


def _error(found: Opened) -> RequestError:
    kind = next((kind for kind in RequestError.__subclasses__() if kind.code == found.error_code), RequestError)
    return kind(found.error_message)


class Replay:
    """One recording's policy; `feed` its steps in order, then ask for the `report`."""

    def __init__(self, opening: Opening) -> None:
        self._name = opening.name
        self._openings = _Openings()
        self._policy = DispatcherPolicy(opening.name, opening.settings, opening.limits, self._openings.open)
        self._who = Identities(lambda _entry: False, self._current)
        self._kinds: dict[str, int] = {}
        self._steps = self._sends = self._answers = self._differing = 0
        self._differences: list[Difference] = []
        self._from_ms: float | None = None
        self._to_ms = 0.0

    def _current(self, key: bytes) -> Entry | None:
        order = self._policy.fleet.orders.get(key)
        return order.entry if order is not None else None

    def feed(self, step: Step) -> None:
        """Decide what was decided then, and compare. Raises msgspec.DecodeError for a step that is none."""
        self._steps += 1
        self._kinds[step.kind] = self._kinds.get(step.kind, 0) + 1
        if step.kind == COMMITS:
            commits = [(shard, offset, metadata) for shard, (offset, metadata) in self._policy.commits().items()]
            made = Made(commits=commits)
        else:
            self._from_ms = step.now_ms if self._from_ms is None else self._from_ms
            self._to_ms = step.now_ms
            self._openings.left = list(step.opened)
            commands = self._policy.step(decode_event(step, self._who), step.now_ms)
            self._who.made(commands)
            made = made_of(commands, self._policy.next_wake_ms())
            self._sends += len(made.sends)
            self._answers += len(made.answers)
        if made != step.made:
            self._differ(step, made)

    def _differ(self, step: Step, made: Made) -> None:
        self._differing += 1
        if len(self._differences) < DIFFERENCES_MAX:
            part, recorded, found = _first_difference(step.made, made)
            self._differences.append(Difference(self._steps, step.now_ms, step.kind, part, recorded, found))

    def report(self) -> ReplayReport:
        return ReplayReport(
            dispatcher=self._name,
            steps=self._steps,
            requests=self._policy.arrived,
            sends=self._sends,
            answers=self._answers,
            span_ms=self._to_ms - (self._from_ms or self._to_ms),
            kinds=self._kinds,
            differing=self._differing,
            differences=tuple(self._differences),
        )


def _first_difference(recorded: Made, found: Made) -> tuple[str, str, str]:
    """(part, recorded, found) of the first part that differs; of a list, its first element that does."""
    for part in recorded.__struct_fields__:
        before: Any = getattr(recorded, part)
        now: Any = getattr(found, part)
        if before == now:
            continue
        if not isinstance(before, list) or not isinstance(now, list):
            return part, f"{before}", f"{now}"
        pairs, others = cast("list[object]", before), cast("list[object]", now)
        at = next((at for at, (one, other) in enumerate(zip(pairs, others, strict=False)) if one != other), min(len(pairs), len(others)))
        return part, _shown(pairs, at), _shown(others, at)
    raise AssertionError("no part differs")


def _shown(items: list[object], at: int) -> str:
    return f"{len(items)}, of which #{at} is {items[at]!r}" if at < len(items) else f"{len(items)}"


def replay(opening: Opening, steps: Iterable[Step]) -> ReplayReport:
    """All of a recording."""
    replaying = Replay(opening)
    for step in steps:
        replaying.feed(step)
    return replaying.report()

"""Sets labels along a graph's outline: every way to compute the rest of it that no other way beats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphs.labels import NEVER, Choice, Label, Time, close, front, later, latest, merged, spread
from graphs.node import EnsembleNode, ForEachNode, Node, SplitterNode, StageNode, SwitchNode
from graphs.outline import Outline, branches
from graphs.situation import CHOSEN, DONE, LOST, ROWS, RUNNING, SPLIT, TARGET, UNPLANNED, Situation, Status
from graphs.stage import Stage

if TYPE_CHECKING:
    from graphs.planning import Estimates

START: Time = (NEVER, 0.0)
Fixed = Mapping[str, str]
"""Path of a model stage -> the only variant that it may have."""


def search(where: Situation, estimates: Estimates) -> list[tuple[float, Label]]:
    """(accuracy of the whole path, label of the output) of every choice that is not beaten; measured accuracies where there are any."""
    graph = where.graph
    if not where.combinations:
        return [(_accuracy(label), label) for label in _Search(where, estimates, {}).labels()]
    found: list[tuple[float, Label]] = []
    for key in where.combinations:
        combination = graph.measured[key]
        found += [(combination.accuracy, label) for label in _Search(where, estimates, combination.variants).labels()]
    return found


def _accuracy(label: Label) -> float:
    accuracy = 1.0
    for value in label.factors.values():
        accuracy *= value
    return accuracy


class _Search:
    """One pass over the nodes that the output still needs."""

    def __init__(self, where: Situation, estimates: Estimates, fixed: Fixed) -> None:
        self._outline: Outline = where.graph.outline
        self._estimates = estimates
        self._fixed = fixed
        self._known: dict[Node, Status] = dict(where.known)
        self._apart = where.apart
        self._needs: dict[Node, list[Node]] = {}
        self._need(self._outline.output)
        self._order = [node for node in self._outline.order if node in self._needs]
        self._bits = {node: 1 << index for index, node in enumerate(self._order)}
        self._last = self._last_uses()

    def _need(self, node: Node) -> None:
        """What each node that matters looks at, with what has to be there before it starts."""
        if node in self._needs:
            return
        status = self._known.get(node)
        kind = status.kind if status else ""
        if kind in (DONE, RUNNING, TARGET, LOST):
            needs: list[Node] = []
        elif status is not None and status.chosen is not None:
            needs = [status.chosen]
        elif kind == SPLIT and isinstance(node, ForEachNode) and node.sink:
            needs = [link.node for link in node.sink.links()]
        else:
            needs = [edge.other for edge in self._outline.edges[node]]
        self._needs[node] = needs
        for other in needs:
            self._need(other)

    def _gates(self, node: Node) -> list[Node]:
        """Only those that are still to come delay anybody."""
        return [gate for gate in self._outline.gates[node] if gate in self._needs]

    def _last_uses(self) -> dict[Node, Node]:
        """Node -> the last in the order that looks at it."""
        last = {node: node for node in self._order}
        for node in self._order:
            for other in [*self._needs[node], *self._gates(node)]:
                last[other] = node
        return last

    def labels(self) -> list[Label]:
        """Of the output."""
        labels = [Label({}, self._settled(), 0.0, -1)]
        open_bits = 0
        for index, node in enumerate(self._order):
            labels = [label for before in labels for label in self._after(before, node)]
            open_bits |= self._bits[node]
            gone = [self._bits[other] for other in self._order[: index + 1] if self._last[other] is node and other is not self._outline.output]
            open_bits &= ~sum(bit for bit in gone if open_bits & bit)
            # Nodes to come that have been computed keep their factors apart.
            ahead = sum(self._bits[other] for other in self._order[index + 1 :])
            labels = front([close(label, gone, open_bits | ahead) for label in labels])
        if self._outline.answer_hop:
            labels = [label._replace(times={bit: later(time, self._estimates.hop_ms) for bit, time in label.times.items()}) for label in labels]
        return labels

    def _settled(self) -> dict[int, float]:
        """Factors of what has been computed, by the nodes that count them."""
        masks: dict[str, int] = {}
        values: dict[str, float] = {}
        for node in self._order:
            status = self._known.get(node)
            for name, value in status.counted if status else ():
                masks[name] = masks.get(name, 0) | self._bits[node]
                values[name] = value
        factors: dict[int, float] = {}
        for name, mask in masks.items():
            factors[mask] = factors.get(mask, 1.0) * values[name]
        return factors

    def _after(self, label: Label, node: Node) -> list[Label]:
        bit, status = self._bits[node], self._known.get(node)
        kind = status.kind if status else ""
        needs = 0
        for other in self._needs[node]:
            needs |= self._bits[other]
        started = latest([label.times[self._bits[other]] for other in [*self._needs[node], *self._gates(node)]])
        if kind in (DONE, LOST):
            return [label._replace(times=label.times | {bit: START})]
        if isinstance(node, StageNode | EnsembleNode):
            return self._stage(label, node, status, started, needs)
        factors = label.factors
        if isinstance(node, SwitchNode | SplitterNode) and kind != CHOSEN:
            members = {self._bits[link.node] for link in branches(node)}
            factors = merged(factors, sorted(members), bit, 1)
        else:
            factors = spread(factors, needs, bit)
        return [label._replace(times=label.times | {bit: started}, factors=factors)]

    def _stage(self, label: Label, node: StageNode | EnsembleNode, status: Status | None, started: Time, needs: int) -> list[Label]:
        assert node.stage is not None
        bit = self._bits[node]
        kind = status.kind if status else ""
        choices = self._choices(node.stage)
        if kind == TARGET and self._apart:
            return [Label(label.times | {bit: (0.0, NEVER)}, spread(label.factors, 0, bit), 0.0, -1)]
        if kind == TARGET:
            return [
                Label(label.times | {bit: (0.0, NEVER)}, spread(label.factors, 0, bit, choice.accuracy), choice.work_ms, choice.number)
                for choice in choices
            ]
        factors = label.factors
        if status is not None and kind in (RUNNING, ROWS) and status.reserved != UNPLANNED:
            choices = _reserved(choices, status.reserved)
        if kind != RUNNING and isinstance(node, EnsembleNode):
            factors = self._members(factors, node)
            needs = 0
        hop = self._estimates.hop_ms if self._needs[node] or self._gates(node) else 0.0
        share = self._estimates.fan_out(node.path) if node in self._outline.optional and kind != RUNNING else 1.0
        return [
            Label(
                label.times | {bit: later(started, hop + choice.time_ms)},
                spread(factors, needs, bit, choice.accuracy),
                label.work_ms + choice.work_ms * share,
                label.variant,
            )
            for choice in choices
        ]

    def _members(self, factors: dict[int, float], node: EnsembleNode) -> dict[int, float]:
        alive = [link.node for link in node.members if (status := self._known.get(link.node)) is None or status.kind != LOST]
        if not alive:
            return factors
        take = 1 if node.by_deadline else min(node.wait or len(alive), len(alive))
        return merged(factors, [self._bits[member] for member in alive], self._bits[node], take)

    def _choices(self, stage: Stage) -> list[Choice]:
        choices = self._estimates.choices(stage)
        wanted = self._fixed.get(stage.path)
        if wanted is None:
            return choices
        names = self._estimates.names[stage]
        return [choice for choice in choices if names[choice.number] == wanted]


def _reserved(choices: list[Choice], reserved: float) -> list[Choice]:
    """The one variant that a running stage is thought to have: no more accurate than was asked of it, and no faster than any that may be it."""
    able = [choice for choice in choices if choice.accuracy >= reserved] or choices
    if not able:
        return []
    return [Choice(able[0].number, reserved, min(choice.time_ms for choice in able), min(choice.work_ms for choice in able))]

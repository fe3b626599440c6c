"""Which (accuracy, time) a graph can have: every choice of variants that no other choice beats, node by node in the outline's order.

A label is one choice for the nodes so far. Accuracies multiply along a path, and one stage counts once however many ways lead over it; so
a label keeps a factor apart for each set of open nodes (those that later nodes still look at) that it counts towards. This is label setting with
Pareto dominance (Martins, "On a multicriteria shortest path problem", EJOR 1984) on a graph instead of a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FRONT_MAX = 32
"""Labels kept for each variant of the stage that is planned."""
NEVER = float("-inf")
Time = tuple[float, float]
"""(after the planned stage has ended, or NEVER; after now): what comes later is the maximum of both."""


class Choice(NamedTuple):
    """One variant of a stage."""

    number: int
    accuracy: float
    time_ms: float
    work_ms: float


class Label(NamedTuple):
    """A choice of variants: when each open node ends, the factors by the set of open nodes that count them, the work, the planned stage's variant."""

    times: dict[int, Time]
    factors: dict[int, float]
    work_ms: float
    variant: int


def latest(times: Sequence[Time]) -> Time:
    """When the last of several is there; (NEVER, 0): now."""
    first, second = NEVER, 0.0
    for after, now in times:
        first, second = max(first, after), max(second, now)
    return first, second


def later(time: Time, by_ms: float) -> Time:
    """Both ways of counting, later by as much."""
    return time[0] + by_ms, time[1] + by_ms


def spread(factors: dict[int, float], needs: int, bit: int, own: float = 1.0) -> dict[int, float]:
    """The factors after a node that counts all that `needs` count, and `own`."""
    spreaded: dict[int, float] = {}
    for mask, value in factors.items():
        key = mask | bit if mask & needs else mask
        spreaded[key] = spreaded.get(key, 1.0) * value
    if own != 1.0:
        spreaded[bit] = spreaded.get(bit, 1.0) * own
    return spreaded


def merged(factors: dict[int, float], members: Sequence[int], bit: int, take: int) -> dict[int, float]:
    """The factors after a node that is one of its members, or a mean of `take` of them: the least accurate; what all count in common stays apart."""
    whole = 0
    for member in members:
        whole |= member
    result: dict[int, float] = {}
    rest = dict.fromkeys(members, 1.0)
    for mask, value in factors.items():
        common = mask & whole == whole
        key = mask | bit if common else mask
        result[key] = result.get(key, 1.0) * value
        if not common:
            for member in members:
                if mask & member:
                    rest[member] *= value
    least = sorted(rest.values())[:take]
    mean = sum(least) / len(least)
    if mean != 1.0:
        result[bit] = result.get(bit, 1.0) * mean
    return result


def close(label: Label, gone: Sequence[int], masked: int) -> Label:
    """Without the nodes that nobody looks at any more; `masked`: the bits of those that stay."""
    factors: dict[int, float] = {}
    for mask, value in label.factors.items():
        key = mask & masked
        if key:
            factors[key] = factors.get(key, 1.0) * value
    times = {bit: time for bit, time in label.times.items() if bit not in gone}
    return Label(times, factors, label.work_ms, label.variant)


def front(labels: list[Label]) -> list[Label]:
    """The labels that no other beats, at most FRONT_MAX for each variant of the planned stage."""
    by_variant: dict[int, list[Label]] = {}
    for label in labels:
        by_variant.setdefault(label.variant, []).append(label)
    return [label for group in by_variant.values() for label in _front(group)]


def _front(labels: list[Label]) -> list[Label]:
    if len(labels) == 1:
        return labels
    masks = sorted({mask for label in labels for mask in label.factors})
    bits = sorted(labels[0].times)
    rated = sorted(((_vector(label, masks, bits), label) for label in labels), key=lambda pair: (*pair[0], pair[1].work_ms))
    kept: list[tuple[tuple[float, ...], Label]] = []
    for vector, label in rated:
        if not any(all(mine <= other for mine, other in zip(better, vector, strict=True)) for better, _ in kept):
            kept.append((vector, label))
    return [label for _, label in _thinned(kept)]


def _vector(label: Label, masks: Sequence[int], bits: Sequence[int]) -> tuple[float, ...]:
    """Less is better in every place."""
    return (*(-label.factors.get(mask, 1.0) for mask in masks), *(part for bit in bits for part in label.times[bit]))


def _thinned(kept: list[tuple[tuple[float, ...], Label]]) -> list[tuple[tuple[float, ...], Label]]:
    """Evenly from the most to the least accurate, with the fastest."""
    if len(kept) <= FRONT_MAX:
        return kept
    fastest = min(range(len(kept)), key=lambda index: max(part for time in kept[index][1].times.values() for part in time))
    step = (len(kept) - 1) / (FRONT_MAX - 2)
    chosen = {round(index * step) for index in range(FRONT_MAX - 1)} | {fastest}
    return [kept[index] for index in sorted(chosen)]

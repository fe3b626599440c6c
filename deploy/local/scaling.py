"""Decides which processes run when so many workers of a class are wanted: within what `up` was given; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec


class ScaleRange(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers of one class there may be."""

    accelerator: str
    least: int
    most: int
    threads: int = 1
    """Of each."""

    @property
    def first(self) -> int:
        """Workers to start with: one at least, or nobody would know what its variants cost."""
        return max(self.least, 1)


class ScaleRules(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` was given."""

    ranges: tuple[ScaleRange, ...] = ()
    cores: int = 0
    """That all of them share, one for a process at least; 0: no limit."""

    def allowed(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """What of it can be; where the cores are not enough, the classes that are furthest above their least get fewer."""
        counts = {each.accelerator: min(max(wanted.get(each.accelerator, each.first), each.least), each.most) for each in self.ranges}
        least = {each.accelerator: each.least for each in self.ranges}
        while self.cores and sum(counts.values()) > self.cores:
            name = max(counts, key=lambda name: (counts[name] - least[name], name))
            if counts[name] <= least[name]:
                break
            counts[name] -= 1
        return counts


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Processes to start and to end, by name."""

    start: tuple[str, ...] = ()
    end: tuple[str, ...] = ()


def change(names: Sequence[str], kept: Collection[str], ending: Collection[str], wanted: int, leaving: Collection[str]) -> Change:
    """From the `kept` of a class's `names` to `wanted` ones: the drained (`leaving`) end first, then the last; the first that are free start.

    A name that is `ending` still belongs to the process that has it.
    """
    running = [name for name in names if name in kept]
    if len(running) > wanted:
        ordered = sorted(running, key=lambda name: (name in leaving, names.index(name)), reverse=True)
        return Change(end=tuple(ordered[: len(running) - wanted]))
    free = [name for name in names if name not in kept and name not in ending]
    return Change(start=tuple(free[: wanted - len(running)]))

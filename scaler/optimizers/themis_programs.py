"""Themis's two dynamic programs over whole milliseconds, and the rule that says which of them decides. Pure functions.

The paper's stages form a chain; on a tree the time of a stage's branches runs side by side, and the same recursion holds for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf

import msgspec
import numpy as np
from numpy.typing import NDArray

VERTICAL, HORIZONTAL = "vertical", "horizontal"
CALM_DECISIONS = 10
BINARY_STEPS = 20


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a stage: l(b, c) of its variant at one batch size and number of cores."""

    batch_size: int
    cores: int
    latency_ms: float
    """95th percentile of one batch."""

    @property
    def rate_rps(self) -> float:
        return 1000.0 * self.batch_size / self.latency_ms


class StageLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage has to do."""

    name: str
    after: str | None = None
    variant: str = ""
    rate_rps: float
    options: tuple[Option, ...]
    replicas: int = 0
    """That it has now."""
    cores: int = 0
    """That each of them has now."""

    def grown(self) -> StageLoad:
        """Without the options that would take cores away."""
        return msgspec.structs.replace(self, options=tuple(option for option in self.options if option.cores >= self.cores))


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage gets."""

    option: Option
    replicas: int


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """Of all stages, by name."""

    stages: dict[str, Configured]
    cores: int
    """Of all replicas together."""


def wait_ms(batch_size: int, rate_rps: float) -> float:
    """Until the last of a batch has come: (b - 1) / rate."""
    if batch_size <= 1:
        return 0.0
    return 1000.0 * (batch_size - 1) / rate_rps if rate_rps > 0.0 else inf


def horizontal(stages: Sequence[StageLoad], time_ms: float) -> Configuration | None:
    """The fewest replicas of one core (the fewest cores that there are) that carry the load within the time; None where none do."""
    ways: dict[str, list[tuple[Configured, float, int]]] = {}
    for stage in stages:
        least = min((option.cores for option in stage.options), default=0)
        ways[stage.name] = [
            (Configured(option=option, replicas=replicas), option.latency_ms + wait_ms(option.batch_size, stage.rate_rps), replicas)
            for option in stage.options
            if option.cores == least and (replicas := max(ceil(stage.rate_rps / option.rate_rps - 1e-9), 1))
        ]
    return _cheapest(stages, ways, time_ms)


def vertical(stages: Sequence[StageLoad], time_ms: float) -> Configuration | None:
    """The fewest cores for the replicas that there are; None where no number of cores carries the load within the time."""
    ways: dict[str, list[tuple[Configured, float, int]]] = {}
    for stage in stages:
        replicas = max(stage.replicas, 1)
        ways[stage.name] = [
            (Configured(option=option, replicas=replicas), option.latency_ms + wait_ms(option.batch_size, stage.rate_rps), replicas * option.cores)
            for option in stage.options
            if replicas * option.rate_rps >= stage.rate_rps * (1.0 - 1e-9)
        ]
    return _cheapest(stages, ways, time_ms)


def vertical_and_more(stages: Sequence[StageLoad], time_ms: float) -> Configuration | None:
    """`vertical`; where that is not enough, for the largest part of the load that it carries, and replicas for the rest.

    The part is found by bisection; a smaller load makes batches wait longer, so what the bisection finds is checked, not assumed.
    """
    whole = vertical(stages, time_ms)
    if whole is not None:
        return whole
    low, high, best, found = 0.0, 1.0, 0.0, None
    for _ in range(BINARY_STEPS):
        part = (low + high) / 2.0
        tried = vertical([msgspec.structs.replace(stage, rate_rps=stage.rate_rps * part) for stage in stages], time_ms)
        if tried is not None:
            low, best, found = part, part, tried
        else:
            high = part
    if found is None or best <= 0.0:
        return None
    grown = {
        stage.name: Configured(
            option=found.stages[stage.name].option,
            replicas=max(ceil(stage.rate_rps / found.stages[stage.name].option.rate_rps - 1e-9), found.stages[stage.name].replicas),
        )
        for stage in stages
    }
    return Configuration(stages=grown, cores=sum(each.replicas * each.option.cores for each in grown.values()))


class Transition(msgspec.Struct, frozen=True):
    """Where the rule stands: `calm` decisions running would have needed no more replicas than there are."""

    mode: str = HORIZONTAL
    calm: int = 0


def advance(before: Transition, *, replicas_now: int, replicas_needed: int, rising: bool) -> Transition:
    """Vertical at once while the load rises beyond what the replicas carry; horizontal again after ten calm decisions running.

    `replicas_needed`: for the forecast, at one core each. `rising`: the present configuration does not carry the forecast.
    """
    calm = before.calm + 1 if replicas_needed <= replicas_now else 0
    if rising and replicas_needed > replicas_now:
        return Transition(VERTICAL, 0)
    if before.mode == VERTICAL and calm < CALM_DECISIONS:
        return Transition(VERTICAL, calm)
    return Transition(HORIZONTAL, min(calm, CALM_DECISIONS))


def _cheapest(stages: Sequence[StageLoad], ways: Mapping[str, Sequence[tuple[Configured, float, int]]], time_ms: float) -> Configuration | None:
    """dp[stage][t]: the least cost of a stage and all after it within t, exact on whole milliseconds (times are rounded up)."""
    slots = int(time_ms) + 1 if time_ms > 0.0 else 0
    if not slots or not stages:
        return None
    tables: dict[str, NDArray[np.float64]] = {}
    picked: dict[str, NDArray[np.int64]] = {}
    for stage in reversed(stages):
        below: NDArray[np.float64] = np.zeros(slots)
        for other in stages:
            if other.after == stage.name:
                below = below + tables[other.name]
        table: NDArray[np.float64] = np.full(slots, inf)
        picks: NDArray[np.int64] = np.full(slots, -1, np.int64)
        for number, (_, own_ms, cost) in enumerate(ways[stage.name]):
            if own_ms > time_ms:
                continue
            own = ceil(own_ms - 1e-9)
            total = below[: slots - own] + cost
            better = total < table[own:]
            table[own:][better] = total[better]
            picks[own:][better] = number
        tables[stage.name], picked[stage.name] = table, picks
    return _walk_back(stages, ways, tables, picked)


def _walk_back(
    stages: Sequence[StageLoad],
    ways: Mapping[str, Sequence[tuple[Configured, float, int]]],
    tables: Mapping[str, NDArray[np.float64]],
    picked: Mapping[str, NDArray[np.int64]],
) -> Configuration | None:
    left: dict[str | None, int] = {None: len(next(iter(tables.values()))) - 1}
    chosen: dict[str, Configured] = {}
    for stage in stages:
        at = left[stage.after]
        number = int(picked[stage.name][at])
        if number < 0 or tables[stage.name][at] == inf:
            return None
        configured, own_ms, _ = ways[stage.name][number]
        chosen[stage.name] = configured
        left[stage.name] = at - ceil(own_ms - 1e-9)
    return Configuration(stages=chosen, cores=sum(each.replicas * each.option.cores for each in chosen.values()))

"""How accurate a class is to be answered on average, by the load or by the plan's shares, paid out request by request."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from broker.policy.ladder import Ladder
from broker.policy.tuning import Group, Mix

ACCURACY_ROUNDING = 1e-9
OWED_MAX = 2.0


class Aim(msgspec.Struct, gc=False):
    """A mix as it is paid out: the accuracies are those aimed at, the parts of one."""

    lower: str
    upper: str
    lower_accuracy: float
    upper_accuracy: float
    lower_part: float
    upper_part: float


class Aims:
    """Over many requests the parts come out as planned: the largest debt is paid first."""

    def __init__(self, ladders: Mapping[str, Ladder]) -> None:
        self._ladders = ladders
        self._aims: dict[Group, Aim] = {}
        self._owed: dict[Group, dict[str, float]] = {}
        """By variant, what the mix still has to come out at; the plan's shares have a book of their own."""
        self._owed_by_plan: dict[Group, dict[str, float]] = {}

    def set(self, mixes: Mapping[Group, Mix]) -> None:
        """What the load leaves room for, from now on."""
        self._aims = {group: _aim(mix) for group, mix in mixes.items()}

    def affordable(self, group: Group) -> float:
        """The accuracy to aim at under the present load."""
        aim = self._aims.get(group)
        if aim is None:
            return 1.0
        if aim.upper_part <= 0.0:
            return aim.lower_accuracy
        # As `_pay` does, of just these two.
        owed = self._owed.get(group)
        if owed is None:
            owed = self._owed[group] = {}
        lower, upper = aim.lower, aim.upper
        lower_owed, upper_owed = owed.get(lower, 0.0) + aim.lower_part, owed.get(upper, 0.0) + aim.upper_part
        if lower_owed > OWED_MAX:
            lower_owed = OWED_MAX
        if upper_owed > OWED_MAX:
            upper_owed = OWED_MAX
        if lower_owed >= upper_owed:
            owed[lower], owed[upper] = lower_owed - 1.0, upper_owed
            return aim.lower_accuracy
        owed[lower], owed[upper] = lower_owed, upper_owed - 1.0
        return aim.upper_accuracy

    def planned(self, group: Group, shares: Mapping[str, float]) -> float:
        """The accuracy to aim at by the plan: `shares` are parts by variant; what is below the class's rung has none."""
        task, rung = group
        ladder = self._ladders[task]
        parts = {key: part for key, part in shares.items() if part > 0.0 and ladder.index.get(key, -1) >= rung}
        if not parts:
            return 1.0
        chosen = _pay(self._owed_by_plan.setdefault(group, {}), parts)
        return ladder.accuracies[ladder.index[chosen]] + ACCURACY_ROUNDING


def _pay(owed: dict[str, float], parts: Mapping[str, float]) -> str:
    total = sum(parts.values())
    for key, part in parts.items():
        owed[key] = min(owed.get(key, 0.0) + part / total, OWED_MAX)
    chosen = max(parts, key=lambda key: owed[key])
    owed[chosen] -= 1.0
    return chosen


def _aim(mix: Mix) -> Aim:
    lower, upper, part = mix.lower, mix.upper, mix.upper_part
    total = 1.0 - part + part
    return Aim(lower.key, upper.key, lower.accuracy + ACCURACY_ROUNDING, upper.accuracy + ACCURACY_ROUNDING, (1.0 - part) / total, part / total)

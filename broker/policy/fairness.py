"""Who has had its share while requests were refused: the same part of every tenant's floors, and equal work for tenants.

Only times in which something is refused count, so a quiet past earns nothing and costs nothing.
"""

from __future__ import annotations

import msgspec

REST = "*"
HALF_LIFE_MS = 1_000.0
TOLERANCE = 0.02
LIGHT = 0.8
"""A tenant below this part of what is fair takes what it finds: its floors need no balance among themselves."""


class Account(msgspec.Struct, gc=False):
    """Work offered and admitted, in milliseconds of computing, fading with time."""

    offered_ms: float = 0.0
    admitted_ms: float = 0.0


class Fairness:
    """Fading accounts by tenant, and by tenant, task and rung."""

    def __init__(self, tenants_max: int) -> None:
        self._tenants_max = tenants_max
        self._tenants: dict[str, Account] = {}
        self._flows: dict[tuple[str, str, int], Account] = {}
        self._faded_ms = 0.0
        self._fair_ms = 0.0
        self._refused_ms = 0.0
        self.contended = False
        """Something was refused a short time ago: what is admitted without contention counts too."""

    def over_served(self, tenant: str, task: str, rung: int) -> bool:
        """True where this flow has had more than its share: the last of the room is kept for the others."""
        tenant = self._name(tenant)
        account, flow = self._tenants.get(tenant), self._flows.get((tenant, task, rung))
        if account is None or flow is None:
            return False
        if len(self._tenants) > 1:
            if account.admitted_ms > self._fair_ms * (1.0 + TOLERANCE):
                return True
            if account.admitted_ms < self._fair_ms * LIGHT:
                return False
        return flow.admitted_ms * account.offered_ms > account.admitted_ms * flow.offered_ms * (1.0 + TOLERANCE)

    def refused(self, now_ms: float) -> None:
        """There was not room for all."""
        self._refused_ms = now_ms
        self.contended = True

    def count(self, tenant: str, task: str, rung: int, work_ms: float, admitted_ms: float) -> None:
        """One decision in a contended time; `admitted_ms` is work_ms or 0."""
        tenant = self._name(tenant)
        account = self._tenants.get(tenant)
        if account is None:
            account = self._tenants[tenant] = Account()
        flow = self._flows.get((tenant, task, rung))
        if flow is None:
            flow = self._flows[(tenant, task, rung)] = Account()
        for each in (account, flow):
            each.offered_ms += work_ms
            each.admitted_ms += admitted_ms

    def fade(self, now_ms: float) -> None:
        """Let the past fade, drop accounts that have, and settle what a fair part is: equal work, less for who asked for less."""
        factor = 0.5 ** (max(now_ms - self._faded_ms, 0.0) / HALF_LIFE_MS)
        self._faded_ms = now_ms
        self.contended = now_ms - self._refused_ms < HALF_LIFE_MS
        for accounts in (self._tenants, self._flows):
            for name, account in list(accounts.items()):
                account.offered_ms *= factor
                account.admitted_ms *= factor
                if account.offered_ms < 1e-3:
                    del accounts[name]  # pyright: ignore[reportArgumentType]
        self._fair_ms = _max_min(sorted(a.offered_ms for a in self._tenants.values()), sum(a.admitted_ms for a in self._tenants.values()))

    def _name(self, tenant: str) -> str:
        return tenant if tenant in self._tenants or len(self._tenants) < self._tenants_max else REST


def _max_min(offered_ms: list[float], total_ms: float) -> float:
    """The level at which cutting every tenant's offer to it uses up the total (max-min fairness); offers sorted, smallest first."""
    left_ms = total_ms
    for at, offer_ms in enumerate(offered_ms):
        level_ms = left_ms / (len(offered_ms) - at)
        if offer_ms >= level_ms:
            return level_ms
        left_ms -= offer_ms
    return offered_ms[-1] if offered_ms else 0.0

"""What differs between two plans, in words."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from schemas.plan import Binding, Plan

WORKER, SHARE, BUDGET = "worker", "share", "budget"


class PlanChange(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that changed; empty: it was not there, or is not there any more."""

    kind: str
    """worker, share or budget."""
    name: str
    before: str
    after: str


def changes_between(old: Plan, new: Plan) -> list[PlanChange]:
    """Workers first, by name; then shares, then stage budgets."""
    one, other = ({binding.worker: _bound(binding) for binding in plan.bindings} for plan in (old, new))
    changes = _changed(WORKER, one, other)
    changes += _changed(SHARE, _shares(old.shares), _shares(new.shares))
    return changes + _changed(BUDGET, _budgets(old.budgets), _budgets(new.budgets))


def _changed(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[PlanChange]:
    names = sorted(old.keys() | new.keys())
    return [PlanChange(kind=kind, name=name, before=old.get(name, ""), after=new.get(name, "")) for name in names if old.get(name) != new.get(name)]


def _bound(binding: Binding) -> str:
    hosted = ", ".join(sorted(binding.variants)) or "nothing"
    return f"{binding.accelerator} lane {binding.lane}, {binding.threads} threads, batches to {binding.batch_size_max}: {hosted}"


def _shares(shares: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """A share has two decimals: less is not a change that somebody could see."""
    return {key: f"{part:.0%}" for by_variant in shares.values() for key, part in by_variant.items()}


def _budgets(budgets: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    return {f"{endpoint}/{stage}": f"{budget:.0f} ms" for endpoint, stages in budgets.items() for stage, budget in stages.items()}

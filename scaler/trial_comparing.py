"""Asks all sides of a comparison for proposals, each in a process of its own, and rolls what they proposed forward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from scaler.optimizer_runner import OptimizerRunner
from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import Snapshot
from scaler.policy.guarded import GuardSettings
from scaler.policy.trial_arm import Measured, TrialArm, measured_of
from scaler.policy.trial_load import IntervalDemand
from scaler.policy.trial_rolling import Question, roll_forward
from schemas.catalog import Catalog
from schemas.errors import HeadraceError

FAILURES_MAX = 3
"""An optimizer that proposes nothing so many times in a row, from the beginning on, has no trial."""


class TrialImpossible(HeadraceError):
    """The optimizers cannot be compared here; the message says why."""

    code = "trial_impossible"


class _Asked(msgspec.Struct, frozen=True):
    """One side's answer to one snapshot."""

    snapshot: Snapshot
    proposal: Proposal | None
    failure: str


class TrialComparison:
    """Follows any number of optimizers from snapshot to snapshot: `propose`, then `roll` over what was asked until the next one."""

    def __init__(self, optimizers: Sequence[str], settings: GuardSettings, *, seed: int = 1) -> None:
        """`optimizers`: names of the registry, or `package.module:factory`."""
        self.optimizers = tuple(dict.fromkeys(optimizers))
        self._arms = {name: TrialArm(name) for name in self.optimizers}
        self._runners = {name: OptimizerRunner(name, settings=settings) for name in self.optimizers}
        self._asked: dict[str, _Asked] = {}
        self._failures = dict.fromkeys(self.optimizers, 0)
        self._proved: set[str] = set()
        """Those that have proposed something."""
        self._seed = seed
        self._rounds = 0

    @property
    def proved(self) -> bool:
        """Whether every side has proposed something."""
        return self._proved == set(self.optimizers)

    async def propose(self, live: Snapshot) -> None:
        """Ask every side, one after the other. Raises TrialImpossible for one that fails again and again from the beginning on."""
        for name, arm in self._arms.items():
            snapshot = arm.snapshot(live)
            found = await self._runners[name].propose(snapshot, live.plan.epoch)
            if isinstance(found, Proposal):
                self._proved.add(name)
                self._asked[name] = _Asked(snapshot, found, "")
                continue
            self._asked[name] = _Asked(snapshot, None, f"{found.kind}: {found.reason}")
            self._failures[name] += 1
            if name not in self._proved and self._failures[name] >= FAILURES_MAX:
                raise TrialImpossible(f"optimizer {name!r} proposed nothing {FAILURES_MAX} times in a row ({self._asked[name].failure})")

    async def roll(self, demand: IntervalDemand, catalog: Catalog) -> dict[str, Measured]:
        """What became of the proposals over this demand, by optimizer; every side goes on from its own plan."""
        self._rounds += 1
        measured: dict[str, Measured] = {}
        for name, asked in self._asked.items():
            question = Question(
                snapshot=asked.snapshot,
                proposal=asked.proposal,
                optimizer=name,
                catalog=catalog,
                demand=demand,
                seed=self._seed + self._rounds,
            )
            # Beside the loop: telemetry goes on being read.
            rolled = await asyncio.to_thread(roll_forward, question)
            self._arms[name].rolled(rolled, asked.proposal)
            measured[name] = measured_of(rolled, asked.snapshot, asked.failure)
        return measured

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(runner.close() for runner in self._runners.values()))

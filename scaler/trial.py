"""A trial in the shadow: at every live snapshot two optimizers propose, and both plans are rolled forward over what was really asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from broker.log import Log
from scaler.optimizers.snapshot import Snapshot
from scaler.policy.control_settings import ControlSettings
from scaler.policy.guarded import GuardSettings
from scaler.policy.trial_report import Pair, TrialReport, report_of
from scaler.trial_comparing import TrialComparison
from scaler.trial_watching import CLIENT_ID, TrialWatch
from schemas.names import Names

SHADOW = "shadow"
INTERVALS_MIN = 2
"""The first interval is each side's way from the live plan to its own, and does not count."""


class TrialSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of a trial in the shadow."""

    duration_s: float = 600.0
    interval_s: float = 10.0
    """Between two snapshots; as a scaler plans without other reasons."""
    seed: int = 1
    guard: GuardSettings = GuardSettings()

    @property
    def intervals(self) -> int:
        """That fit."""
        return int(self.duration_s / self.interval_s + 1e-9)


OnPair = Callable[[Pair, int, int], None]
"""Is told of each interval, its number, and how many there will be."""


class ShadowTrial:
    """Reads what everybody may read; changes nothing and publishes nothing."""

    def __init__(self, log: Log, names: Names, *, candidate: str, against: str, settings: TrialSettings, on_pair: OnPair | None = None) -> None:
        self._candidate, self._against, self._settings = candidate, against, settings
        self._on_pair = on_pair or nobody
        control = ControlSettings(name="trial", interval_ms=settings.interval_s * 1e3)
        self._watch = TrialWatch(log, names, log.writer(CLIENT_ID), settings=control)
        self._comparison = TrialComparison((candidate, against), settings.guard, seed=settings.seed)
        self._pairs: list[Pair] = []
        self._quiet = 0
        """Intervals in which nothing was asked."""
        self._notes: list[str] = []

    async def run(self, stopping: asyncio.Event) -> TrialReport:
        """Until its time is over, or `stopping`: then with what there is. Raises TrialImpossible (and LogUnavailable at the beginning)."""
        following = None
        try:
            await self._watch.start()
            following = asyncio.create_task(self._watch.run())
            await self._watch.known(stopping)
            await self._intervals(stopping, following)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await self._comparison.close()
            await self._watch.close()
        return self._report(stopped=stopping.is_set())

    async def _intervals(self, stopping: asyncio.Event, following: asyncio.Task[None]) -> None:
        settings, begun_s = self._settings, time.monotonic()
        live = self._watch.snapshot()
        await self._comparison.propose(live)
        for number in range(1, settings.intervals + 1):
            # Rolling forward takes time: where it takes more than an interval, the next one is longer, and there are fewer.
            left_s = begun_s + number * settings.interval_s - time.monotonic()
            if left_s < -settings.interval_s and time.monotonic() - begun_s > settings.duration_s:
                self._notes.append(f"the machine was too busy for intervals of {settings.interval_s:g} s: they were longer")
                return
            if await stopped_within(stopping, max(left_s, 0.0)):
                return
            if following.done():
                following.result()
            now = self._watch.snapshot()
            await self._roll(live, now, number)
            live = now
            if number < settings.intervals:
                await self._comparison.propose(live)

    async def _roll(self, live: Snapshot, now: Snapshot, number: int) -> None:
        demand = self._watch.demand.take(live.at_ms, now.at_ms)
        if demand.requests <= 0.0:
            self._quiet += 1
            return
        measured = await self._comparison.roll(demand, self._watch.catalog)
        pair = Pair(at_ms=live.at_ms, candidate=measured[self._candidate], against=measured[self._against])
        self._pairs.append(pair)
        self._on_pair(pair, number, self._settings.intervals)

    def _report(self, *, stopped: bool) -> TrialReport:
        notes = self._notes
        if stopped:
            notes.append("stopped early")
        if self._quiet:
            notes.append(f"{self._quiet} intervals without a request are left out")
        if self._pairs:
            notes.append("the first interval, on which both sides went from the live plan to their own, does not count")
        return report_of(SHADOW, (self._candidate, self._against), self._pairs[1:], notes, self._settings.seed)


async def stopped_within(stopping: asyncio.Event, wait_s: float) -> bool:
    """Wait; True as soon as it is to stop."""
    try:
        async with asyncio.timeout(wait_s):
            await stopping.wait()
    except TimeoutError:
        return False
    return True


def nobody(_pair: Pair, _number: int, _intervals: int) -> None:
    """Nobody wants to know."""

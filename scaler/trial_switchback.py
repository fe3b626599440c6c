"""A switchback: two optimizers take turns at leading the live cluster, and what clients really got in each turn is compared.

The switch is the control record that `headrace optimizers use` writes. What was chosen before is chosen again at the end, whatever ended it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from broker.log import Log, Record, TopicPartition
from scaler.optimizers.registry import DEFAULT_OPTIMIZER
from scaler.policy.control_settings import ControlSettings
from scaler.policy.guarded import GuardSettings
from scaler.policy.trial_periods import Periods, order_of
from scaler.policy.trial_report import TrialReport, report_of
from scaler.trial import OnPair, nobody, stopped_within
from scaler.trial_comparing import FAILURES_MAX, TrialComparison, TrialImpossible
from scaler.trial_watching import CLIENT_ID, TrialWatch
from schemas.control import CONTROL_KEY, ControlSpec, encode_control
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.terminal import answers, decode_terminal_head

logger = structlog.get_logger()
SWITCHBACK = "switchback"
CHANGED_BY = "headrace optimizers trial"
OBEYED_S_MAX = 15.0
"""A leader that has not switched by then does not follow."""
LOOK_S = 0.1
READ_MS = 100
RETRY_S = 0.5
RESTORE_S_MAX = 30.0
LATE_MS, LATE_MS_MAX = 1_000.0, 30_000.0
"""Answers are read for the longest time-out and so much more after the last turn."""


class SwitchbackSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of a switchback."""

    duration_s: float = 600.0
    period_s: float = 60.0
    """One turn."""
    settle_s: float = 15.0
    """After each switch nothing counts for so long: bindings move, and what was in flight ends."""
    seed: int = 1
    guard: GuardSettings = GuardSettings()

    @property
    def pairs(self) -> int:
        """That fit."""
        return int(self.duration_s / (2.0 * self.period_s) + 1e-9)


class Switchback:
    """Writes control records, and nothing else."""

    def __init__(
        self, log: Log, names: Names, *, candidate: str, against: str, settings: SwitchbackSettings, on_pair: OnPair | None = None,
        now_ms: Callable[[], float] = lambda: time.time() * 1e3,
    ) -> None:  # fmt: skip
        self._names, self._settings, self._log, self._now_ms = names, settings, log, now_ms
        self._candidate, self._against = candidate, against
        self._on_pair = on_pair or nobody
        self._writer = log.writer(CLIENT_ID)
        self._watch = TrialWatch(log, names, self._writer, settings=ControlSettings(name="trial"), now_ms=now_ms)
        self._reader = log.reader(f"{CLIENT_ID}-responses", fetch_wait_ms=READ_MS)
        self._periods = Periods()
        self._ours = ControlSpec()

    async def run(self, stopping: asyncio.Event) -> TrialReport:
        """Until its time is over, or `stopping`: then with the pairs there are. Raises TrialImpossible (and LogUnavailable at the beginning)."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._writer.start()
            await self._watch.start()
            await self._read_from_here()
            tasks = [asyncio.create_task(self._watch.run()), asyncio.create_task(self._follow_answers())]
            await self._watch.known(stopping)
            await self._probe(stopping)
            await self._taking_turns(stopping, tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for part in (self._reader, self._watch, self._writer):
                await part.close()
        notes = ["stopped early"] if stopping.is_set() else []
        return report_of(SWITCHBACK, (self._candidate, self._against), self._periods.pairs(), notes, self._settings.seed)

    # -- turns

    async def _probe(self, stopping: asyncio.Event) -> None:
        """Both must be able to plan at all, and whoever leads must follow: nothing is switched before that is known."""
        if self._watch.catalog.control.pinned:
            raise TrialImpossible("the plan is pinned, no optimizer can change it: `headrace plan unpin` first")
        until_s = time.monotonic() + OBEYED_S_MAX
        while self._watch.leader is None and not stopping.is_set():
            if time.monotonic() > until_s:
                raise TrialImpossible("no scaler says that it leads: `headrace status` shows who runs")
            await asyncio.sleep(LOOK_S)
        comparison = TrialComparison((self._candidate, self._against), self._settings.guard)
        try:
            for _ in range(FAILURES_MAX):
                await comparison.propose(self._watch.snapshot())
                if comparison.proved:
                    return
        finally:
            await comparison.close()

    async def _taking_turns(self, stopping: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
        former = self._watch.catalog.control
        order = order_of(self._settings.pairs, self._settings.seed)
        told = 0
        try:
            for candidate in order:
                if not await self._turn(stopping, candidate=candidate):
                    break
                for task in tasks:
                    if task.done():
                        task.result()
                told = self._tell(told)
        finally:
            # Also where this task is cancelled: the restoring goes on by itself, and is waited for.
            restoring = asyncio.ensure_future(self._restore(former))
            try:
                await asyncio.shield(restoring)
            except asyncio.CancelledError:
                await restoring
                raise
        if not stopping.is_set():
            await stopped_within(stopping, self._late_ms / 1e3)
            self._tell(told)

    async def _turn(self, stopping: asyncio.Event, *, candidate: bool) -> bool:
        """One period; False where it was cut short."""
        until_s = time.monotonic() + self._settings.period_s
        name = self._candidate if candidate else self._against
        await self._choose(msgspec.structs.replace(self._watch.catalog.control, optimizer=name))
        await self._obeyed(name, stopping)
        if await stopped_within(stopping, self._settings.settle_s):
            return False
        self._periods.begin(self._now_ms(), candidate=candidate)
        while time.monotonic() < until_s:
            if await stopped_within(stopping, min(max(until_s - time.monotonic(), 0.0), 1.0)):
                return False
            self._check_undisturbed()
        self._periods.end(self._now_ms())
        return True

    async def _obeyed(self, name: str, stopping: asyncio.Event) -> None:
        until_s = time.monotonic() + OBEYED_S_MAX
        while not stopping.is_set():
            leader = self._watch.leader
            if leader is not None and leader.optimizer == name and leader.at_ms >= self._ours.changed_ms - 1_000:
                return
            self._check_undisturbed()
            if time.monotonic() > until_s:
                said = leader.optimizer if leader is not None else "nothing"
                raise TrialImpossible(f"whoever leads has not switched to {name} within {OBEYED_S_MAX:g} s (it says {said}): is a scaler there?")
            await asyncio.sleep(LOOK_S)

    def _check_undisturbed(self) -> None:
        if self._disturbed:
            control = self._watch.catalog.control
            by = f" by {control.changed_by}" if control.changed_by else ""
            what = "the plan was pinned" if control.pinned else f"the optimizer was changed to {control.optimizer or DEFAULT_OPTIMIZER}"
            raise TrialImpossible(f"{what}{by} during the trial: it ends, and that choice stays")

    @property
    def _disturbed(self) -> bool:
        """Somebody else has changed the control record since we did."""
        control = self._watch.catalog.control
        return (control.changed_ms, control.changed_by) != (
            self._ours.changed_ms,
            self._ours.changed_by,
        ) and control.changed_ms >= self._ours.changed_ms

    async def _choose(self, wanted: ControlSpec) -> None:
        self._ours = msgspec.structs.replace(wanted, changed_by=CHANGED_BY, changed_ms=int(self._now_ms()))
        await self._writer.write(self._names.catalog, 0, [(CONTROL_KEY, encode_control(self._ours), [])])

    async def _restore(self, former: ControlSpec) -> None:
        """Choose what was chosen before, unless nothing was switched, or somebody else has chosen meanwhile. Raises TrialImpossible."""
        if not self._ours.changed_ms or self._disturbed:
            return
        until_s = time.monotonic() + RESTORE_S_MAX
        while True:
            try:
                await self._choose(former)
            except LogUnavailable as error:
                if time.monotonic() > until_s:
                    how = f"use {former.optimizer}" if former.optimizer else "use --default"
                    raise TrialImpossible(
                        f"the former optimizer could not be chosen again ({error}): do it with `headrace optimizers {how}`"
                    ) from error
                await asyncio.sleep(RETRY_S)
            else:
                return

    # -- what clients got

    async def _read_from_here(self) -> None:
        await self._reader.start()
        partitions = [TopicPartition(self._names.responses, number) for number in range(await self._log.partitions(self._names.responses))]
        if not partitions:
            raise TrialImpossible(f"there is no topic {self._names.responses}: does a stack run with the prefix {self._names.prefix!r}?")
        await self._reader.assign(dict.fromkeys(partitions, "latest"))

    async def _follow_answers(self) -> None:
        while True:
            try:
                for records in (await self._reader.read(timeout_ms=READ_MS, records_max=5_000)).values():
                    for record in records:
                        self._answered(record)
            except LogUnavailable as error:
                logger.warning("the log does not answer", error=str(error))
                await asyncio.sleep(RETRY_S)

    def _answered(self, record: Record) -> None:
        if record.key is None or not answers(record.value, record.key):
            return
        try:
            head = decode_terminal_head(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # somebody else's record: it is no answer
        self._periods.answered(record.key, head)

    @property
    def _late_ms(self) -> float:
        timeouts = [float(endpoint.defaults.timeout_ms) for endpoint in self._watch.catalog.endpoints.values()]
        return min(max(timeouts, default=0.0) + LATE_MS, LATE_MS_MAX)

    def _tell(self, told: int) -> int:
        pairs = self._periods.pairs()
        for number, pair in enumerate(pairs[told:], told + 1):
            self._on_pair(pair, number, self._settings.pairs)
        return len(pairs)

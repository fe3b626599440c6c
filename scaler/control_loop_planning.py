"""Asks the chosen optimizer off the loop, one question at a time, and switches optimizers while all goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from scaler.control_loop_settings import LoopSettings
from scaler.optimizer_runner import GuardedOptimizers, OptimizerRunner, Proposed
from scaler.optimizers.optimizer import FALLBACK, Explanation, Proposal
from scaler.optimizers.snapshot import Snapshot


class Optimizers(Protocol):
    """Who is asked."""

    async def propose(self, snapshot: Snapshot, *, seed: int, now_ms: float) -> Proposed: ...
    async def close(self) -> None: ...


MakeOptimizers = Callable[[str, LoopSettings], Optimizers]


def guarded_optimizers(name: str, settings: LoopSettings) -> Optimizers:
    """The named one with its stand-ins, each in a process of its own."""
    names = dict.fromkeys((name, *settings.stand_ins))
    return GuardedOptimizers([OptimizerRunner(each, settings=settings.guard) for each in names], settings.guard)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one question."""

    snapshot: Snapshot
    proposed: Proposed
    took_ms: float


class Planning:
    """Holds the processes of the chosen optimizer."""

    def __init__(self, settings: LoopSettings, make: MakeOptimizers, now_ms: Callable[[], float]) -> None:
        self.optimizer = ""
        """The chosen one."""
        self._settings, self._make, self._now_ms = settings, make, now_ms
        self._optimizers: Optimizers | None = None
        self._asking: asyncio.Task[Answer] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def choose(self, name: str) -> bool:
        """Ask this one from now on; whether that is another one than before."""
        if name == self.optimizer:
            return False
        self.drop()
        self._retire()
        self.optimizer = name
        return True

    @property
    def asking(self) -> bool:
        """Whether a question is open."""
        return self._asking is not None

    def ask(self, snapshot: Snapshot) -> None:
        """Begin to plan."""
        self._asking = asyncio.create_task(self._asked(snapshot))

    def answer(self) -> Answer | None:
        """The answer, once, as soon as there is one."""
        if self._asking is None or not self._asking.done():
            return None
        asking, self._asking = self._asking, None
        return asking.result()

    def drop(self) -> None:
        """Nobody wants the answer any more."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def close(self) -> None:
        """End all processes."""
        self.drop()
        self._retire()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _retire(self) -> None:
        if self._optimizers is not None:
            closing = asyncio.create_task(self._optimizers.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._optimizers = None

    async def _asked(self, snapshot: Snapshot) -> Answer:
        begun_ms = self._now_ms()
        if not any(variant.costs for variant in snapshot.variants):
            return Answer(snapshot=snapshot, proposed=_NOTHING_KNOWN, took_ms=0.0)
        if self._optimizers is None:
            self._optimizers = self._make(self.optimizer, self._settings)
        proposed = await self._optimizers.propose(snapshot, seed=snapshot.plan.epoch, now_ms=begun_ms)
        return Answer(snapshot=snapshot, proposed=proposed, took_ms=max(self._now_ms() - begun_ms, 0.0))


_NOTHING_KNOWN = Proposed(
    Proposal(bindings=(), explanation=Explanation(status=FALLBACK, bound_by=("nobody has measured any variant yet: all are tried",))), "", ()
)
"""An optimizer cannot plan with what nobody knows; the control policy has everything tried."""

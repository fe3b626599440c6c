"""Writes the plan's history: each decision becomes a record in {p}.plan-history, without ever holding the control loop up."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from broker.log import Writer
from schemas.errors import LogUnavailable, TooLarge
from schemas.names import Names
from schemas.plan_journal import PlanDecision, encode_decision

logger = structlog.get_logger()
WAITING_MAX = 256
RETRY_S = 1.0


class PlanJournal:
    """Decisions wait in memory, a bounded number of them, for as long as the log does not take them."""

    def __init__(self, writer: Writer, names: Names) -> None:
        self._writer, self._topic = writer, names.plan_history
        self._waiting: deque[PlanDecision] = deque(maxlen=WAITING_MAX)
        self._some = asyncio.Event()

    def add(self, decision: PlanDecision) -> None:
        """Queue one."""
        self._waiting.append(decision)
        self._some.set()

    async def run(self) -> None:
        """Write what waits, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write all that waits now."""
        while self._waiting:
            decision = self._waiting[0]
            try:
                await self._writer.write(self._topic, 0, [(decision.scaler.encode(), encode_decision(decision), [])])
            except TooLarge as error:
                logger.warning("a decision is too large for the plan's history", epoch=decision.epoch, error=str(error))
            except LogUnavailable as error:
                logger.warning("the plan's history waits", error=str(error), waiting=len(self._waiting))
                await asyncio.sleep(RETRY_S)
                continue
            # It may have been pushed out meanwhile: the oldest go first.
            if self._waiting and self._waiting[0] is decision:
                self._waiting.popleft()

"""Writes what variants cost to {p}.catalog, for whoever leads next."""

from __future__ import annotations

import structlog

from broker.log import Writer
from scaler.control_loop_state import ControlState
from scaler.control_loop_term import Term
from scaler.policy.kept_costs import differs, kept
from schemas.errors import LogUnavailable, TooLarge
from schemas.learned_costs import LEARNED_COSTS_KEY, encode_learned_costs
from schemas.names import Names

logger = structlog.get_logger()


class CostKeeping:
    """Looks from time to time, and writes where there is news."""

    def __init__(self, state: ControlState, writer: Writer, names: Names, *, name: str, interval_ms: float) -> None:
        self._state, self._writer, self._names, self._name = state, writer, names, name
        self._interval_ms = interval_ms
        self._due_ms = 0.0

    async def keep(self, term: Term, now_ms: float) -> None:
        """One look, where that is due. Raises nothing: what is not kept now is kept later."""
        if now_ms < self._due_ms:
            return
        self._due_ms = now_ms + self._interval_ms
        record = kept(term.policy.costs.known(), self._state.catalog, at_ms=now_ms, by=self._name)
        if not record.costs or not differs(self._state.costs, record):
            return
        try:
            await self._writer.write(self._names.catalog, 0, [(LEARNED_COSTS_KEY, encode_learned_costs(record), [])])
        except (LogUnavailable, TooLarge) as error:
            logger.warning("what variants cost is not kept", error=str(error), costs=len(record.costs))
            return
        self._state.costs = record

"""Deletes stage topics that no present graph and no running request needs; done by whoever leads."""

from __future__ import annotations

import structlog

from broker.log import Log
from scaler.policy.stage_topics import orphans
from schemas.catalog import Catalog
from schemas.names import Names
from schemas.telemetry import DispatcherReport

logger = structlog.get_logger()
SWEEP_MS = 5_000
FORGET_MS = 60_000


class StageSweeper:
    """Looks every few seconds; a topic goes when it was found needless twice in a row."""

    def __init__(self, log: Log, names: Names, now_ms: float) -> None:
        """`now_ms`: the first look is one interval later, when all dispatchers have been heard of."""
        self._log, self._names = log, names
        self._running: dict[str, tuple[dict[str, int], float]] = {}
        """By dispatcher: requests on graphs, and when it said so."""
        self._swept_ms = now_ms
        self._gone: set[str] = set()

    def observe(self, report: DispatcherReport, now_ms: float) -> None:
        """Know what runs."""
        self._running[report.dispatcher] = (report.running, now_ms)

    def due(self, now_ms: float) -> bool:
        """Whether it is time to look."""
        return now_ms - self._swept_ms >= SWEEP_MS

    async def sweep(self, catalog: Catalog, now_ms: float) -> None:
        """Look once, and delete. Raises LogUnavailable."""
        self._swept_ms = now_ms
        self._running = {name: (running, seen_ms) for name, (running, seen_ms) in self._running.items() if now_ms - seen_ms < FORGET_MS}
        existing = await self._log.topics(self._names.stages)
        gone = orphans(existing, catalog, [running for running, _ in self._running.values()], self._names) if existing else []
        # Twice in a row: an endpoint may be about to be applied, its topics made first.
        doomed = [topic for topic in gone if topic in self._gone]
        self._gone = set(gone)
        if doomed:
            await self._log.delete_topics(doomed)
            logger.info("stage topics deleted", topics=doomed)

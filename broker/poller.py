"""One task that looks for the answers of all who wait, in batches, instead of one loop for each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from broker.response import Response, read_response
from broker.store import Store
from schemas.errors import HeadraceError, StoreUnavailable

_log = structlog.get_logger(__name__)

BATCH_IDS_MAX = 500
INTERVAL_MS_MIN = 1.0
INTERVAL_MS_MAX = 20.0
AWAY_MS = 200.0
"""Between looks while the store does not answer."""
GROWTH = 1.5
"""How fast looking becomes rarer while nothing comes; an answer or a new waiter makes it frequent again."""


class Poller:
    """Futures by request id. Waiters of one id share its future; the task lives only while somebody waits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, asyncio.Future[Response]] = {}
        self._waiters: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._interval_ms = INTERVAL_MS_MIN
        self._arrived = asyncio.Event()
        self.problem: StoreUnavailable | None = None
        """Why the last look told nothing, None where it did."""

    def watch(self, request_id: str) -> asyncio.Future[Response]:
        """Resolves with the response, whatever its outcome. Give it back with `release`; never cancel it (others may wait for the same id)."""
        future = self._waiting.get(request_id)
        if future is None:
            future = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        self._waiters[request_id] = self._waiters.get(request_id, 0) + 1
        self._interval_ms = INTERVAL_MS_MIN
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="headrace-poller")
        return future

    def release(self, request_id: str) -> None:
        """This waiter has what it wanted, or waits no longer."""
        left = self._waiters.get(request_id, 0) - 1
        if left > 0:
            self._waiters[request_id] = left
            return
        self._waiters.pop(request_id, None)
        self._waiting.pop(request_id, None)

    async def close(self) -> None:
        """Whoever still waits gets an error."""
        # First of all: a client of a store may lose a cancellation on its way, and the task ends by itself where nobody waits any more.
        for future in self._waiting.values():
            _fail(future, HeadraceError("the client was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            pending = [request_id for request_id, future in self._waiting.items() if not future.done()]
            if not pending:
                return
            self._arrived.clear()
            started = time.monotonic()
            try:
                pause_ms = await self._round(pending)
            except Exception as error:  # a defect must reach those who wait, not die with this task
                for request_id in pending:
                    if (future := self._waiting.get(request_id)) is not None:
                        _fail(future, error)
                raise
            # At most half of the time goes into looking, however many wait.
            await self._pause(max(pause_ms, (time.monotonic() - started) * 1000))

    async def _round(self, pending: Sequence[str]) -> float:
        found = 0
        try:
            for start in range(0, len(pending), BATCH_IDS_MAX):
                ids = pending[start : start + BATCH_IDS_MAX]
                for request_id, value in zip(ids, await self._store.get(ids), strict=True):
                    if value is not None:
                        self._resolve(request_id, value)
                        found += 1
        except StoreUnavailable as error:
            if self.problem is None:
                _log.warning("poll_store_away", problem=str(error))
            self.problem = error
            return AWAY_MS
        self.problem = None
        self._interval_ms = INTERVAL_MS_MIN if found else min(self._interval_ms * GROWTH, INTERVAL_MS_MAX)
        return self._interval_ms

    async def _pause(self, pause_ms: float) -> None:
        await asyncio.sleep(INTERVAL_MS_MIN / 1000)
        if pause_ms > INTERVAL_MS_MIN:
            # A new waiter ends the pause: its answer may come at once.
            try:
                async with asyncio.timeout((pause_ms - INTERVAL_MS_MIN) / 1000):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _resolve(self, request_id: str, value: bytes) -> None:
        future = self._waiting.get(request_id)
        if future is None or future.done():
            return
        try:
            future.set_result(read_response(value))
        except HeadraceError as error:
            _fail(future, error)


def _fail(future: asyncio.Future[Response], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        # Whoever waited may be gone: that is no "exception never retrieved".
        future.exception()

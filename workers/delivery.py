"""Brings answers to the log, however long it is away: those of one partition together, each until it is acknowledged."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import structlog

from broker.log import Ack, Message, Writer
from schemas.errors import LogUnavailable, TooLarge
from schemas.terminal import COMPLETED, FAILED
from workers.policy.batcher import QueuedOrder
from workers.settings import WorkerSettings

logger = structlog.get_logger()
LATE_MS = 20.0
"""A completed answer must be in the log so soon after its deadline; a later write says expired."""
BACK_OFF_MS = 20.0
BACK_OFF_MS_MAX = 1_000.0


class Answer(msgspec.Struct, eq=False):
    """The record that says what came of an order, as it will stand in the log."""

    queued: QueuedOrder
    topic: str
    outcome: str
    """completed, expired or failed; of the stage where the record is a stage's."""
    message: Message


Place = tuple[str, int]
"""Topic and partition."""
Rewrite = Callable[[Answer, TooLarge | None], Answer]
"""The same order's answer where the log refused this one as too large, or (None) where it could not be written by its deadline."""


class Delivery:
    """Writes answers; `on_delivered` runs for each order that has its answer in the log, `on_lost` where it never gets there."""

    def __init__(
        self,
        writer: Writer,
        settings: WorkerSettings,
        now_ms: Callable[[], float],
        rewrite: Rewrite,
        *,
        on_delivered: Callable[[QueuedOrder, str], None],
        on_lost: Callable[[BaseException], None],
    ) -> None:
        self._writer, self._settings, self._now_ms, self._rewrite = writer, settings, now_ms, rewrite
        self._on_delivered, self._on_lost = on_delivered, on_lost
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._away = False
        """The log has failed to take answers, and has taken none since."""
        self.undelivered = 0
        """Answers that the log has not acknowledged."""

    def send(self, answers: Sequence[Answer]) -> None:
        """Queue answers for the log now, each partition's together; returns at once."""
        by_place: dict[Place, list[Answer]] = defaultdict(list)
        for answer in answers:
            by_place[answer.topic, answer.queued.order.shard].append(answer)
        self.undelivered += len(answers)
        for place, own in by_place.items():
            first = asyncio.ensure_future(self._writer.write(*place, [answer.message for answer in own]))
            first.add_done_callback(partial(self._written, place, own))

    def _written(self, place: Place, answers: list[Answer], write: asyncio.Future[Ack]) -> None:
        error = None if write.cancelled() else write.exception()
        if write.cancelled():
            return
        if error is None:
            self._delivered(answers)
            return
        if self._closed:
            return  # nobody would wait for the retry; the leases of these orders run out, and they are sent elsewhere
        task = asyncio.get_running_loop().create_task(self._retry(place, answers, error))
        self._tasks.add(task)
        task.add_done_callback(self._retried)

    def _delivered(self, answers: Sequence[Answer]) -> None:
        if self._away:
            self._away = False
            logger.info("the log takes answers again", answers=self.undelivered)
        self.undelivered -= len(answers)
        for answer in answers:
            self._on_delivered(answer.queued, answer.outcome)

    def _retried(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_lost(error)

    async def _retry(self, place: Place, answers: list[Answer], error: BaseException) -> None:
        """Write again until the log takes them. A first write that got through unseen does no harm: the first record of an order is its answer."""
        give_up_ms = self._now_ms() + self._settings.delivery_ms_max
        delay_ms = BACK_OFF_MS
        while True:
            if isinstance(error, TooLarge):
                await self._one_by_one(place, answers, error)
                return
            if not isinstance(error, LogUnavailable):
                raise error
            if self._now_ms() > give_up_ms:
                raise LogUnavailable(f"{len(answers)} answers could not be written for {self._settings.delivery_ms_max:.0f} ms: {error}")
            if not self._away:  # once an outage: each of what may be thousands of answers would say it
                self._away = True
                logger.warning("answers wait for the log", answers=self.undelivered, topic=place[0], partition=place[1], error=str(error))
            await asyncio.sleep(delay_ms / 1e3)
            delay_ms = min(2 * delay_ms, BACK_OFF_MS_MAX)
            answers = self._expire(answers)
            try:
                await self._writer.write(*place, [answer.message for answer in answers])
            except (LogUnavailable, TooLarge) as failed:
                error = failed
            else:
                self._delivered(answers)
                return

    async def _one_by_one(self, place: Place, answers: list[Answer], error: TooLarge) -> None:
        """The log refused them as a whole for one that is too large for it."""
        if len(answers) > 1:
            for answer in answers:
                await self._retry(place, [answer], LogUnavailable("written one by one"))
        elif answers[0].outcome == FAILED:
            raise error
        else:
            await self._retry(place, [self._rewrite(answers[0], error)], LogUnavailable("the answer was too large"))

    def _expire(self, answers: list[Answer]) -> list[Answer]:
        latest_ms = self._now_ms() - LATE_MS
        return [
            self._rewrite(answer, None) if answer.outcome == COMPLETED and latest_ms > answer.queued.order.deadline_ms else answer
            for answer in answers
        ]

    async def close(self) -> None:
        """Stop trying."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

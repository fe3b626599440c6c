"""Turns results into terminal records and brings them to {p}.responses, however long the log is away."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import structlog

from broker.log import Ack, Message, Writer
from schemas.errors import LogUnavailable, RequestError, TooLarge
from schemas.names import Names
from schemas.tensors import encode_output
from schemas.terminal import (
    COMPLETED,
    EXPIRED,
    FAILED,
    MSGPACK_TYPE,
    TERMINAL_VERSION,
    ErrorDetail,
    OutputTensor,
    PathStep,
    Terminal,
    encode_terminal,
)
from schemas.work import CONTENT_TYPE_HEADER
from workers.computation import Computed
from workers.policy.batcher import QueuedOrder
from workers.settings import WorkerSettings

logger = structlog.get_logger()
LATE_MS = 20.0
"""A completed answer must be in the log so soon after its deadline; a later write says expired."""
BACK_OFF_MS = 20.0
BACK_OFF_MS_MAX = 1_000.0
ENVELOPE_BYTES = 1_024
"""Kept free below the record limit for key, headers and batch header."""


class Origin(msgspec.Struct, frozen=True):
    """Where a batch was computed, as its answers' path says it."""

    device: str
    accelerator: str
    started_ms: float


class Answer(msgspec.Struct, eq=False):
    """A terminal record on its way."""

    queued: QueuedOrder
    terminal: Terminal

    def message(self) -> Message:
        content_type = self.queued.content_type
        return self.queued.id.encode(), encode_terminal(self.terminal, content_type), ((CONTENT_TYPE_HEADER, content_type.encode()),)


class Answers:
    """Writes answers; `on_delivered` runs for each order that has its answer in the log, `on_lost` where it never gets there."""

    def __init__(
        self,
        writer: Writer,
        names: Names,
        settings: WorkerSettings,
        now_ms: Callable[[], float],
        *,
        on_delivered: Callable[[QueuedOrder, str], None],
        on_lost: Callable[[BaseException], None],
    ) -> None:
        self._writer, self._topic, self._settings, self._now_ms = writer, names.responses, settings, now_ms
        self._on_delivered, self._on_lost = on_delivered, on_lost
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._away = False
        """The log has failed to take answers, and has taken none since."""
        self.undelivered = 0
        """Answers that the log has not acknowledged."""

    def completed(self, result: Computed, origin: Origin) -> Answer:
        """The answer to a result, judged by the clock now: what is finished past its deadline has expired."""
        if result.error is not None:
            return self.failed(result.queued, result.error)
        try:
            answer = self._completed(result, origin)
        except RequestError as error:  # outputs that the request's content type cannot carry
            return self.failed(result.queued, error)
        # Judged by the time that the answer itself states, taken after all else was done.
        if answer.terminal.finished_ms > result.queued.order.deadline_ms:
            return self.expired(result.queued, "the computation ended after the deadline")
        return answer

    def _completed(self, result: Computed, origin: Origin) -> Answer:
        order = result.queued.order
        raw = result.queued.content_type == MSGPACK_TYPE
        outputs = [encode_output(name, values, raw=raw) for name, values in (result.outputs or {}).items()]
        step = PathStep(
            stage=order.stage,
            variant=order.variant,
            accuracy=order.accuracy,
            accelerator=origin.accelerator,
            device=origin.device,
            queued_ms=round(max(origin.started_ms - order.received_ms, 0.0), 3),
            computed_ms=round(result.computed_ms, 3),
            batch_size=result.rows,
        )
        return Answer(result.queued, self._terminal(result.queued, COMPLETED, outputs=outputs, path=[step], accuracy=order.accuracy))

    def failed(self, queued: QueuedOrder, error: RequestError) -> Answer:
        """The request was at fault, or the backend was."""
        return Answer(queued, self._terminal(queued, FAILED, error=ErrorDetail(error.code, str(error), queued.order.stage)))

    def expired(self, queued: QueuedOrder, reason: str) -> Answer:
        """The deadline came, or cannot be met any more."""
        return Answer(queued, self._terminal(queued, EXPIRED, error=ErrorDetail("deadline_exceeded", reason, queued.order.stage)))

    def _terminal(
        self,
        queued: QueuedOrder,
        outcome: str,
        *,
        error: ErrorDetail | None = None,
        outputs: list[OutputTensor] | None = None,
        path: Sequence[PathStep] = (),
        accuracy: float | None = None,
    ) -> Terminal:
        order = queued.order
        return Terminal(
            id=queued.id,
            outcome=outcome,
            endpoint=order.endpoint,
            error=error,
            outputs=outputs,
            path=list(path),
            accuracy=accuracy,
            received_ms=order.received_ms,
            finished_ms=int(self._now_ms()),
            deadline_ms=order.deadline_ms,
            attempts=order.attempt,
            epoch=order.epoch,
            traceparent=order.traceparent,
            version=TERMINAL_VERSION,
        )

    def send(self, answers: Sequence[Answer]) -> None:
        """Queue answers for the log now, each shard's together; returns at once."""
        by_shard: dict[int, list[Answer]] = defaultdict(list)
        for answer in answers:
            by_shard[answer.queued.order.shard].append(answer)
        self.undelivered += len(answers)
        for shard, own in by_shard.items():
            first = asyncio.ensure_future(self._writer.write(self._topic, shard, self._messages(own)))
            first.add_done_callback(partial(self._written, shard, own))

    def _messages(self, answers: Sequence[Answer]) -> list[Message]:
        messages: list[Message] = []
        limit = self._settings.limits.record_bytes_max - ENVELOPE_BYTES
        for answer in answers:
            message = answer.message()
            if len(message[1] or b"") > limit:
                message = self._too_large(answer, limit)
            messages.append(message)
        return messages

    def _too_large(self, answer: Answer, limit: int) -> Message:
        answer.terminal = self.failed(answer.queued, TooLarge(f"the answer's outputs do not fit into a record of {limit} bytes")).terminal
        return answer.message()

    def _written(self, shard: int, answers: list[Answer], write: asyncio.Future[Ack]) -> None:
        error = None if write.cancelled() else write.exception()
        if write.cancelled():
            return
        if error is None:
            self._delivered(answers)
            return
        if self._closed:
            return  # nobody would wait for the retry; the leases of these orders run out, and they are sent elsewhere
        task = asyncio.get_running_loop().create_task(self._retry(shard, answers, error))
        self._tasks.add(task)
        task.add_done_callback(self._retried)

    def _delivered(self, answers: Sequence[Answer]) -> None:
        if self._away:
            self._away = False
            logger.info("the log takes answers again", answers=self.undelivered)
        self.undelivered -= len(answers)
        for answer in answers:
            self._on_delivered(answer.queued, answer.terminal.outcome)

    def _retried(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_lost(error)

    async def _retry(self, shard: int, answers: list[Answer], error: BaseException) -> None:
        """Write again until the log takes them. A first write that got through unseen does no harm: the first record of an id is the answer."""
        give_up_ms = self._now_ms() + self._settings.delivery_ms_max
        delay_ms = BACK_OFF_MS
        while True:
            if isinstance(error, TooLarge):
                await self._one_by_one(shard, answers, error)
                return
            if not isinstance(error, LogUnavailable):
                raise error
            if self._now_ms() > give_up_ms:
                raise LogUnavailable(f"{len(answers)} answers could not be written for {self._settings.delivery_ms_max:.0f} ms: {error}")
            if not self._away:  # once an outage: each of what may be thousands of answers would say it
                self._away = True
                logger.warning("answers wait for the log", answers=self.undelivered, shard=shard, error=str(error))
            await asyncio.sleep(delay_ms / 1e3)
            delay_ms = min(2 * delay_ms, BACK_OFF_MS_MAX)
            self._expire(answers)
            try:
                await self._writer.write(self._topic, shard, self._messages(answers))
            except (LogUnavailable, TooLarge) as failed:
                error = failed
            else:
                self._delivered(answers)
                return

    async def _one_by_one(self, shard: int, answers: list[Answer], error: TooLarge) -> None:
        """The log refused them as a whole for one that is too large for it."""
        if len(answers) > 1:
            for answer in answers:
                await self._retry(shard, [answer], LogUnavailable("written one by one"))
        elif answers[0].terminal.outcome == FAILED:
            raise error
        else:
            answers[0].terminal = self.failed(answers[0].queued, error).terminal
            await self._retry(shard, answers, LogUnavailable("the answer was too large"))

    def _expire(self, answers: Sequence[Answer]) -> None:
        now_ms = self._now_ms()
        for answer in answers:
            if answer.terminal.outcome == COMPLETED and now_ms > answer.queued.order.deadline_ms + LATE_MS:
                answer.terminal = self.expired(answer.queued, "the answer could not be written by the deadline").terminal

    async def close(self) -> None:
        """Stop trying."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

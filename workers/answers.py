"""Turns what came of orders into answers: a stage record where the graph goes on, the terminal record where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.log import Writer
from schemas.errors import RequestError, TooLarge
from schemas.names import Names
from schemas.terminal import COMPLETED, EXPIRED, FAILED
from workers.computation import Computed
from workers.delivery import Answer, Delivery
from workers.policy.batcher import QueuedOrder
from workers.policy.fusion import next_order
from workers.said import Origin, Said, path_step
from workers.settings import WorkerSettings
from workers.stage_records import stage_message, stage_outputs
from workers.terminal_records import terminal_message, terminal_outputs

ENVELOPE_BYTES = 1_024
"""Kept free below the record limit for key, headers and batch header; a stage record's heads are counted."""


class Answers:
    """Makes answers and hands them to the delivery; which kind an order gets, its part says."""

    def __init__(
        self,
        writer: Writer,
        names: Names,
        settings: WorkerSettings,
        now_ms: Callable[[], float],
        accept: Callable[[QueuedOrder], str],
        *,
        on_delivered: Callable[[QueuedOrder, str], None],
        on_lost: Callable[[BaseException], None],
    ) -> None:
        """`accept`: queues the order of a next stage here, or says why not."""
        self._accept = accept
        self._responses, self._worker, self._now_ms = names.responses, settings.name, now_ms
        self._bytes_max = settings.limits.record_bytes_max - ENVELOPE_BYTES
        self._delivery = Delivery(writer, settings, now_ms, self._rewritten, on_delivered=on_delivered, on_lost=on_lost)

    @property
    def undelivered(self) -> int:
        """Answers that the log has not acknowledged."""
        return self._delivery.undelivered

    def completed(self, result: Computed, origin: Origin) -> Answer:
        """The answer to a result, judged by the clock now: what is finished past its deadline has expired."""
        queued = result.queued
        if result.error is not None:
            return self._answer(Said(queued, FAILED, int(self._now_ms()), None, result, origin, result.error.code, str(result.error)))
        part = queued.order.part
        encode = terminal_outputs if part is None or not part.topic else stage_outputs
        try:
            outputs = encode(queued, result.outputs or {})
        except RequestError as error:  # outputs that the answer cannot carry
            return self.failed(queued, error)
        # Judged by the time that the answer itself states, taken after all else was done.
        finished_ms = int(self._now_ms())
        if finished_ms > queued.order.deadline_ms:
            return self.expired(queued, "the computation ended after the deadline")
        said = Said(queued, COMPLETED, finished_ms, outputs, result, origin)
        return self._gone_on(said) or self._answer(said)

    def failed(self, queued: QueuedOrder, error: RequestError) -> Answer:
        """The request was at fault, or the backend was."""
        return self._answer(Said(queued, FAILED, int(self._now_ms()), error_code=error.code, error_message=str(error)))

    def expired(self, queued: QueuedOrder, reason: str) -> Answer:
        """The deadline came, or cannot be met any more."""
        return self._answer(Said(queued, EXPIRED, int(self._now_ms()), error_code="deadline_exceeded", error_message=reason))

    def _gone_on(self, said: Said) -> Answer | None:
        """The answer of a stage whose next one is queued here by now; None where its order ends with it, or this worker does not take that one."""
        queued, outputs = said.queued, said.outputs
        if queued.order.part is None or not queued.order.part.then:
            return None
        following = next_order(queued, outputs.heads, outputs.data, path_step(said), said.finished_ms)
        if following is None:
            return None
        answer = self._answer(said, fused=True)
        return None if answer.outcome != COMPLETED or self._accept(following) else answer

    def _answer(self, said: Said, *, fused: bool = False) -> Answer:
        queued = said.queued
        part = queued.order.part
        if part is None or not part.topic:
            topic, message = self._responses, terminal_message(said)
        else:
            topic, message = part.topic, stage_message(said, self._worker, fused=fused)
        answer = Answer(queued, topic, said.outcome, message)
        _, value, headers = message
        if value and len(value) + len(headers[0][1]) > self._bytes_max and said.error_code != TooLarge.code:
            return self._rewritten(answer, TooLarge(f"the answer's outputs do not fit into a record of {self._bytes_max} bytes"))
        return answer

    def _rewritten(self, answer: Answer, error: TooLarge | None) -> Answer:
        if error is not None:
            return self.failed(answer.queued, error)
        return self.expired(answer.queued, "the answer could not be written by the deadline")

    def send(self, answers: Sequence[Answer]) -> None:
        """Queue answers for the log now; returns at once."""
        self._delivery.send(answers)

    async def close(self) -> None:
        """Stop trying."""
        await self._delivery.close()

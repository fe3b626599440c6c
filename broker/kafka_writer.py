"""Writes to Kafka: one open batch per partition takes records until the wire is free for it; failures end in bounded time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import structlog

from broker.kafka_client import Connection, OpenBatch, Producer, translate
from broker.log import Ack, Message
from schemas.errors import HeadraceError, LogUnavailable, TooLarge
from schemas.names import DEAD_LETTER_BYTES

_log = structlog.get_logger()
RECORD_OVERHEAD_BYTES = 90
"""Most that Kafka adds to a batch of one record: 61 bytes of batch header, and varints."""
REBUILD_DELAY_MAX = 2.0
CLOSE_BROKEN_TIMEOUT = 1.6
"""Longer than closing a producer takes: cancelled in the middle, it would leave its tasks behind."""


class WriterLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one writer."""

    record_bytes_max: int = (2 << 20) + DEAD_LETTER_BYTES
    """A larger record is refused before it is sent; what a topic takes is up to Kafka."""
    batch_bytes_max: int = 256 << 10
    """A single record may be larger."""
    queued_bytes_max: int = 256 << 20
    timeout_ms: int = 5_000
    """A write that Kafka has not acknowledged by then is *unknown*."""


class _Write:
    """One call of `write`: resolved when each of its parts is."""

    __slots__ = ("base_offset", "future", "parts", "written_at")

    def __init__(self, future: asyncio.Future[Ack], written_at: float) -> None:
        self.future = future
        self.written_at = written_at
        self.parts = 0
        self.base_offset: int | None = None

    def acknowledge(self, offset: int, timestamp_ms: int) -> None:
        if self.base_offset is None:
            self.base_offset = offset
        self.parts -= 1
        if not self.parts and not self.future.done():
            self.future.set_result(Ack(self.base_offset, timestamp_ms))

    def fail(self, error: HeadraceError) -> None:
        self.parts -= 1
        if not self.future.done():
            self.future.set_exception(type(error)(str(error)))


class _Batch:
    """Records on their way together; `parts` names the writes and where each begins."""

    __slots__ = ("messages", "parts", "records", "settled", "size_bytes")

    def __init__(self, batch_bytes: int) -> None:
        self.records = OpenBatch(batch_bytes)
        self.messages: list[Message] = []
        self.parts: list[tuple[_Write, int]] = []
        self.size_bytes = 0
        self.settled = False

    def take(self, message: Message, write: _Write) -> bool:
        """False where the batch is full or on its way already."""
        index = len(self.messages)
        if not self.records.take(message):
            return False
        self.messages.append(message)
        if not self.parts or self.parts[-1][0] is not write:
            self.parts.append((write, index))
            write.parts += 1
        return True


class _Outbox:
    """What waits for one partition: at most one batch is with the producer, the rest queue behind it."""

    __slots__ = ("learning", "partition", "queued", "sent", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.sent: _Batch | None = None
        self.queued: deque[_Batch] = deque()
        self.learning: asyncio.Task[None] | None = None

    def newest(self) -> _Batch | None:
        return self.queued[-1] if self.queued else self.sent

    def batches(self) -> list[_Batch]:
        return [*([self.sent] if self.sent is not None else []), *self.queued]


class KafkaWriter:
    """The Writer protocol over an idempotent producer that is rebuilt when it breaks."""

    def __init__(self, connection: Connection, client_id: str, limits: WriterLimits = WriterLimits()) -> None:  # noqa: B008 - frozen
        self._connection = connection
        self._client_id = client_id
        self._limits = limits
        self._producer: Producer | None = None
        self._outboxes: dict[tuple[str, int], _Outbox] = {}
        self._queued_bytes = 0
        self._open = False
        self._rebuilding: asyncio.Task[None] | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Raises LogUnavailable where Kafka does not answer."""
        self._loop = asyncio.get_running_loop()
        producer = Producer(self._connection, self._client_id)
        await producer.start()
        self._producer = producer
        self._open = True

    def write(self, topic: str, partition: int, messages: Sequence[Message]) -> asyncio.Future[Ack]:
        """See Writer. A write with a record that is too large is refused as a whole."""
        if not self._open:
            return self._refused(LogUnavailable("the writer is not open"))
        size_bytes = 0
        limit = self._limits.record_bytes_max - RECORD_OVERHEAD_BYTES
        for key, value, headers in messages:
            size = len(key or b"") + len(value or b"")
            for name, header in headers:
                size += len(name) + len(header)
            if size > limit:
                return self._refused(TooLarge(f"the record has {size} bytes, the limit is {limit}"))
            size_bytes += size
        if self._queued_bytes + size_bytes > self._limits.queued_bytes_max:
            return self._refused(LogUnavailable(f"{self._queued_bytes} bytes wait for Kafka already"))
        future: asyncio.Future[Ack] = self._loop.create_future()
        if not messages:
            future.set_result(Ack(-1, -1))
            return future
        outbox = self._outboxes.get((topic, partition))
        if outbox is None:
            outbox = self._outboxes[topic, partition] = _Outbox(topic, partition)
        try:
            self._append(outbox, messages, _Write(future, self._loop.time()), size_bytes)
        finally:  # a message of a wrong type raises: what was taken before it still has to go
            if outbox.sent is None:
                self._send_next(outbox)
        return future

    async def close(self) -> None:
        """Writes are refused from now on; what is queued has the time-out of a write to get out."""
        self._open = False
        pending = [write.future for outbox in self._outboxes.values() for batch in outbox.batches() for write, _ in batch.parts]
        if pending:
            await asyncio.wait(pending, timeout=self._limits.timeout_ms / 1000)
        if self._rebuilding is not None:
            await asyncio.wait([self._rebuilding], timeout=CLOSE_BROKEN_TIMEOUT)
        tasks = [task for task in (self._rebuilding, *(outbox.learning for outbox in self._outboxes.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for outbox in self._outboxes.values():
            self._fail_all(outbox, LogUnavailable("the writer was closed"))
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()

    def _refused(self, error: HeadraceError) -> asyncio.Future[Ack]:
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return future

    def _append(self, outbox: _Outbox, messages: Sequence[Message], write: _Write, size_bytes: int) -> None:
        batch = outbox.newest()
        for message in messages:
            if batch is None or not batch.take(message, write):
                batch = _Batch(self._limits.batch_bytes_max)
                outbox.queued.append(batch)
                batch.take(message, write)
        if batch is not None:  # the bytes count until the last batch of the write is settled
            batch.size_bytes += size_bytes
        self._queued_bytes += size_bytes
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self._limits.timeout_ms / 8000, self._sweep)

    def _send_next(self, outbox: _Outbox) -> None:
        producer = self._producer
        if producer is None or not outbox.queued or outbox.learning is not None:
            return
        if not producer.knows(outbox.topic, outbox.partition):
            outbox.learning = self._loop.create_task(self._learn(producer, outbox))
            return
        batch = outbox.queued.popleft()
        if not batch.messages:
            return
        outbox.sent = batch
        try:
            submitted = producer.submit(batch.records, outbox.topic, outbox.partition)
        except LogUnavailable as error:
            self._settle(outbox, batch, error)
            self._rebuild(str(error))
        else:
            submitted.add_done_callback(partial(self._answered, producer, outbox, batch))

    async def _learn(self, producer: Producer, outbox: _Outbox) -> None:
        try:
            await producer.learn(outbox.topic, outbox.partition)
        except LogUnavailable as error:
            self._fail_all(outbox, error)
        finally:
            outbox.learning = None
        self._send_next(outbox)

    def _answered(self, producer: Producer, outbox: _Outbox, batch: _Batch, answer: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        if batch.settled:  # given up meanwhile
            return
        if error is None:
            self._settle(outbox, batch, answer.result())
        else:
            failure = translate(error)
            if isinstance(failure, TooLarge):
                producer.withdraw(outbox.topic, outbox.partition, len(batch.messages))
                self._split(outbox, batch, failure)
            else:
                self._settle(outbox, batch, failure)
                self._rebuild(str(failure))
        self._send_next(outbox)

    def _settle(self, outbox: _Outbox, batch: _Batch, outcome: Any) -> None:
        """`outcome` is an error of ours, or what has the batch's `offset` and `timestamp`."""
        batch.settled = True
        if outbox.sent is batch:
            outbox.sent = None
        self._queued_bytes -= batch.size_bytes
        if isinstance(outcome, HeadraceError):
            for write, _ in batch.parts:
                write.fail(outcome)
        else:
            base = outcome.offset  # -1 where Kafka knows the batch only as a repetition
            for write, index in batch.parts:
                write.acknowledge(base + index if base >= 0 else -1, outcome.timestamp)

    def _split(self, outbox: _Outbox, batch: _Batch, failure: TooLarge) -> None:
        """Kafka refused the whole batch for one record: each goes by itself, before what queued up behind them."""
        if len(batch.messages) == 1:
            self._settle(outbox, batch, failure)
            return
        batch.settled = True
        outbox.sent = None
        self._queued_bytes -= batch.size_bytes
        ends = [index for _, index in batch.parts[1:]] + [len(batch.messages)]
        singles: list[_Batch] = []
        for (write, begin), end in zip(batch.parts, ends, strict=True):
            write.parts -= 1
            for message in batch.messages[begin:end]:
                single = _Batch(1)
                single.take(message, write)
                single.records.close()
                singles.append(single)
        outbox.queued.extendleft(reversed(singles))

    def _sweep(self) -> None:
        """Fail what has waited too long; drop what was never sent and nobody waits for any more."""
        self._sweeping = None
        too_old = self._loop.time() - self._limits.timeout_ms / 1000
        overdue = LogUnavailable(f"not acknowledged within {self._limits.timeout_ms} ms")
        pending = False
        for outbox in self._outboxes.values():
            for batch in outbox.batches():
                for write, _ in batch.parts:
                    if write.written_at > too_old:
                        break
                    if not write.future.done():
                        write.future.set_exception(LogUnavailable(str(overdue)))
            while outbox.queued and all(write.future.done() for write, _ in outbox.queued[0].parts):
                self._settle(outbox, outbox.queued.popleft(), overdue)
            pending = pending or outbox.sent is not None or bool(outbox.queued)
        if pending:
            self._sweeping = self._loop.call_later(self._limits.timeout_ms / 8000, self._sweep)

    def _fail_all(self, outbox: _Outbox, error: HeadraceError) -> None:
        for batch in outbox.batches():
            self._settle(outbox, batch, error)
        outbox.queued.clear()

    def _rebuild(self, reason: str) -> None:
        if self._rebuilding is None and self._producer is not None:
            _log.warning("the producer is rebuilt", client=self._client_id, reason=reason)
            producer, self._producer = self._producer, None
            for outbox in self._outboxes.values():
                if outbox.sent is not None:
                    self._settle(outbox, outbox.sent, LogUnavailable(f"in flight when the producer broke: {reason}"))
            self._rebuilding = self._loop.create_task(self._replace(producer))

    async def _replace(self, broken: Producer) -> None:
        delay = 0.05
        await broken.close()
        while self._open:
            producer = Producer(self._connection, self._client_id)
            try:
                await producer.start()
            except LogUnavailable as error:
                _log.warning("the producer cannot be rebuilt yet", client=self._client_id, reason=str(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, REBUILD_DELAY_MAX)
                continue
            self._producer = producer
            break
        self._rebuilding = None
        for outbox in self._outboxes.values():
            if outbox.sent is None:
                self._send_next(outbox)

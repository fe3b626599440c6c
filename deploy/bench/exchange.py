"""Publishes records at their times and notes when the first answer to each got into the log: the load generator of every row that has one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec

from broker.log import Ack, Log, Message, Reader, Record, Writer
from deploy.bench.prefilled import shards_of
from schemas.names import SHARDS, Names

READ_MS = 100
RECORDS_MAX = 2_000


class Timed(msgspec.Struct, frozen=True):
    """A request record and when it is due, in seconds from the start."""

    at_s: float
    message: Message


class Answered(msgspec.Struct, gc=False):
    """The first answer to a key."""

    seen_s: float
    """When it was read here (Unix time)."""
    written_ms: int
    """The log's time."""
    value: bytes


class Exchange:
    """Inside `opened`: `play` publishes, and every answer since the opening is in `answers`, by key."""

    def __init__(self, names: Names, writer: Writer, reader: Reader) -> None:
        self._names, self._writer, self._reader = names, writer, reader
        self.answers: dict[bytes, Answered] = {}
        self.sent_s: dict[bytes, float] = {}
        self._came = asyncio.Event()

    async def play(self, requests: Sequence[Timed], check: Callable[[], None], *, grace_s: float = 2.0, linger_s: float = 0.0) -> float:
        """Publish each request at its time, then wait until all are answered, at most `grace_s`. Returns when the playing began (Unix time).

        With `linger_s` requests of so long a time go together, as clients that linger send them (librdkafka: 5 ms unless told otherwise).
        """
        began_s = time.time() + 0.02
        pending: set[asyncio.Future[Ack]] = set()
        at = batches = 0
        while at < len(requests):
            due_s = time.time() - began_s
            if requests[at].at_s > due_s:
                await asyncio.sleep(requests[at].at_s - due_s + linger_s)
                continue
            end = at + 1
            while end < len(requests) and requests[end].at_s <= due_s:
                end += 1
            written = self._publish([request.message for request in requests[at:end]], batches % SHARDS)
            pending.add(written)
            written.add_done_callback(pending.discard)
            at, batches = end, batches + 1
        check()
        await self.until_answered(len(requests), grace_s)
        await asyncio.gather(*pending)
        check()
        return began_s

    async def until_answered(self, count: int, grace_s: float) -> None:
        """Wait for so many answers in all, at most so long."""
        end_s = time.monotonic() + grace_s
        while len(self.answers) < count and time.monotonic() < end_s:
            self._came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(end_s - time.monotonic(), 0.001)):
                    await self._came.wait()

    def _publish(self, messages: Sequence[Message], shard: int) -> asyncio.Future[Ack]:
        now_s = time.time()
        for key, _, _ in messages:
            self.sent_s[key or b""] = now_s
        return asyncio.ensure_future(self._writer.write(self._names.requests, shard, messages))

    async def collect(self) -> None:
        """For ever: the first answer of each key counts."""
        while True:
            for records in (await self._reader.read(timeout_ms=READ_MS, records_max=RECORDS_MAX)).values():
                now_s = time.time()
                for record in records:
                    self._note(record, now_s)
            self._came.set()

    def _note(self, record: Record, now_s: float) -> None:
        if record.key is not None and record.key not in self.answers:
            self.answers[record.key] = Answered(now_s, record.timestamp, record.value or b"")


@asynccontextmanager
async def exchange(log: Log, names: Names) -> AsyncGenerator[Exchange]:
    """An exchange that collects what is answered from now on."""
    writer, reader = log.writer("bench-load"), log.reader("bench-answers")
    await writer.start()
    await reader.start()
    await reader.assign(await reader.end_offsets(shards_of(names.responses)))
    opened = Exchange(names, writer, reader)
    collecting = asyncio.create_task(opened.collect())
    try:
        yield opened
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        await reader.close()
        await writer.close()

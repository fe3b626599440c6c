"""What the tests of the sink stand on: topics, a writer, sinks that run as tasks, and logs that misbehave in one way each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from broker.log import Committed, Log, Reader, Record, TopicPartition, Writer
from broker.memory import MemoryLog
from broker.redis_store import RedisStore
from broker.sink import Sink, SinkSettings
from broker.store import Store
from schemas.errors import LogUnavailable, StoreUnavailable
from schemas.names import Names
from schemas.terminal import JSON_TYPE, TERMINAL_VERSION, Terminal, encode_terminal

SHARDS = 2
SETTINGS = SinkSettings(check_interval_ms=50, retry_ms_max=100, read_wait_ms=20, commit_interval_ms=20)


def terminal(request_id: str, outcome: str = "completed") -> bytes:
    return encode_terminal(
        Terminal(id=request_id, outcome=outcome, path=[], received_ms=1, finished_ms=2, attempts=1, epoch=1, version=TERMINAL_VERSION), JSON_TYPE
    )


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


class Rig:
    """Topics, a writer, and sinks that run as tasks."""

    def __init__(self, log: Log, store: Store, names: Names) -> None:
        self.log, self.store, self.names = log, store, names
        self.writer: Writer = log.writer("test")
        self.running: list[tuple[Sink, asyncio.Task[None]]] = []

    async def start(self) -> None:
        await self.log.create_topics(
            [topic for topic in self.names.topics(shards=SHARDS) if topic.name in (self.names.requests, self.names.responses)]
        )
        await self.writer.start()

    def sink(self, settings: SinkSettings = SETTINGS) -> tuple[Sink, CollectorRegistry]:
        registry = CollectorRegistry()
        sink = Sink(self.log, self.store, self.names, settings=settings, registry=registry)
        self.running.append((sink, asyncio.create_task(sink.run())))
        return sink, registry

    async def stop(self) -> None:
        for sink, _ in self.running:
            sink.stop()
        running, self.running = self.running, []
        await asyncio.wait_for(asyncio.gather(*(task for _, task in running)), 20)

    async def publish(self, values: Sequence[tuple[str | None, bytes | None]], *, topic: str | None = None, shard: int = 0) -> None:
        await self.writer.write(
            topic or self.names.responses, shard, [(key.encode() if key is not None else None, value, []) for key, value in values]
        )

    async def shows(self, request_id: str, state: str, *, seconds: float = 15.0) -> None:
        async def condition() -> bool:
            try:
                status = await self.store.status(request_id)
            except StoreUnavailable:
                return False
            return (status.outcome if isinstance(status, Terminal) else status) == state

        await until(condition, f"{request_id} is {state}", seconds=seconds)

    async def committed(self, offset: int, *, shard: int = 0) -> None:
        reader = self.log.reader("look", group=self.names.sink_group)
        await reader.start()

        async def condition() -> bool:
            try:
                found: Committed | None = await reader.committed(TopicPartition(self.names.responses, shard))
            except LogUnavailable:
                return False
            return found is not None and found.offset == offset

        await until(condition, f"offset {offset} is committed")
        await reader.close()


def value_of(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def set_up(log: Log, redis_url: str, prefix: str) -> AsyncIterator[Rig]:
    names = Names(prefix)
    rig = Rig(log, RedisStore(redis_url, names, options={"socket_timeout": 0.5}), names)
    await rig.start()
    try:
        yield rig
        await rig.stop()
        await log.delete_topics([names.requests, names.responses])
    finally:
        await log.close()
        await rig.store.close()


class WatchedReader:
    """Notes what is committed."""

    def __init__(self, reader: Reader, commits: list[int]) -> None:
        self._reader, self._commits = reader, commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        self._commits += [at.offset for partition, at in offsets.items() if partition.topic.endswith("responses") and partition.partition == 0]
        await self._reader.commit(offsets)


class WatchedLog(MemoryLog):
    """A log whose readers note what they commit."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[int] = []

    def reader(self, *arguments: Any, **options: Any) -> Any:
        return WatchedReader(super().reader(*arguments, **options), self.commits)


class FailingReader:
    """A reader of a log that is away while its switch says so."""

    def __init__(self, reader: Reader, log: FailingLog) -> None:
        self._reader, self._log = reader, log

    def __getattr__(self, name: str) -> Any:
        if self._log.away and name != "close":
            raise LogUnavailable("switched off")
        return getattr(self._reader, name)


class FailingLog:
    """A log with a switch for its readers; writers go on, as producers of another broker would."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.away = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reader(self, *arguments: Any, **options: Any) -> Any:
        return FailingReader(self._log.reader(*arguments, **options), self)


class DeafReader:
    """A reader that was cut off from new records without noticing, as Kafka clients have been."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self, *, timeout_ms: int, records_max: int) -> Mapping[TopicPartition, Sequence[Record]]:
        await self._reader.read(timeout_ms=timeout_ms, records_max=records_max)
        return {}


class DeafLog:
    """A log whose readers are deaf."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reader(self, *arguments: Any, **options: Any) -> Any:
        return DeafReader(self._log.reader(*arguments, **options))

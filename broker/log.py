"""The log as the data plane sees it: the seam behind which Kafka and the in-process log are the same thing.

Records are handed out as their implementation made them (no copy per record): anything with the attributes of `Record`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from schemas.names import TopicSpec

Headers = Sequence[tuple[str, bytes]]
Message = tuple[bytes | None, bytes | None, Headers]
"""(key, value, headers) of a record to write."""


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


class Committed(NamedTuple):
    """A group's committed offset (the next one to read) with its metadata."""

    offset: int
    metadata: str


class Ack(NamedTuple):
    """What the log says of an accepted batch."""

    base_offset: int
    timestamp_ms: int
    """The log's time where the topic uses LogAppendTime, else -1."""


class Record(Protocol):
    """One record that was read; `timestamp` in Unix milliseconds."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


Start = int | Literal["earliest", "latest"]
Assigned = Callable[[Sequence[TopicPartition]], Awaitable[None]]


class Writer(Protocol):
    """Appends with acks=all and idempotence; writes to one partition keep their order."""

    async def start(self) -> None: ...

    def write(self, topic: str, partition: int, messages: Sequence[Message]) -> Awaitable[Ack]:
        """Queue the messages now (in call order) and return what resolves when Kafka has them all.

        Raises (from the awaitable) LogUnavailable: whether they were written is unknown; TooLarge where one message cannot be written at all.
        """
        ...

    async def close(self) -> None:
        """Flush what is queued, for a bounded time."""
        ...


class Reader(Protocol):
    """Reads partitions, assigned by hand or by a group; commits for a group by hand only."""

    async def start(self) -> None: ...

    async def assign(self, positions: Mapping[TopicPartition, Start]) -> None:
        """Read exactly these partitions from now on, from these positions; replaces any earlier assignment."""
        ...

    async def subscribe(self, topics: Sequence[str], *, assigned: Assigned, revoked: Assigned) -> None:
        """Join the group. `revoked` runs before partitions are given up, `assigned` before the first record of new ones is read.

        Positions start at the group's committed offset, else at the earliest record.
        """
        ...

    async def seek(self, partition: TopicPartition, start: Start) -> None: ...

    async def read(self, *, timeout_ms: int, records_max: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """What is there, waiting at most `timeout_ms` for the first record. Raises LogUnavailable."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Commit for the reader's group; partitions not (or no longer) assigned are left out without complaint. Raises LogUnavailable.

        A member of a group may commit partitions of topics that it has not subscribed to, too: for lag tools.
        """
        ...

    async def committed(self, partition: TopicPartition) -> Committed | None: ...

    async def committed_all(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        """What the group has committed of these, asked at once; partitions of which nothing was committed are left out. Raises LogUnavailable."""
        ...

    async def position(self, partition: TopicPartition) -> int: ...

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]: ...

    async def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """The first offset whose timestamp is at or after this; the end where there is none."""
        ...

    async def close(self) -> None: ...


class Log(Protocol):
    """A log: topics, writers and readers."""

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing and wait until it can be used; what exists stays as it is. Raises LogUnavailable."""
        ...

    async def delete_topics(self, topics: Sequence[str]) -> None: ...

    async def configure_topics(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        """Change these settings of topics that exist, by name, and no others. Raises LogUnavailable."""
        ...

    async def topics(self, beginning: str) -> list[str]:
        """Names of the topics that there are with this beginning. Raises LogUnavailable."""
        ...

    async def groups(self, beginning: str) -> list[str]:
        """Names of the consumer groups that there are with this beginning. Raises LogUnavailable."""
        ...

    async def partitions(self, topic: str) -> int:
        """The number of partitions; 0 where the topic does not exist."""
        ...

    def writer(self, client_id: str) -> Writer: ...

    def reader(self, client_id: str, *, group: str | None = None, instance_id: str | None = None, fetch_wait_ms: int = 100) -> Reader:
        """`instance_id` makes the membership static: a restart within the session time-out keeps its partitions."""
        ...

    async def close(self) -> None: ...

"""One partition of the in-process log: appends, reads by offset, retention and compaction as Kafka's topic configuration asks for them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Protocol

import msgspec

from broker.log import Ack, Headers, Message
from schemas.errors import LogUnavailable, TooLarge

RECORD_OVERHEAD_BYTES = 90
MESSAGE_BYTES_MAX = 1_048_588
RETENTION_MS = 7 * 24 * 3600 * 1000
RETENTION_BYTES = 64 << 20
"""Of one partition, where its topic does not say: Kafka would keep everything, a process cannot."""
DELETE_RETENTION_MS = 24 * 3600 * 1000
_offset_of = attrgetter("offset")


class MemoryRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as it stands in the log; handed to every reader as it is."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Wakeable(Protocol):
    """Whoever waits for records."""

    def wake(self) -> None: ...


def message_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """About what the record costs in Kafka."""
    size = RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
    for name, header in headers:
        size += len(name) + len(header)
    return size


class MemoryPartition:
    """Records in order of their offsets; compaction leaves gaps, retention moves the start."""

    def __init__(self, topic: str, number: int, config: Mapping[str, str], now_ms: Callable[[], float]) -> None:
        self._topic = topic
        self._number = number
        self._now_ms = now_ms
        self._append_time = config.get("message.timestamp.type") == "LogAppendTime"
        self._message_bytes_max = int(config.get("max.message.bytes", MESSAGE_BYTES_MAX))
        policies = config.get("cleanup.policy", "delete").split(",")
        self._compacts = "compact" in policies
        self._deletes = "delete" in policies
        self._retention_bytes = int(config.get("retention.bytes", -1))
        if self._retention_bytes < 0:
            self._retention_bytes = RETENTION_BYTES
        retention_ms = int(config.get("retention.ms", RETENTION_MS))
        self._retention_ms = retention_ms if retention_ms >= 0 else float("inf")
        self._delete_retention_ms = int(config.get("delete.retention.ms", DELETE_RETENTION_MS))
        self._records: list[MemoryRecord] = []
        self._bytes = 0
        self._next_aging_ms = 0.0
        self._last_offsets: dict[bytes, int] = {}
        self._superseded = 0
        self.start = 0
        self.end = 0
        self.readers: set[Wakeable] = set()

    def append(self, messages: Sequence[Message]) -> Ack:
        """All or nothing. Raises TooLarge, and LogUnavailable for a record without a key where the topic is compacted."""
        added_bytes = 0
        for key, value, headers in messages:
            size = message_bytes(key, value, headers)
            if size > self._message_bytes_max:
                raise TooLarge(f"the record has {size} bytes, the topic takes {self._message_bytes_max}")
            if key is None and self._compacts:
                raise LogUnavailable("a compacted topic takes no record without a key")
            added_bytes += size
        now_ms = self._now_ms()
        timestamp = int(now_ms)
        topic, number, base = self._topic, self._number, self.end
        self._records += [
            MemoryRecord(topic, number, offset, timestamp, key, value, tuple(headers)) for offset, (key, value, headers) in enumerate(messages, base)
        ]
        self.end += len(messages)
        self._bytes += added_bytes
        if self._compacts:
            self._compact(base, now_ms)
        if self._deletes and (self._bytes > self._retention_bytes or now_ms >= self._next_aging_ms):
            self._delete(now_ms)
        for reader in self.readers:
            reader.wake()
        return Ack(base, timestamp if self._append_time else -1)

    def read(self, offset: int, records_max: int) -> list[MemoryRecord]:
        """Records at or after the offset."""
        index = self._index(offset)
        return self._records[index : index + records_max]

    def offset_at(self, timestamp_ms: int) -> int:
        """The first offset whose timestamp is at or after this; the end where there is none."""
        return next((record.offset for record in self._records if record.timestamp >= timestamp_ms), self.end)

    def _index(self, offset: int) -> int:
        records = self._records
        if not records:
            return 0
        first = records[0].offset
        if records[-1].offset - first == len(records) - 1:  # no gaps
            return max(offset - first, 0)
        return bisect_left(records, offset, key=_offset_of)

    def _delete(self, now_ms: float) -> None:
        """Drop the oldest eighth more than retention asks for: moving the list has to be rare. The newest record always stays."""
        self._next_aging_ms = now_ms + min(self._retention_ms / 8, 60_000)
        oldest_ms = now_ms - self._retention_ms
        goal_bytes = self._retention_bytes - self._retention_bytes // 8 if self._bytes > self._retention_bytes else self._bytes
        count = 0
        for record in self._records[:-1]:
            if self._bytes <= goal_bytes and record.timestamp >= oldest_ms:
                break
            self._bytes -= message_bytes(record.key, record.value, record.headers)
            count += 1
        if count:
            del self._records[:count]
            self.start = self._records[0].offset

    def _compact(self, base: int, now_ms: float) -> None:
        """Keep the last record of each key; tombstones go after `delete.retention.ms`."""
        last = self._last_offsets
        for record in self._records[self._index(base) :]:
            key = record.key or b""
            if key in last:
                self._superseded += 1
            last[key] = record.offset
        if self._superseded <= 64 + len(last):
            return
        forgotten_ms = now_ms - self._delete_retention_ms
        self._records = [
            r
            for r in self._records
            if last[r.key or b""] == r.offset and (r.value is not None or r.timestamp > forgotten_ms or r.offset == self.end - 1)
        ]
        self._last_offsets = {record.key or b"": record.offset for record in self._records}
        self._bytes = sum(message_bytes(record.key, record.value, record.headers) for record in self._records)
        self._superseded = 0

"""CloudEvents in {p}.tap.requests and {p}.tap.responses, in one transaction with the offsets that they come from: each event is there once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from broker.log import Committed, Message, TopicPartition
from broker.policy.tap_events import EventSource, events_of
from broker.policy.tap_join import TapPosition
from broker.tap_metrics import TapMetrics
from broker.tap_positions import offsets_of
from broker.tap_sinks.tap_sink import TapBatch
from schemas.cloud_event import BYTES_TYPE, CloudEvent, kafka_binary, kafka_structured
from schemas.errors import LogUnavailable, TooLarge
from schemas.names import Names

_log = structlog.get_logger(__name__)
RECORD_ROOM_BYTES = 16 << 10
"""For the attributes, beside the data of an event."""

DATA_BYTES_LEAST = 1 << 10


class Transactions(Protocol):
    """What the sink needs of broker/kafka_transaction.py."""

    async def start(self) -> None: ...
    async def commit(self, messages: Mapping[TopicPartition, Sequence[Message]], group: str, offsets: Mapping[TopicPartition, Committed]) -> None: ...
    async def close(self) -> None: ...


class KafkaTapSink:
    """The TapSink protocol. Readers of the topics read committed records only (`isolation.level=read_committed`)."""

    def __init__(
        self,
        transactions: Callable[[str], Transactions],
        names: Names,
        source: EventSource,
        metrics: TapMetrics,
        *,
        group: str,
        structured: bool = False,
        record_bytes_max: int = 2 << 20,
    ) -> None:
        """`transactions` makes those of a transactional id; `group` is the consumer group whose offsets they commit."""
        self._group = group
        self._make = transactions
        self._names = names
        self._source = source
        self._metrics = metrics
        self._encode = kafka_structured if structured else kafka_binary
        self._data_bytes_max = (record_bytes_max - RECORD_ROOM_BYTES) * (3 if structured else 4) // 4
        self._open: dict[int, Transactions] = {}
        self._problem = ""

    async def start(self) -> None:
        """Nothing: each shard has its own connection."""

    async def open(self, shard: int) -> TapPosition | None:
        await self.release([shard])
        transactions = self._make(f"{self._group}-{shard}")
        await transactions.start()
        self._open[shard] = transactions
        return None

    async def write(self, batches: Mapping[int, TapBatch]) -> set[int]:
        doubtful = await asyncio.gather(*(self._commit(shard, batch) for shard, batch in batches.items()))
        self._problem = next((problem for problem in doubtful if problem), "")
        return {shard for shard, problem in zip(batches, doubtful, strict=True) if problem}

    async def _commit(self, shard: int, batch: TapBatch) -> str:
        """Why it is unknown whether the batch was stored; empty where it was."""
        transactions = self._open.get(shard)
        if transactions is None:
            return "the shard is not open"
        requests: list[Message] = []
        responses: list[Message] = []
        for exchange in batch.exchanges:
            request, answers = events_of(exchange, self._source)
            requests.append(self._message(request))
            responses.extend([self._message(answer) for answer in answers])
        written = {TopicPartition(self._names.tap_requests, shard): requests, TopicPartition(self._names.tap_responses, shard): responses}
        offsets = offsets_of(shard, batch.position, self._names.responses)
        try:
            await transactions.commit(written, self._group, offsets)
        except TooLarge as error:
            # Topics made by hand may take less: what is cut further is taken, what is tried again and again holds all others up.
            self._data_bytes_max = max(self._data_bytes_max // 2, DATA_BYTES_LEAST)
            _log.warning("tap_events_are_cut", shard=shard, reason=str(error), bytes_max=self._data_bytes_max)
            return str(error)
        except LogUnavailable as error:
            _log.warning("tap_transaction_failed", shard=shard, reason=str(error))
            return str(error)
        self._metrics.stored("request", len(requests))
        self._metrics.stored("response", len(responses))
        return ""

    def _message(self, event: CloudEvent) -> Message:
        if event.data is not None and len(event.data) > self._data_bytes_max:
            event.attributes["truncated"] = len(event.data)
            event.data, event.content_type = event.data[: self._data_bytes_max], BYTES_TYPE
        if "truncated" in event.attributes:
            self._metrics.truncated.inc()
        return self._encode(event)

    async def settle(self) -> Mapping[int, TapPosition]:
        return {}

    async def release(self, shards: Sequence[int]) -> None:
        gone = [self._open.pop(shard) for shard in shards if shard in self._open]
        await asyncio.gather(*(transactions.close() for transactions in gone))

    async def close(self) -> None:
        await self.release(list(self._open))

    def buffered_bytes(self) -> int:
        """What is taken is stored, or in doubt."""
        return 0

    def unready(self) -> str:
        return self._problem

"""Looks through topics record by record, from a moment on to their present ends, without keeping what does not match."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from broker.log import Log, Reader, Record, Start, TopicPartition
from schemas.errors import LogUnavailable

CLIENT_ID = "headrace-scan"
QUIET_S_MAX = 15.0
READ_RECORDS_MAX = 5_000


async def partitions_of(log: Log, topics: Sequence[str]) -> list[TopicPartition]:
    """Of the topics that there are."""
    return [TopicPartition(topic, number) for topic in topics for number in range(await log.partitions(topic))]


async def scan(log: Log, partitions: Sequence[TopicPartition], since_ms: int, until_ms: int | None = None) -> AsyncGenerator[Record]:
    """Records with a timestamp from `since_ms` on (to before `until_ms`), each partition in order. Raises LogUnavailable after 15 s of nothing."""
    if not partitions:
        return
    reader = log.reader(CLIENT_ID)
    await reader.start()
    try:
        # All that is asked goes over one connection, and with many graphs there are hundreds of partitions, most of them empty.
        ends = {partition: end for partition, end in (await reader.end_offsets(partitions)).items() if end > 0}
        starts = await _offsets_at(reader, list(ends), since_ms)
        ends = {partition: end for partition, end in ends.items() if starts[partition] < end}
        if until_ms is not None:
            until = await _offsets_at(reader, list(ends), until_ms)
            ends = {partition: min(end, until[partition]) for partition, end in ends.items()}
        waiting = {partition for partition, end in ends.items() if starts[partition] < end}
        positions: Mapping[TopicPartition, Start] = {partition: starts[partition] for partition in waiting}
        await reader.assign(positions)
        heard_s = asyncio.get_running_loop().time()
        while waiting:
            for partition, records in (await reader.read(timeout_ms=200, records_max=READ_RECORDS_MAX)).items():
                heard_s = asyncio.get_running_loop().time()
                for record in records:
                    if record.offset < ends[partition]:
                        yield record
            waiting = {partition for partition in waiting if await reader.position(partition) < ends[partition]}
            if asyncio.get_running_loop().time() - heard_s > QUIET_S_MAX:
                raise LogUnavailable(f"the end of {next(iter(waiting)).topic} was not reached: is Kafka busy or partly down?")
    finally:
        await reader.close()


async def _offsets_at(reader: Reader, partitions: Sequence[TopicPartition], at_ms: int) -> dict[TopicPartition, int]:
    return dict(zip(partitions, await asyncio.gather(*(reader.offset_at(partition, at_ms) for partition in partitions)), strict=True))

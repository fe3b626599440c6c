"""Looks through topics record by record, from a moment on to their present ends, without keeping what does not match."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from broker.log import Log, Record, Start, TopicPartition
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
        await reader.assign(dict.fromkeys(partitions, "earliest"))
        starts = {partition: await reader.offset_at(partition, since_ms) for partition in partitions}
        ends = await reader.end_offsets(partitions)
        if until_ms is not None:
            ends = {partition: min(end, await reader.offset_at(partition, until_ms)) for partition, end in ends.items()}
        waiting = {partition for partition in partitions if starts[partition] < ends[partition]}
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

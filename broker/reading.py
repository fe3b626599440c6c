"""What every role does with its readers and writers, whichever log they are of."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from broker.log import Reader, TopicPartition, Writer


@asynccontextmanager
async def opened(writer: Writer, *readers: Reader) -> AsyncGenerator[None]:
    """Started in this order, and closed again, the writer last: what was said stands until nothing more is read."""
    async with AsyncExitStack() as stack:
        await writer.start()
        stack.push_async_callback(writer.close)
        for reader in readers:
            await reader.start()
            stack.push_async_callback(reader.close)
        yield


async def is_behind(reader: Reader, ends: Mapping[TopicPartition, int]) -> bool:
    """Whether something before these offsets is still to be read. Raises LogUnavailable."""
    return any([await reader.position(partition) < end for partition, end in ends.items()])

"""Opens the log that a Connection names, and closes it again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from broker.kafka import KafkaLog
from broker.log import Log
from deploy.configuration import Connection


@asynccontextmanager
async def open_log(connection: Connection) -> AsyncGenerator[Log]:
    """The Kafka log. Raises ConfigurationError where no address is known, LogUnavailable where nobody answers."""
    log = KafkaLog(connection.need_kafka(), connection.kafka_options, replication=connection.replication)
    try:
        yield log
    finally:
        await log.close()


@asynccontextmanager
async def open_ready_log(connection: Connection) -> AsyncGenerator[Log]:
    """The same, with every topic there."""
    async with open_log(connection) as log:
        await create_topics(log, connection)
        yield log


async def create_topics(log: Log, connection: Connection) -> None:
    """Make sure that every topic exists; those that do stay as they are. Raises LogUnavailable."""
    await log.create_topics(connection.names.topics(replication=connection.replication))

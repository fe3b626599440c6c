"""Opens the servers that a Connection names, and closes them again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from broker.kafka import KafkaLog
from broker.log import Log
from broker.redis_store import RedisStore
from broker.store import Store
from deploy.configuration import Connection


@asynccontextmanager
async def open_log(connection: Connection) -> AsyncGenerator[Log]:
    """The Kafka log. Raises ConfigurationError where no address is known, LogUnavailable where nobody answers."""
    log = KafkaLog(connection.need_kafka(), connection.kafka_options, replication=connection.replication)
    try:
        yield log
    finally:
        await log.close()


async def create_topics(log: Log, connection: Connection) -> None:
    """Make sure that every topic exists; those that do stay as they are. Raises LogUnavailable."""
    await log.create_topics(connection.names.topics(replication=connection.replication))


@asynccontextmanager
async def open_store(connection: Connection) -> AsyncGenerator[Store]:
    """The Redis store. Raises ConfigurationError where no address is known."""
    store = RedisStore(connection.need_redis(), connection.names, options=connection.redis_options)
    try:
        yield store
    finally:
        await store.close()

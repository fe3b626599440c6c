"""Opens the response store that a Connection names, and closes it again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from broker.redis_store import RedisStore
from broker.store import Store
from deploy.configuration import Connection


@asynccontextmanager
async def open_store(connection: Connection) -> AsyncGenerator[Store]:
    """The Redis store. Raises ConfigurationError where no address is known."""
    store = RedisStore(connection.need_redis(), connection.names, options=connection.redis_options)
    try:
        yield store
    finally:
        await store.close()

"""Builds a sink from settings, and closes what it opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from broker.role import Role
from broker.sink import Sink, SinkSettings
from deploy.configuration import Connection
from deploy.connections import open_ready_log
from deploy.run_role import OpenRole
from deploy.stores import open_store


def sink_role(connection: Connection, name: str) -> OpenRole:
    """Opens a sink."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        async with open_store(connection) as store, open_ready_log(connection) as log:
            settings = SinkSettings(response_ttl_ms=connection.limits.response_ttl_ms, limits=connection.limits)
            yield Sink(log, store, connection.names, instance_id=name, settings=settings, registry=registry)

    return opened

"""Builds a dispatcher from settings, and closes what it opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from broker.dispatcher import Dispatcher
from broker.policy.settings import DispatcherSettings
from broker.recording import Recording
from broker.role import Role
from deploy.configuration import Connection
from deploy.connections import open_ready_log
from deploy.run_role import OpenRole


def dispatcher_role(connection: Connection, name: str, record: Path | None = None) -> OpenRole:
    """Opens a dispatcher, which writes what it decides to the file `record`."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        recording = Recording(record) if record is not None else None
        try:
            async with open_ready_log(connection) as log:
                yield Dispatcher(
                    log, connection.names, name=name, settings=DispatcherSettings(), limits=connection.limits, registry=registry, recording=recording
                )
        finally:
            if recording is not None:
                recording.close()

    return opened

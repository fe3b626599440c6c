"""Builds a scaler from settings, and closes what it opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from broker.canary import CanaryControl
from broker.role import Role
from deploy.configuration import Connection
from deploy.connections import open_ready_log
from deploy.roles.together import Together
from deploy.run_role import OpenRole
from scaler.planner import StaticPlanner


def scaler_role(connection: Connection, name: str) -> OpenRole:
    """Opens the static planner, and what watches canaries beside it."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        async with open_ready_log(connection) as log:
            planner = StaticPlanner(log, connection.names, name=name, registry=registry)
            canaries = CanaryControl(log, connection.names, name=name, leading=lambda: planner.leading, registry=registry)
            yield Together((planner, canaries))

    return opened

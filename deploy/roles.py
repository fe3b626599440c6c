"""Builds each role from settings: opens its servers, makes sure that the topics exist, hands everything over, and closes it again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from broker.dispatcher import Dispatcher
from broker.log import Log
from broker.policy.settings import DispatcherSettings
from broker.role import Role
from broker.sink import Sink
from deploy.configuration import Connection
from deploy.connections import create_topics, open_log, open_store
from deploy.run_role import OpenRole
from scaler.planner import StaticPlanner
from workers.backend import BackendOptions
from workers.backends import create_backend
from workers.host import host_name
from workers.models import ModelRepository
from workers.profile_store import ProfileStore
from workers.settings import WorkerSettings
from workers.worker import Worker


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of a worker."""

    accelerator: str
    device: str | None = None
    device_id: int = 0
    allow_cpu: bool = False
    threads: int = 1
    models: Path
    profiles: Path
    cache: Path
    memory_bytes_max: int = 0
    providers: tuple[str, ...] = ()


def default_name(role: str) -> str:
    """Unlike any other process of this role; in a container the same after each restart (its process id is 1 there)."""
    return f"{role}-{host_name()}-{os.getpid()}"


def dispatcher_role(connection: Connection, name: str) -> OpenRole:
    """Opens a dispatcher."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        async with _ready_log(connection) as log:
            yield Dispatcher(log, connection.names, name=name, settings=DispatcherSettings(), registry=registry)

    return opened


def worker_role(connection: Connection, name: str, options: WorkerOptions) -> OpenRole:
    """Opens a worker on its device; where the device is missing it fails before it touches the log."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        backend = await asyncio.to_thread(create_backend, _backend_options(options))
        settings = WorkerSettings(name=name, accelerator=options.accelerator, threads=options.threads)
        models, profiles = ModelRepository(options.models), ProfileStore(options.profiles)
        async with _ready_log(connection) as log:
            yield Worker(log, connection.names, backend, models.resolve, profiles, settings=settings, registry=registry)

    return opened


def _backend_options(options: WorkerOptions) -> BackendOptions:
    return BackendOptions(
        accelerator=options.accelerator,
        device=options.device,
        device_id=options.device_id,
        allow_cpu=options.allow_cpu,
        memory_bytes_max=options.memory_bytes_max,
        providers=options.providers,
        cache_folder=options.cache,
    )


def sink_role(connection: Connection, name: str) -> OpenRole:
    """Opens a sink."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        async with open_store(connection) as store, _ready_log(connection) as log:
            yield Sink(log, store, connection.names, instance_id=name, registry=registry)

    return opened


def scaler_role(connection: Connection, name: str) -> OpenRole:
    """Opens the static planner."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        async with _ready_log(connection) as log:
            yield StaticPlanner(log, connection.names, name=name, registry=registry)

    return opened


@asynccontextmanager
async def _ready_log(connection: Connection) -> AsyncGenerator[Log]:
    async with open_log(connection) as log:
        await create_topics(log, connection)
        yield log

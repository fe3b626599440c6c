"""Builds a worker on its device from settings, and closes what it opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from broker.role import Role
from deploy.configuration import Connection
from deploy.connections import open_ready_log
from deploy.run_role import OpenRole
from workers.backend import BackendOptions
from workers.backends import create_backend
from workers.models import ModelRepository
from workers.profile_store import ProfileStore
from workers.settings import WorkerSettings
from workers.worker import Worker


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of a worker."""

    accelerator: str
    backend: str | None = None
    device: str | None = None
    device_id: int = 0
    allow_cpu: bool = False
    threads: int = 1
    models: Path
    profiles: Path
    cache: Path
    memory_bytes_max: int = 0
    providers: tuple[str, ...] = ()


def worker_role(connection: Connection, name: str, options: WorkerOptions) -> OpenRole:
    """Opens a worker on its device; where the device is missing it fails before it touches the log."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        backend = await asyncio.to_thread(create_backend, _backend_options(options), options.backend)
        settings = WorkerSettings(name=name, accelerator=options.accelerator, threads=options.threads, limits=connection.limits)
        models, profiles = ModelRepository(options.models), ProfileStore(options.profiles)
        async with open_ready_log(connection) as log:
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

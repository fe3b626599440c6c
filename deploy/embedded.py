"""Headrace in the caller's process: dispatcher, workers, sink and planner over the in-process log, behind the client's interface."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry

from broker.canary import CanaryControl
from broker.client import Client
from broker.dispatcher import Dispatcher
from broker.memory import MemoryLog
from broker.role import Role
from broker.sink import Sink
from broker.store import MemoryStore
from deploy.catalog_apply import apply_files
from scaler.accuracy import AccuracyControl
from scaler.control_loop import ControlLoop
from scaler.control_loop_feed import LogFeed
from schemas.errors import ConfigurationError, HeadraceError
from schemas.names import Names
from workers.backend import BackendOptions
from workers.backends import create_backend
from workers.models import ModelRepository
from workers.profile_store import ProfileStore
from workers.settings import WorkerSettings
from workers.worker import Worker

READY_S = 60.0
POLL_S = 0.02


class Embedded(Client):
    """The whole of Headrace inside this process: no server, nothing survives it.

    ```python
    async with Embedded(["task.yaml", "endpoint.yaml"]) as client:
        response = await client.infer("fashion", {"image": images}, min_accuracy=0.9, timeout_ms=300)
    ```

    `files`: catalog files, as for `headrace apply`. `workers`: one accelerator class per worker; a GPU or VPU worker runs on the CPU only with
    `allow_cpu`, and then says so in every answer. `folder` keeps models and profiles from one run to the next.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        *,
        workers: Sequence[str] = ("cpu",),
        threads: int = 1,
        allow_cpu: bool = False,
        folder: Path | str | None = None,
    ) -> None:
        if not files or not workers:
            raise ConfigurationError("embedded mode needs at least one catalog file and one worker")
        names = Names()
        log, store = MemoryLog(), MemoryStore()
        self._set_up(lambda: (log, store), names, "msgpack", None, owned=True)
        self._files = [Path(file) for file in files]
        self._kept = Path(folder) if folder is not None else None
        self._temporary: Path | None = None
        self._log, self._store = log, store
        self._workers, self._threads, self._allow_cpu = tuple(workers), threads, allow_cpu
        self._roles: list[Role] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start everything and wait until each worker is ready. Raises CatalogError, ModelRefused, DeviceUnavailable, ConfigurationError."""
        folder = self._kept
        if folder is None:
            folder = self._temporary = Path(tempfile.mkdtemp(prefix="headrace-"))
        try:
            await self._log.create_topics(self._names.topics())
            await apply_files(self._log, self._names, self._files, folder / "models")
            self._roles = self._build(folder)
            self._tasks = [asyncio.create_task(role.run()) for role in self._roles]
            await self._until_ready()
            return await super().__aenter__()
        except BaseException:
            await self._stop()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let what runs finish, and end everything. Raises what a part had ended with."""
        await self._stop()
        await super().__aexit__(kind, error, trace)
        for task in self._tasks:
            if not task.cancelled() and (problem := task.exception()) is not None and error is None:
                raise problem

    def _build(self, folder: Path) -> list[Role]:
        log, names = self._log, self._names
        planner = ControlLoop(log, names, LogFeed(log, names, name="planner"), name="planner", registry=CollectorRegistry())
        roles: list[Role] = [
            planner,
            CanaryControl(log, names, name="planner", leading=lambda: planner.leading, registry=CollectorRegistry()),
            AccuracyControl(log, names, name="planner", leading=lambda: planner.leading, registry=CollectorRegistry()),
            Sink(log, self._store, names, registry=CollectorRegistry()),
        ]
        models, profiles = ModelRepository(folder / "models"), ProfileStore(folder / "profiles")
        for at, accelerator in enumerate(self._workers):
            backend = create_backend(BackendOptions(accelerator=accelerator, allow_cpu=self._allow_cpu, device="CPU" if self._allow_cpu else None))
            settings = WorkerSettings(name=f"{accelerator}-{at}", accelerator=accelerator, threads=self._threads)
            roles.append(Worker(log, names, backend, models.resolve, profiles, settings, CollectorRegistry()))
        # Last: it is ready when a worker is.
        roles.append(Dispatcher(log, names, name="dispatcher", registry=CollectorRegistry()))
        return roles

    async def _until_ready(self) -> None:
        async with asyncio.timeout(READY_S):
            while any(role.unready() for role in self._roles):
                for task in self._tasks:
                    if task.done():
                        task.result()
                        raise HeadraceError("a part of the embedded Headrace ended while it started")
                await asyncio.sleep(POLL_S)

    async def _stop(self) -> None:
        for role in reversed(self._roles):
            role.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=15.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

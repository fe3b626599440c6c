"""A backend that returns at once, in an otherwise real worker: what is left is the way through the system.

`python -m deploy.bench.null_backend SETTINGS` runs the worker role with it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from broker.kafka import KafkaLog
from broker.role import Role
from deploy.run_role import RunOptions, run_role
from schemas.catalog import TensorSpec, VariantSpec
from schemas.names import Names
from workers.backend import Device, Loaded, Tensors
from workers.profile_store import ProfileStore
from workers.settings import WorkerSettings
from workers.worker import Worker

OUTPUT = TensorSpec("probs", "FP32", (-1, 10))


class NullBackendSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the worker process."""

    kafka: str
    prefix: str
    name: str
    folder: str
    ready: str


class NullBackend:
    """Answers every batch with zeros."""

    def describe(self) -> Device:
        return Device(accelerator="cpu", name="none", runtime="null")

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        return Loaded(spec=msgspec.structs.replace(spec, outputs=(OUTPUT,)), device="none")

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        return {OUTPUT.name: np.zeros((rows, 10), np.float32)}

    def unload(self, key: str) -> None:
        pass


def main(settings: NullBackendSettings) -> int:
    """The exit code of the role."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        log = KafkaLog(settings.kafka)
        folder = Path(settings.folder)
        options = WorkerSettings(name=settings.name, accelerator="cpu")
        try:
            yield Worker(log, Names(settings.prefix), NullBackend(), folder.joinpath, ProfileStore(folder), settings=options, registry=registry)
        finally:
            await log.close()

    return run_role("worker", settings.name, opened, RunOptions(ready_file=Path(settings.ready), log_format="json"))


if __name__ == "__main__":
    sys.exit(main(msgspec.json.decode(sys.argv[1], type=NullBackendSettings)))

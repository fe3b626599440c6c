"""Applies catalog files: checks them against the catalog as it stands, copies the models, writes what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from broker.log import Log, Message
from deploy.catalog_files import CatalogFiles, load_catalog_files
from deploy.snapshots import CLIENT_ID, read_catalog
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, catalog_key, encode_catalog
from schemas.names import Names
from workers.models import ModelRepository

Spec = TaskSpec | EndpointSpec


class Change(msgspec.Struct, frozen=True):
    """What `apply` did with one document; `change` is created, changed or unchanged."""

    kind: str
    name: str
    change: str
    detail: str


async def apply_files(log: Log, names: Names, files: Sequence[Path], models: Path) -> list[Change]:
    """Verify, copy the models, write tasks before endpoints; returns once the log has everything."""
    present = await read_catalog(log, names)
    stated = await asyncio.to_thread(load_catalog_files, files, present)
    await asyncio.to_thread(_copy_models, stated, models)
    specs: list[Spec] = [*stated.tasks, *stated.endpoints]
    changes = [_change(spec, present) for spec in specs]
    await write_catalog(
        log, names, [(catalog_key(spec), encode_catalog(spec), ()) for spec, c in zip(specs, changes, strict=True) if c.change != "unchanged"]
    )
    return changes


async def write_catalog(log: Log, names: Names, messages: Sequence[Message]) -> None:
    """Write to {p}.catalog, in order, and wait for Kafka to have it. Raises LogUnavailable."""
    if not messages:
        return
    writer = log.writer(CLIENT_ID)
    await writer.start()
    try:
        await writer.write(names.catalog, 0, messages)
    finally:
        await writer.close()


def _copy_models(stated: CatalogFiles, models: Path) -> None:
    repository = ModelRepository(models)
    for sha256, path in stated.models.items():
        repository.add(path, sha256)


def _change(spec: Spec, present: Catalog) -> Change:
    if isinstance(spec, TaskSpec):
        kind, old = "task", present.tasks.get(spec.name)
        detail = f"{len(spec.variants)} variants, accuracy {min(v.accuracy for v in spec.variants):g} to {max(v.accuracy for v in spec.variants):g}"
    else:
        kind, old = "endpoint", present.endpoints.get(spec.name)
        detail = f"task {spec.task}, accuracy {spec.defaults.min_accuracy:g} within {spec.defaults.timeout_ms} ms by default"
    change = "created" if old is None else "unchanged" if encode_catalog(old) == encode_catalog(spec) else "changed"
    return Change(kind, spec.name, change, detail)

"""The ImageNet ladder of the rows about scaling: built once and kept, profiled once in a run, under two tasks of the same models."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.bench.harness import Harness
from deploy.bench.rows import Say
from deploy.catalog_files import CatalogFiles, load_catalog_files
from deploy.running_stack import FOLDER
from schemas.errors import ConfigurationError
from schemas.profile import Profile
from workers.backend import BackendOptions
from workers.cpu.backend import CpuBackend
from workers.profile_store import ProfileStore
from workers.profiler import Profiler, ProfileSettings

FIRST, SECOND = "photos-a", "photos-b"
"""Two endpoints, each with a task of its own name: a worker that hosts one does not host the other."""
KEPT = FOLDER / "imagenet"
BATCH_SIZES = (1, 2, 4)
BUDGET_MS = 600.0
MEASURED = "ladder.json"


class Ladder(msgspec.Struct, frozen=True):
    """What the rows need to know of it."""

    files: tuple[Path, ...]
    """For `apply`."""
    catalog: CatalogFiles
    profiles: tuple[Profile, ...]
    """Of the first task's variants, as measured on this machine."""
    photos: list[NDArray[np.uint8]]
    stored: Path
    """Where workers find the profiles."""

    @property
    def best(self) -> str:
        """The name of the most accurate variant."""
        return max(self.catalog.tasks[0].variants, key=lambda variant: variant.accuracy).name

    @property
    def names(self) -> tuple[str, ...]:
        """Of all variants, cheapest first."""
        return tuple(profile.variant.partition("/")[2] for profile in sorted(self.profiles, key=lambda profile: profile.batches[1].p50_ms))

    def accuracy(self, name: str) -> float:
        variant = self.catalog.tasks[0].variant(name)
        assert variant is not None
        return variant.accuracy

    def milliseconds(self, name: str) -> float:
        """Median of one row."""
        return next(profile.batches[1].p50_ms for profile in self.profiles if profile.variant == f"{FIRST}/{name}")


async def prepared(harness: Harness, say: Say) -> Ladder:
    """Built and profiled at the first call of a run. Raises ConfigurationError where weights or packages are missing."""
    say("building the ImageNet ladder")
    files = await asyncio.to_thread(build, KEPT)
    photos = await asyncio.to_thread(_photos, KEPT)
    catalog = load_catalog_files(files)
    say("profiling the ladder")
    stored = harness.folder / "profiles"
    measured = harness.folder / MEASURED
    if not measured.exists():
        profiles = await asyncio.to_thread(_profiled, catalog, stored)
        measured.write_bytes(msgspec.json.encode(profiles))
    return Ladder(files, catalog, msgspec.json.decode(measured.read_bytes(), type=tuple[Profile, ...]), photos, stored)


def example(module: str) -> Any:
    """A module of the example. Raises ConfigurationError where its extra is not installed."""
    try:
        return import_module(f"headrace_imagenet.{module}")
    except ImportError as error:
        raise ConfigurationError(f"the ImageNet ladder needs {error.name or error}: pip install 'headrace[cpu,imagenet]'") from None


def build(folder: Path) -> tuple[Path, ...]:
    """The task's and the endpoint's file, once for each of the two names. Raises ConfigurationError."""
    fetch = example("fetch")
    try:
        hashes = fetch.build_models(folder)
    except (fetch.FilesMissing, fetch.CheckpointRefused) as error:
        raise ConfigurationError(f"the ImageNet ladder cannot be built: {error}") from None
    files: list[Path] = []
    for name in (FIRST, SECOND):
        for part, text in (("task", fetch.task_text(hashes, name)), ("endpoint", fetch.endpoint_text(name, name))):
            file = folder / f"{name}-{part}.yaml"
            file.write_text(text)
            files.append(file)
    return tuple(files)


def _photos(folder: Path) -> list[NDArray[np.uint8]]:
    fetch, photos = example("fetch"), example("photos")
    try:
        labelled = example("sources").labelled_photos(folder / fetch.KEPT)
    except fetch.FilesMissing as error:
        raise ConfigurationError(f"the photos cannot be fetched: {error}") from None
    return [photos.middle(photos.decode_photo(file)) for file, _ in labelled]


def _profiled(catalog: CatalogFiles, stored: Path) -> list[Profile]:
    task = catalog.tasks[0]
    backend = CpuBackend(BackendOptions(accelerator="cpu"))
    profiler = Profiler(backend, ProfileSettings(budget_ms=BUDGET_MS, batch_sizes=BATCH_SIZES, threads=1))
    profiles = profiler.profile_variants({f"{task.name}/{spec.name}": (spec, catalog.models[spec.sha256]) for spec in task.variants})
    store = ProfileStore(stored)
    for profile in profiles:
        store.put(profile)
    return profiles

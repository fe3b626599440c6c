"""The Fashion-MNIST ladder of examples/fashion, with profiles that `headrace profile` measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from deploy.catalog_files import load_catalog_files
from deploy.families.family import DATA, Family, accelerators_of
from scaler.optimizers.snapshot import Cost, Variant
from schemas.catalog import Catalog, VariantSpec
from schemas.profile import Latency

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
PROFILES = DATA / "fashion" / "profiles.json"


class Measured(msgspec.Struct, frozen=True):
    """One variant with so many threads."""

    variant: str
    threads: int
    batches: dict[int, Latency]
    load_ms: float
    memory_bytes: int
    spread: float


class Profiles(msgspec.Struct, frozen=True):
    """The file of figures."""

    device: str
    runtime: str
    profiles: list[Measured]


def fashion() -> Family:
    """Top-1 accuracies on the 10,000 test images; costs of one and two threads."""
    read = load_catalog_files([EXAMPLE / "task.yaml", EXAMPLE / "endpoint.yaml"])
    catalog = Catalog({task.name: task for task in read.tasks}, {endpoint.name: endpoint for endpoint in read.endpoints})
    profiles = msgspec.json.decode(PROFILES.read_bytes(), type=Profiles)
    variants = tuple(_variant(key, spec, profiles.profiles) for key, spec in catalog.variants().items())
    return Family(
        name="fashion",
        description="Fashion-MNIST, six variants from 84 to 93 %; accuracy is top-1",
        catalog=catalog,
        variants=variants,
        accelerators=accelerators_of(variants),
        provenance=f"accuracies: examples/fashion/task.yaml; costs: `headrace profile` on {profiles.device}, {profiles.runtime}",
    )


def _variant(key: str, spec: VariantSpec, profiles: Iterable[Measured]) -> Variant:
    mine = [measured for measured in profiles if measured.variant == key]
    latency = {measured.threads: measured.batches for measured in mine}
    measured = Cost(latency=latency, load_ms=max(each.load_ms for each in mine), memory_bytes=max(each.memory_bytes for each in mine))
    return Variant(key=key, task=key.partition("/")[0], accuracy=spec.accuracy, batch_size_max=spec.batch_size_max, costs={"cpu": measured})

"""A family: tasks, endpoints and variants with costs, with the choices that were made where the published tables say nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from scaler.optimizers.snapshot import Variant
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, TensorSpec, VariantSpec, split_variant_key

DATA = Path(__file__).resolve().parents[2] / "benchmarks" / "data"
ACCELERATORS = {"cpu": "cpu", "cores": "cpu", "rtx3090": "gpu", "rtx4090": "gpu", "v100": "gpu", "gtx1080ti": "gpu"}
"""Class of each worker type that a family names."""
IMAGE = TensorSpec("image", "UINT8", (-1, -1, -1, 3))


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Models with their costs, ready to be used."""

    name: str
    description: str = ""
    catalog: Catalog
    variants: tuple[Variant, ...]
    accelerators: dict[str, str]
    """Class of each worker type in the variants' costs."""
    fan_out: dict[str, dict[str, float]] = {}
    """Of a pipeline, as in `Load.fan_out`."""
    branches: dict[str, dict[str, float]] = {}
    """Of a pipeline, as in `Load.branches`."""
    provenance: str = ""
    """Where figures come from, and what was chosen."""


class Costed(msgspec.Struct, frozen=True):
    """A variant, and what an answer of its task looks like."""

    variant: Variant
    inputs: tuple[TensorSpec, ...] = (IMAGE,)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("probs", "FP32", (-1, 1000)),)


def task_of(name: str, costed: Iterable[Costed]) -> TaskSpec:
    """The catalog's record of a task; a variant runs on every class that it has a cost for. There are no model files: nothing is computed."""
    specs = tuple(
        VariantSpec(
            name=split_variant_key(each.variant.key)[1],
            accuracy=each.variant.accuracy,
            accelerators=tuple(sorted({ACCELERATORS[kind] for kind in each.variant.costs})),
            inputs=each.inputs,
            outputs=each.outputs,
            batch_size_max=each.variant.batch_size_max,
        )
        for each in costed
    )
    return TaskSpec(name=name, variants=specs)


def accelerators_of(variants: Iterable[Variant]) -> dict[str, str]:
    """Class by worker type, of the types that these variants name."""
    return {kind: ACCELERATORS[kind] for variant in variants for kind in variant.costs}


def merged(name: str, description: str, families: Iterable[Family]) -> Family:
    """Several families as one; their names differ."""
    parts = tuple(families)
    tasks: dict[str, TaskSpec] = {}
    endpoints: dict[str, EndpointSpec] = {}
    for part in parts:
        tasks |= part.catalog.tasks
        endpoints |= part.catalog.endpoints
    variants = tuple(variant for part in parts for variant in part.variants)
    return Family(
        name=name,
        description=description,
        catalog=Catalog(tasks, endpoints),
        variants=variants,
        accelerators=accelerators_of(variants),
        provenance="; ".join(dict.fromkeys(part.provenance for part in parts)),
    )

"""Image classifiers from the tables of timm: the ImageNet ladder, and the families that Proteus serves as far as the tables have them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cache

import msgspec

from deploy.families.batch_model import OVERHEAD_MS, RTX3090_TO_GTX1080TI, RTX3090_TO_V100, affine, by_cores, cost, cpu_batches, row_ms_of
from deploy.families.family import DATA, Costed, Family, accelerators_of, task_of
from scaler.optimizers.snapshot import Cost, Variant
from schemas.catalog import Catalog, Defaults, EndpointSpec, variant_key

TABLE = DATA / "timm" / "models.csv"
PROVENANCE = (
    "timm results (huggingface/pytorch-image-models, Apache-2.0): ImageNet top-1 of the best weights trained on ImageNet-1k alone; "
    "RTX 3090 and 4090 at one large batch, i9-10940X at batch 1; batch curves, other devices, spread, memory and load times are modelled "
    "(deploy/families/batch_model.py)"
)
TIMEOUT_MS = 1_000

LADDER = (
    "mobilenetv3_small_050",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "convnext_pico",
    "convnext_tiny",
    "convnext_small",
    "tf_efficientnet_b5",
    "tf_efficientnet_b7",
)
"""Eight rungs from 57.9 to 85.1 % top-1, each slower than the one before on every device: in all 52 times on the CPU, 316 times on the RTX 3090."""
FAMILIES = {
    "mobilenet": ("mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv1_125"),
    "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "densenet": ("densenet121", "densenet169", "densenet201", "densenet161"),
    "resnest": ("resnest14d", "resnest26d", "resnest50d", "resnest101e", "resnest200e", "resnest269e"),
    "efficientnet": tuple(f"tf_efficientnet_b{size}" for size in range(8)),
    "convnext": tuple(f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")),
    "regnety": tuple(f"regnety_{size}" for size in ("002", "004", "008", "016", "032", "064", "160")),
    "vgg": ("vgg11", "vgg13", "vgg16", "vgg19"),
    "vit": ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit3_medium_patch16_224", "deit3_base_patch16_224", "deit3_large_patch16_224"),
}
"""Architectures, smallest first."""


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    architecture: str
    weights: str
    image_size: int
    top1: float
    parameters_millions: float
    rtx3090_rows_per_s: float
    rtx3090_batch: int
    rtx4090_rows_per_s: float
    rtx4090_batch: int
    i9_10940x_batch1_ms: float


@cache
def table() -> dict[str, Row]:
    """The table by architecture."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {row.architecture: row for row in (msgspec.convert(line, Row, strict=False) for line in csv.DictReader(file))}


def classifiers(task: str, architectures: Sequence[str], *, normalised_to: float = 100.0) -> Iterator[Costed]:
    """Variants of a task from the table; accuracy is top-1 / `normalised_to`."""
    for architecture in architectures:
        row = table()[architecture]
        key = variant_key(task, architecture)
        yield Costed(Variant(key=key, task=task, accuracy=round(row.top1 / normalised_to, 5), costs=_costs(row)))


def best_top1(architectures: Sequence[str]) -> float:
    """The highest top-1, in percent."""
    return max(table()[architecture].top1 for architecture in architectures)


def imagenet() -> Family:
    """Absolute top-1 accuracy."""
    return _family("imagenet", LADDER, 100.0, "ImageNet ladder of eight convolutional networks; accuracy is top-1")


def normalised(name: str) -> Family:
    """One of FAMILIES, its accuracies as parts of its best one's, as Proteus counts them."""
    return _family(name, FAMILIES[name], best_top1(FAMILIES[name]), f"{name}, accuracy as a part of the best variant's top-1")


def _family(name: str, architectures: Sequence[str], normalised_to: float, description: str) -> Family:
    costed = tuple(classifiers(name, architectures, normalised_to=normalised_to))
    variants = tuple(each.variant for each in costed)
    endpoint = EndpointSpec(name=name, task=name, defaults=Defaults(timeout_ms=TIMEOUT_MS))
    return Family(
        name=name,
        description=description,
        catalog=Catalog({name: task_of(name, costed)}, {name: endpoint}),
        variants=variants,
        accelerators=accelerators_of(variants),
        provenance=PROVENANCE,
    )


def _costs(row: Row) -> dict[str, Cost]:
    rtx3090_ms = row_ms_of(row.rtx3090_rows_per_s, row.rtx3090_batch)
    rtx4090_ms = row_ms_of(row.rtx4090_rows_per_s, row.rtx4090_batch)
    by_type = {
        "cpu": cpu_batches(row.i9_10940x_batch1_ms),
        "cores": by_cores(row.i9_10940x_batch1_ms),
        "rtx3090": affine(OVERHEAD_MS, rtx3090_ms),
        "rtx4090": affine(OVERHEAD_MS, rtx4090_ms),
        "v100": affine(OVERHEAD_MS, rtx3090_ms * RTX3090_TO_V100),
        "gtx1080ti": affine(OVERHEAD_MS, rtx3090_ms * RTX3090_TO_GTX1080TI),
    }
    return {kind: cost(batches, row.parameters_millions) for kind, batches in by_type.items()}

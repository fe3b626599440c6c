"""YOLOv5 from the table of its readme: mAP as a part of the largest model's, CPU at batch 1, V100 at batches 1 and 32."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache

import msgspec

from deploy.families.batch_model import V100_TO_GTX1080TI, affine, by_cores, cost, cpu_batches, two_points
from deploy.families.family import DATA, IMAGE, Costed, Family, accelerators_of, task_of
from scaler.optimizers.snapshot import Cost, Variant
from schemas.catalog import Catalog, Defaults, EndpointSpec, TensorSpec, variant_key

TABLE = DATA / "yolov5" / "models.csv"
PROVENANCE = (
    "YOLOv5 readme table (ultralytics/yolov5, figures retyped): mAP 50-95 on COCO as a part of yolov5x's, CPU at batch 1, V100 at batches 1 and 32; "
    "GTX 1080 Ti, spread, memory and load times are modelled (deploy/families/batch_model.py)"
)
OBJECTS_PER_IMAGE = 7.3
"""Of COCO."""
TIMEOUT_MS = 2_000
OUTPUTS = (TensorSpec("crops", "UINT8", (-1, -1, -1, 3)), TensorSpec("kinds", "INT64", (-1,)))


class Row(msgspec.Struct, frozen=True, rename={"parameters_millions": "params_M", "cpu_ms": "cpu_b1_ms", "v100_ms": "v100_b1_ms"}):
    """What is used of one line of the table."""

    model: str
    map50_95: float
    map50: float
    cpu_ms: float
    v100_ms: float
    v100_b32_ms_per_image: float
    parameters_millions: float


@cache
def table() -> tuple[Row, ...]:
    """The lines, smallest model first."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return tuple(msgspec.convert(line, Row, strict=False) for line in csv.DictReader(file))


def detectors(task: str) -> Iterator[Costed]:
    """Variants of a detection task."""
    best = max(row.map50_95 for row in table())
    for row in table():
        variant = Variant(key=variant_key(task, row.model), task=task, accuracy=round(row.map50_95 / best, 5), costs=_costs(row))
        yield Costed(variant, (IMAGE,), OUTPUTS)


def objects_found(task: str) -> dict[str, float]:
    """Mean objects that each variant finds in an image, by key: those of COCO times its mAP at 50 % overlap, as a better detector finds more."""
    return {variant_key(task, row.model): round(OBJECTS_PER_IMAGE * row.map50 / 100.0, 2) for row in table()}


def yolov5() -> Family:
    """Detection in one stage."""
    costed = tuple(detectors("yolov5"))
    variants = tuple(each.variant for each in costed)
    endpoint = EndpointSpec(name="yolov5", task="yolov5", defaults=Defaults(timeout_ms=TIMEOUT_MS))
    return Family(
        name="yolov5",
        description="YOLOv5 n, s, m, l, x at 640 pixels; accuracy is mAP as a part of the largest one's",
        catalog=Catalog({"yolov5": task_of("yolov5", costed)}, {"yolov5": endpoint}),
        variants=variants,
        accelerators=accelerators_of(variants),
        provenance=PROVENANCE,
    )


def _costs(row: Row) -> dict[str, Cost]:
    overhead_ms, row_ms = two_points(row.v100_ms, 32, row.v100_b32_ms_per_image * 32)
    by_type = {
        "cpu": cpu_batches(row.cpu_ms),
        "cores": by_cores(row.cpu_ms),
        "v100": affine(overhead_ms, row_ms),
        "gtx1080ti": affine(overhead_ms, row_ms * V100_TO_GTX1080TI),
    }
    return {kind: cost(batches, row.parameters_millions) for kind, batches in by_type.items()}

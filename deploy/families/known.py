"""The families that scenarios can name."""

from __future__ import annotations

from collections.abc import Callable

from deploy.families import classifiers
from deploy.families.detectors import yolov5
from deploy.families.family import Family, merged
from deploy.families.fashion import fashion
from deploy.families.pipelines import social, traffic
from deploy.suggestions import did_you_mean
from schemas.errors import CatalogError

PROTEUS = ("resnet", "densenet", "resnest", "efficientnet", "mobilenet", "convnext", "regnety", "vgg")
"""Beside YOLOv5. The first five are the paper's; its BERT, T5 and GPT-2 are in no table here, and ConvNeXt, RegNetY and VGG stand for them."""


def proteus() -> Family:
    """Nine families, as Proteus serves, on CPUs, V100s and GTX 1080 Tis among others; accuracies as parts of each family's best."""
    parts = [*map(classifiers.normalised, PROTEUS), yolov5()]
    return merged("proteus", "nine families as in Proteus, three of them others; accuracies as parts of the best", parts)


def _normalised(name: str) -> Callable[[], Family]:
    return lambda: classifiers.normalised(name)


FAMILIES: dict[str, Callable[[], Family]] = {
    "fashion": fashion,
    "imagenet": classifiers.imagenet,
    "yolov5": yolov5,
    "proteus": proteus,
    "traffic": traffic,
    "social": social,
} | {name: _normalised(name) for name in classifiers.FAMILIES}


def family(name: str) -> Family:
    """Raises CatalogError, with near misses, for a name that is not among FAMILIES."""
    make = FAMILIES.get(name)
    if make is None:
        raise CatalogError(f"there is no model family {name!r}{did_you_mean(name, FAMILIES)}")
    return make()

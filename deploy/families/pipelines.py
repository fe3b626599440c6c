"""Two pipelines shaped like those of Loki (HPDC'24, section 6): traffic analysis with fan-out, and social media.

Loki's own profiles carry no licence, so these are built from the YOLOv5 and timm tables. What differs: cars are classified by ResNet instead of
EfficientNet, as the tables have it at the one image size that crops have; captions are read by DeiT; how many objects a detector finds is
`objects_found`; CARS_PART of them are cars.
"""

from __future__ import annotations

from deploy.families.classifiers import FAMILIES, best_top1, classifiers
from deploy.families.classifiers import PROVENANCE as CLASSIFIERS
from deploy.families.detectors import PROVENANCE as DETECTORS
from deploy.families.detectors import detectors, objects_found
from deploy.families.family import IMAGE, Costed, Family, accelerators_of, task_of
from schemas.catalog import Catalog, Defaults, EndpointSpec, TensorSpec
from schemas.graph import Case, ForEachNode, GraphSpec, Node, StageNode, SwitchNode

TIMEOUT_MS = 250
"""Loki's."""
CARS_PART = 0.8
DETECT, CARS, FACES = "traffic-detect", "traffic-cars", "traffic-faces"
CLASSIFY, CAPTION = "social-classify", "social-caption"


def traffic() -> Family:
    """Detection, then for each object the make of a car or the face of a person."""
    tasks = {
        DETECT: tuple(detectors(DETECT)),
        CARS: _normalised(CARS, "resnet"),
        FACES: _normalised(FACES, "vgg"),
    }
    inner: dict[str, Node] = {
        "cars": StageNode(task=CARS, inputs={"image": "row.crop"}),
        "faces": StageNode(task=FACES, inputs={"image": "row.crop"}),
        "which": SwitchNode(cases=(Case("row.kind == 0", "cars"),), otherwise="faces"),
    }
    nodes: dict[str, Node] = {
        "detect": StageNode(task=DETECT, inputs={"image": "request.image"}),
        "objects": ForEachNode(over={"crop": "detect.crops", "kind": "detect.kinds"}, nodes=inner, output="which"),
    }
    family = _pipeline("traffic", GraphSpec(nodes=nodes, output="objects"), tasks)
    return Family(
        name=family.name,
        description="traffic analysis: YOLOv5, then ResNet for cars and VGG for faces; accuracies as parts of the best",
        catalog=family.catalog,
        variants=family.variants,
        accelerators=family.accelerators,
        fan_out={"objects": objects_found(DETECT)},
        branches={"which": {"cars": CARS_PART, "faces": round(1.0 - CARS_PART, 6)}},
        provenance=f"{DETECTORS}; {CLASSIFIERS}",
    )


def social() -> Family:
    """Classification of a picture, then a caption for it."""
    label = TensorSpec("probs", "FP32", (-1, 1000))
    captions = tuple(Costed(each.variant, (IMAGE, label), (TensorSpec("caption", "FP32", (-1, 1)),)) for each in _normalised(CAPTION, "vit"))
    nodes: dict[str, Node] = {
        "classify": StageNode(task=CLASSIFY, inputs={"image": "request.image"}),
        "caption": StageNode(task=CAPTION, inputs={"image": "request.image", "probs": "classify.probs"}),
    }
    return _pipeline("social", GraphSpec(nodes=nodes, output="caption"), {CLASSIFY: _normalised(CLASSIFY, "resnet"), CAPTION: captions})


def _normalised(task: str, family: str) -> tuple[Costed, ...]:
    architectures = FAMILIES[family]
    return tuple(classifiers(task, architectures, normalised_to=best_top1(architectures)))


def _pipeline(name: str, graph: GraphSpec, tasks: dict[str, tuple[Costed, ...]]) -> Family:
    variants = tuple(each.variant for costed in tasks.values() for each in costed)
    endpoint = EndpointSpec(name=name, graph=graph, revision=1, defaults=Defaults(timeout_ms=TIMEOUT_MS))
    return Family(
        name=name,
        description="social media: ResNet, then DeiT; accuracies as parts of the best",
        catalog=Catalog({task: task_of(task, costed) for task, costed in tasks.items()}, {name: endpoint}),
        variants=variants,
        accelerators=accelerators_of(variants),
        provenance=CLASSIFIERS,
    )

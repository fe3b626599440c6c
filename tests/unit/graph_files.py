"""Tasks and catalog files with graphs, for the tests of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.catalog_files import load_catalog_files
from schemas.catalog import Catalog, EndpointSpec, TaskSpec, TensorSpec, VariantSpec
from schemas.errors import CatalogError
from schemas.graph import GraphSpec

IMAGE = TensorSpec("image", "UINT8", (-1, 1, 28, 28))
PROBS = TensorSpec("probs", "FP32", (-1, 10))
BOXES = TensorSpec("boxes", "FP32", (-1, 4))
CROP = TensorSpec("crop", "UINT8", (-1, 1, 28, 28))


def task(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], **accuracies: float) -> TaskSpec:
    made = [
        VariantSpec(name=variant, file=f"{variant}.onnx", sha256="0" * 64, accuracy=accuracy, inputs=inputs, outputs=outputs)
        for variant, accuracy in accuracies.items()
    ]
    return TaskSpec(name=name, variants=tuple(made))


CLASSIFY = task("classify", (IMAGE,), (PROBS,), small=0.8, large=0.9)
DETECT = task("detect", (IMAGE,), (BOXES, CROP), fast=0.9)
READ = task("read", (CROP,), (TensorSpec("text", "BYTES", (-1,)),), fast=0.9)
TIDY = TaskSpec(name="tidy", variants=(VariantSpec(name="python", call="tidy:tidy", accuracy=1.0),))
PRESENT = Catalog(tasks={each.name: each for each in (CLASSIFY, DETECT, READ, TIDY)})

CASCADE = """\
kind: endpoint
name: cascade
defaults: {min_accuracy: 0.75, timeout_ms: 300}
graph:
  nodes:
    - name: quick
      stage: {task: classify, variants: [small]}
    - name: careful
      stage: {task: classify, variants: [large]}
    - name: sure
      switch:
        - {when: max(quick.probs) >= 0.9, then: quick}
        - {otherwise: careful}
  output: sure
"""


def written(folder: Path, *texts: str) -> Path:
    file = folder / "graphs.yaml"
    file.write_text("---\n".join(texts))
    return file


def loaded(folder: Path, *texts: str, present: Catalog | None = PRESENT) -> dict[str, EndpointSpec]:
    return {endpoint.name: endpoint for endpoint in load_catalog_files([written(folder, *texts)], present).endpoints}


def graph_of(folder: Path, *texts: str, present: Catalog | None = PRESENT) -> GraphSpec:
    """Of the last endpoint."""
    graph = list(loaded(folder, *texts, present=present).values())[-1].graph
    assert graph is not None
    return graph


def problems(folder: Path, *texts: str, present: Catalog | None = PRESENT) -> list[str]:
    file = written(folder, *texts)
    with pytest.raises(CatalogError) as refused:
        load_catalog_files([file], present)
    return [line.removeprefix(f"{file}:") for line in str(refused.value).splitlines()]


def endpoint(nodes: str, output: str, name: str = "made", more: str = "") -> str:
    return f"kind: endpoint\nname: {name}\ngraph:\n  nodes:\n{nodes}  output: {output}\n{more}"


def stage(name: str, words: str) -> str:
    return f"    - name: {name}\n      stage: {{{words}}}\n"


A, B, C = (stage(name, "task: classify, inputs: {image: request.image}") for name in "abc")

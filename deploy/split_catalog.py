"""Writes the parts of a split model as files, with a catalog file that serves them as one endpoint."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from schemas.catalog import TensorSpec
from schemas.errors import HeadraceError
from schemas.graph import REQUEST
from schemas.names import ACCELERATORS
from workers.model_splitting import ModelPart, SplitModel

CATALOG_FILE = "split.yaml"
_BY_DEFAULT = ("cpu", "gpu", "vpu")


def endpoint_name(file: Path) -> str:
    """What the endpoint of a split model is called: the file's name as far as it can be one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-") or "model"


def part_file(number: int) -> str:
    """Of the part with this number, from 1."""
    return f"part-{number}.onnx"


def write_split(split: SplitModel, folder: Path, name: str, accuracy: float) -> Path:
    """Write `part-1.onnx`, ... and `split.yaml` into the folder (made where it is missing); returns the catalog file. Raises HeadraceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(split.parts, start=1):
            (folder / part_file(number)).write_bytes(part.data)
        catalog = folder / CATALOG_FILE
        catalog.write_text(catalog_text(split, name, accuracy), encoding="utf-8")
    except OSError as error:
        raise HeadraceError(f"{folder}: cannot be written: {error.strerror}") from None
    return catalog


def catalog_text(split: SplitModel, name: str, accuracy: float) -> str:
    """One task for each part, and an endpoint that chains them."""
    tasks = [_task(part, number, len(split.parts), name, accuracy) for number, part in enumerate(split.parts, start=1)]
    stages = [_stage(part, number, name) for number, part in enumerate(split.parts, start=1)]
    head = [
        f"# {name} in {len(split.parts)} parts: the chained parts differ from the whole by at most {split.difference:.2g}.",
        f"# `accelerators` say where a part may run: narrow them to one of {', '.join(ACCELERATORS)} to bind parts to different workers.",
    ]
    endpoint = [
        "---",
        "kind: endpoint",
        f"name: {_quoted(name)}",
        "graph:",
        "  nodes:",
        *stages,
        f"  output: part{len(split.parts)}",
    ]
    return "\n".join([*head, *("\n".join(task) for task in tasks), *endpoint]) + "\n"


def _task(part: ModelPart, number: int, parts: int, name: str, accuracy: float) -> list[str]:
    last = number == parts
    return [
        "---",
        f"# {part.share:.0%} of the computing ({part.latency_ms:.3g} ms)",
        "kind: task",
        f"name: {_quoted(f'{name}-{number}')}",
        "variants:",
        f"  - name: {_quoted(f'part-{number}')}",
        f"    file: {part_file(number)}",
        f"    sha256: {part.sha256}",
        f"    accuracy: {accuracy if last else 1.0:g}" + ("  # of the whole model: the parts before take nothing from it" if last else ""),
        f"    accelerators: [{', '.join(_BY_DEFAULT)}]",
        "    inputs:",
        *(_tensor(tensor) for tensor in part.inputs),
        "    outputs:",
        *(_tensor(tensor) for tensor in part.outputs),
    ]


def _tensor(tensor: TensorSpec) -> str:
    shape = [-1, *tensor.shape[1:]]
    return f"      - {{name: {_quoted(tensor.name)}, datatype: {tensor.datatype}, shape: {shape}}}"


def _stage(part: ModelPart, number: int, name: str) -> str:
    inputs = [f"{_quoted(tensor)}: {_quoted(f'{_source(source)}.{tensor}')}" for tensor, source in part.sources.items()]
    return f"    - name: part{number}\n      stage: {{task: {_quoted(f'{name}-{number}')}, inputs: {{{', '.join(inputs)}}}}}"


def _source(number: int) -> str:
    return f"part{number}" if number else REQUEST


def _quoted(text: str) -> str:
    """A JSON string is a YAML string."""
    return text if re.match(r"^[A-Za-z][A-Za-z0-9_.-]*$", text) else msgspec.json.encode(text).decode()

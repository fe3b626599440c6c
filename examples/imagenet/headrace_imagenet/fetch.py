"""Makes a folder that `headrace up` can serve: models built from the published weights, their task, the endpoint, and requests to send."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headrace_imagenet.checkpoint import CheckpointRefused, read_checkpoint
from headrace_imagenet.ladder import ENDPOINT, RUNGS, TASK, Rung
from headrace_imagenet.network import CLASSES, PHOTO_ROWS, PHOTO_SIDE, build_network
from headrace_imagenet.photos import decode_photo, middle, random_cuts
from headrace_imagenet.quantising import quantised
from headrace_imagenet.sources import calibrating_photos, checkpoint, labelled_photos
from headrace_imagenet.wheels import FilesMissing

TASK_FILE, ENDPOINT_FILE, MODELS, KEPT, REQUESTS = "task.yaml", "endpoint.yaml", "models", "wheels", "requests"
CUTS = 6
"""Of each calibrating photo."""
SEED = 1
DEFAULT_FLOOR, DEFAULT_TIMEOUT_MS = 0.5, 1_000
SENT = 5
"""Labelled photos that are written as requests."""
Say = Callable[[str], None]


def build(folder: Path, say: Say = lambda _: None) -> tuple[Path, Path]:
    """(task file, endpoint file), with the models beside them; what is there already is kept. Raises FilesMissing, CheckpointRefused."""
    task, endpoint = folder / TASK_FILE, folder / ENDPOINT_FILE
    hashes = build_models(folder, say)
    task.write_text(task_text(hashes))
    endpoint.write_text(endpoint_text())
    return task, endpoint


def build_models(folder: Path, say: Say = lambda _: None) -> dict[str, str]:
    """SHA-256 by rung. Raises FilesMissing, CheckpointRefused."""
    (folder / MODELS).mkdir(parents=True, exist_ok=True)
    hashes: dict[str, str] = {}
    photos: list[Any] = []
    tensors: dict[str, dict[str, Any]] = {}
    for rung in RUNGS:
        file = folder / MODELS / f"{rung.name}.onnx"
        if not file.is_file():
            say(f"building {rung.name}")
            if rung.weights not in tensors:
                tensors[rung.weights] = read_checkpoint(checkpoint(rung.weights, folder / KEPT))
            network = build_network(tensors[rung.weights], rung.side, rung.name)
            if rung.int8:
                photos = photos or calibration(folder / KEPT)
                network = quantised(network, photos)
            partial = file.with_suffix(".partial")
            partial.write_bytes(network)
            partial.replace(file)
        hashes[rung.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashes


def calibration(kept: Path) -> list[Any]:
    """Cuts of the calibrating photos, the same each time. Raises FilesMissing."""
    random = np.random.default_rng(SEED)
    return [cut for file in calibrating_photos(kept) for cut in random_cuts(decode_photo(file), CUTS, random)]


def task_text(hashes: dict[str, str], task: str = TASK) -> str:
    """The task's file, under any name."""
    head = f"# EfficientNet-Lite at several sizes; made by `python -m headrace_imagenet.fetch`.\nkind: task\nname: {task}\nvariants:\n"
    return head + "".join(_variant_text(rung, hashes[rung.name]) for rung in RUNGS)


def endpoint_text(endpoint: str = ENDPOINT, task: str = TASK) -> str:
    """The endpoint's file, under any name."""
    defaults = f"defaults:\n  min_accuracy: {DEFAULT_FLOOR}\n  timeout_ms: {DEFAULT_TIMEOUT_MS}\n"
    return f"kind: endpoint\nname: {endpoint}\ntask: {task}\n{defaults}"


def _variant_text(rung: Rung, digest: str) -> str:
    return (
        f"  - name: {rung.name}\n"
        f"    file: {MODELS}/{rung.name}.onnx\n"
        f"    sha256: {digest}\n"
        f"    accuracy: {rung.accuracy:g}\n"
        f"    accelerators: [cpu, gpu, vpu]\n"
        f"    batch_size_max: 8\n"
        f"    inputs:\n      - {{name: image, datatype: UINT8, shape: [-1, {PHOTO_ROWS}, {PHOTO_SIDE}]}}\n"
        f"    outputs:\n      - {{name: probs, datatype: FP32, shape: [-1, {CLASSES}]}}\n"
    )


def write_requests(folder: Path) -> list[Path]:
    """Some labelled photos as arrays that `headrace send` takes, named by their class. Raises FilesMissing."""
    (folder / REQUESTS).mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for number, (photo, label) in enumerate(labelled_photos(folder / KEPT)[:SENT]):
        file = folder / REQUESTS / f"photo-{number}-class-{label}.npy"
        np.save(file, middle(decode_photo(photo))[None])
        files.append(file)
    return files


def main() -> int:
    """Build the folder, and say what to do with it."""
    parser = argparse.ArgumentParser(description="Build the models, task and endpoint of the ImageNet example.")
    parser.add_argument("--output", type=Path, default=Path("imagenet"), help="folder to write to (default: ./%(default)s)")
    folder: Path = parser.parse_args().output
    try:
        build(folder, lambda words: print(words, file=sys.stderr))
        requests = write_requests(folder)
    except (FilesMissing, CheckpointRefused) as missing:
        print(missing, file=sys.stderr)
        return 1
    print(f"headrace up --detach --workers cpu=2 {folder}/*.yaml")
    print(f"headrace send {ENDPOINT} {requests[0]} --min-accuracy 0.7 --wait 5000")
    return 0


if __name__ == "__main__":
    sys.exit(main())

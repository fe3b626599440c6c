"""Makes a folder that `headrace up` can serve: models built from the weights in the wheel, their tasks, and the endpoint."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

from headrace_ocr.fusing import build_classifier, build_detector, build_recogniser
from headrace_ocr.ladder import CLASSIFIER, DETECTOR_SIDES, MEASURED_FILE, RECOGNISER_WIDTHS, read_measured, stage_accuracies
from headrace_ocr.weights import CLASSIFIER as CLASSIFIER_FILE
from headrace_ocr.weights import DETECTOR, RECOGNISER, WeightsMissing, read_weights

TASKS_FILE, ENDPOINT_FILE, TEMPLATE_FILE = "tasks.yaml", "endpoint.yaml", "tasks.template"


def build(folder: Path) -> tuple[Path, Path]:
    """(tasks file, endpoint file), with the models beside them in `models`. Raises WeightsMissing."""
    hashes = build_models(folder)
    tasks, endpoint = folder / TASKS_FILE, folder / ENDPOINT_FILE
    tasks.write_text(_tasks(hashes))
    for name in (ENDPOINT_FILE, MEASURED_FILE):
        (folder / name).write_text(files(__package__).joinpath(name).read_text())
    return tasks, endpoint


def build_models(folder: Path) -> dict[str, str]:
    """SHA-256 by model name (`TASK-VARIANT`). Raises WeightsMissing."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    weights = read_weights()
    builders: dict[str, Callable[[], bytes]] = {
        **{f"detect-{name}": partial(build_detector, weights[DETECTOR], side) for name, side in DETECTOR_SIDES.items()},
        f"orient-{CLASSIFIER}": partial(build_classifier, weights[CLASSIFIER_FILE]),
        **{f"recognise-{name}": partial(build_recogniser, weights[RECOGNISER], width) for name, width in RECOGNISER_WIDTHS.items()},
    }
    hashes: dict[str, str] = {}
    for name, builder in builders.items():
        data = builder()
        (folder / "models" / f"{name}.onnx").write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def _tasks(hashes: dict[str, str]) -> str:
    """The stated file with what differs from build to build filled in: hashes, and the accuracies of the measurement."""
    detectors, recognisers = stage_accuracies(read_measured())
    filled = files(__package__).joinpath(TEMPLATE_FILE).read_text()
    accuracies = {
        **{f"detect-{name}": accuracy for name, accuracy in detectors.items()},
        **{f"recognise-{name}": accuracy for name, accuracy in recognisers.items()},
    }
    for name, digest in hashes.items():
        filled = filled.replace(f"{{sha256:{name}}}", digest).replace(f"{{accuracy:{name}}}", f"{accuracies.get(name, 1.0):g}")
    return filled


def main() -> int:
    """Build the folder, and say what to do with it."""
    parser = argparse.ArgumentParser(description="Build the models, tasks and endpoint of the OCR example.")
    parser.add_argument("--output", type=Path, default=Path("ocr"), help="folder to write to (default: ./%(default)s)")
    folder: Path = parser.parse_args().output
    try:
        build(folder)
    except WeightsMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    print(f"headrace up --detach {folder}/*.yaml")
    return 0


if __name__ == "__main__":
    sys.exit(main())

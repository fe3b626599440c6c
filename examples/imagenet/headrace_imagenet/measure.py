"""Measures every rung without a broker: milliseconds a call, top-1 of the labelled photos, and how much of what the native size gets right."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headrace_imagenet.fetch import KEPT, MODELS, build
from headrace_imagenet.ladder import NATIVE, PUBLISHED, RUNGS
from headrace_imagenet.photos import decode_photo, middle, view
from headrace_imagenet.sources import labelled_photos

VIEWS = 9
"""Of each photo, beside its middle: cut elsewhere and mirrored, so that a rung is told from the next by more than 20 answers."""
SEED = 7
WARM_CALLS = 3


class Measured(NamedTuple):
    """What one rung came to."""

    p50_ms: float
    p95_ms: float
    top1: float
    """Of the photos' middles."""
    top1_views: float
    """Of all views."""


def read_views(folder: Path, views: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(photos' middles, then all other views; the class of each). Raises FilesMissing."""
    labelled = [(decode_photo(file), label) for file, label in labelled_photos(folder / KEPT)]
    random = np.random.default_rng(SEED)
    seen = [middle(photo) for photo, _ in labelled]
    seen += [view(photo, random) for _ in range(views) for photo, _ in labelled]
    return np.stack(seen), np.tile([label for _, label in labelled], views + 1)


def measure(model: Path, images: NDArray[np.uint8], classes: NDArray[np.int64], photos: int, threads: int) -> Measured:
    """One rung, an image a call; the first `photos` of the images are the middles."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for _ in range(WARM_CALLS):
        session.run(None, {"image": images[:1]})
    right: list[bool] = []
    spent_ms: list[float] = []
    for image, label in zip(images, classes, strict=True):
        began_s = time.perf_counter()
        (probabilities,) = session.run(None, {"image": image[None]})
        spent_ms.append((time.perf_counter() - began_s) * 1e3)
        right.append(int(probabilities[0].argmax()) == int(label))
    p50_ms, p95_ms = (float(value) for value in np.percentile(spent_ms, (50, 95)))
    return Measured(p50_ms, p95_ms, float(np.mean(right[:photos])), float(np.mean(right)))


def supported(measured: dict[str, Measured]) -> dict[str, float]:
    """By rung: the published accuracy of its weights, times its part of what their native size gets right; never above the published one."""
    return {
        rung.name: PUBLISHED[rung.weights] * min(measured[rung.name].top1_views / measured[NATIVE[rung.weights]].top1_views, 1.0) for rung in RUNGS
    }


def table(measured: dict[str, Measured]) -> str:
    """As `main` prints it."""
    rows: list[Sequence[str]] = [("rung", "p50 ms", "p95 ms", "top-1 photos", "top-1 views", "supported", "declared")]
    estimates = supported(measured)
    for rung in RUNGS:
        one = measured[rung.name]
        figures = (one.p50_ms, one.p95_ms, one.top1, one.top1_views, estimates[rung.name], rung.accuracy)
        rows.append((rung.name, *(f"{figure:.3g}" for figure in figures)))
    return "\n".join("  ".join(cell.ljust(15) for cell in row).rstrip() for row in rows)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the ImageNet example's rungs.")
    parser.add_argument(
        "--models", type=Path, default=Path("imagenet"), help="folder of the models, built where it is missing (default: ./%(default)s)"
    )
    parser.add_argument("--views", type=int, default=VIEWS, help="of each photo beside its middle (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime (default: %(default)s)")
    arguments = parser.parse_args()
    build(arguments.models, lambda words: print(words, file=sys.stderr))
    images, classes = read_views(arguments.models, arguments.views)
    photos = len(images) // (arguments.views + 1)
    found = {rung.name: measure(arguments.models / MODELS / f"{rung.name}.onnx", images, classes, photos, arguments.threads) for rung in RUNGS}
    print(f"{photos} photos, {len(images)} views, {arguments.threads} thread(s)")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

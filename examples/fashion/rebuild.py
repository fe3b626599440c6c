"""Builds the models of this example again from Fashion-MNIST, and measures each on all 10,000 test images.

    python examples/fashion/rebuild.py --dataset DIR linear mlp128

`linear` and `mlp128` need numpy and onnx alone; the others need PyTorch as well, see README.md.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DATASET = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.286, 0.353
PIXELS, CLASSES = 28 * 28, 10
SAMPLE_IMAGES = 2_000
CALIBRATION_IMAGES = 256
Floats = NDArray[np.float32]


class Dataset(NamedTuple):
    """Images as uint8 N x 1 x 28 x 28, labels as uint8 N."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def read_dataset(folder: Path) -> Dataset:
    """The four files of Fashion-MNIST, as the Debian package dataset-fashion-mnist installs them."""

    def read(name: str, header_bytes: int) -> NDArray[np.uint8]:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header_bytes)

    return Dataset(
        read("train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28),
        read("train-labels-idx1-ubyte.gz", 8),
        read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28),
        read("t10k-labels-idx1-ubyte.gz", 8),
    )


class Dense:
    """A network of one or two dense layers, trained by momentum SGD with a rate that falls to zero."""

    batch = 128
    momentum = 0.9

    def __init__(self, hidden: int, rate: float, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._hidden = hidden
        self._rate = rate
        # A hidden layer is drawn after He et al.; a single layer is convex and starts at zero.
        self.weights = [*self._layer(PIXELS, hidden), *self._layer(hidden, CLASSES)] if hidden else [*self._zeros(PIXELS, CLASSES)]

    def _layer(self, size_in: int, size_out: int) -> tuple[Floats, Floats]:
        drawn = self._random.normal(0, (2 / size_in) ** 0.5, (size_in, size_out)).astype(np.float32)
        return drawn, np.zeros(size_out, np.float32)

    def _zeros(self, size_in: int, size_out: int) -> tuple[Floats, Floats]:
        return np.zeros((size_in, size_out), np.float32), np.zeros(size_out, np.float32)

    def train(self, images: NDArray[np.uint8], labels: NDArray[np.uint8], epochs: int) -> None:
        """All images in a new order in each epoch; the last incomplete batch is left out."""
        inputs = (images.reshape(-1, PIXELS).astype(np.float32) / 255 - MEAN) / DEVIATION
        targets = np.eye(CLASSES, dtype=np.float32)[labels]
        velocities = [np.zeros_like(weight) for weight in self.weights]
        steps, step = epochs * (len(inputs) // self.batch), 0
        for _ in range(epochs):
            order = self._random.permutation(len(inputs))
            for start in range(0, len(order) - self.batch + 1, self.batch):
                picked = order[start : start + self.batch]
                rate = self._rate * (1 - step / steps)
                for weight, velocity, gradient in zip(self.weights, velocities, self._gradients(inputs[picked], targets[picked]), strict=True):
                    velocity[...] = self.momentum * velocity - rate * gradient
                    weight[...] += velocity
                step += 1

    def _gradients(self, inputs: Floats, targets: Floats) -> list[Floats]:
        """Of the mean cross-entropy, in the order of the weights."""
        first = inputs @ self.weights[0] + self.weights[1]
        active = np.maximum(first, 0) if self._hidden else first
        scores = active @ self.weights[2] + self.weights[3] if self._hidden else first
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = (odds / odds.sum(axis=1, keepdims=True) - targets) / len(inputs)
        if not self._hidden:
            return [inputs.T @ error, error.sum(axis=0)]
        behind = (error @ self.weights[2].T) * (first > 0)
        return [inputs.T @ behind, behind.sum(axis=0), active.T @ error, error.sum(axis=0)]

    def to_onnx(self, name: str) -> onnx.ModelProto:
        """uint8 images in, probabilities out: scaling and softmax are in the model."""
        constants = [numpy_helper.from_array(weight, f"w{at}") for at, weight in enumerate(self.weights)]
        constants.append(numpy_helper.from_array(np.array(255 * MEAN, np.float32), "mean"))
        constants.append(numpy_helper.from_array(np.array(1 / (255 * DEVIATION), np.float32), "scale"))
        nodes = [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
            helper.make_node("Flatten", ["scaled"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "w0", "w1"], ["first"]),
        ]
        if self._hidden:
            nodes += [helper.make_node("Relu", ["first"], ["active"]), helper.make_node("Gemm", ["active", "w2", "w3"], ["scores"])]
        nodes.append(helper.make_node("Softmax", [nodes[-1].output[0]], ["probs"], axis=1))
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, 28, 28])],
            [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", CLASSES])],
            constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def build_linear(dataset: Dataset, file: Path) -> None:
    """One dense layer, 3 epochs."""
    _build_dense("linear", dataset, file, Dense(hidden=0, rate=0.01), epochs=3)


def build_mlp128(dataset: Dataset, file: Path) -> None:
    """128 hidden units, 6 epochs."""
    _build_dense("mlp128", dataset, file, Dense(hidden=128, rate=0.1), epochs=6)


def _build_dense(name: str, dataset: Dataset, file: Path, network: Dense, epochs: int) -> None:
    network.train(dataset.train_images, dataset.train_labels, epochs)
    onnx.save(network.to_onnx(name), file)


def _build_convolutional(name: str) -> Callable[[Dataset, Path], None]:
    def build(dataset: Dataset, file: Path) -> None:
        # PyTorch takes seconds to import and is not needed for the dense networks.
        from convolutional import build_variant  # noqa: PLC0415

        build_variant(name, dataset, file)

    return build


BUILDERS: dict[str, Callable[[Dataset, Path], None]] = {
    "linear": build_linear,
    "mlp128": build_mlp128,
    **{name: _build_convolutional(name) for name in ("cnn32-int8", "resnet", "resnet-int8", "wide")},
}


def measure(file: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Top-1 accuracy."""
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    right = 0
    for start in range(0, len(images), 100):
        (probabilities,) = session.run(["probs"], {"image": images[start : start + 100]})
        right += int((np.asarray(probabilities).argmax(axis=1) == labels[start : start + 100]).sum())
    return right / len(images)


def main() -> int:
    """Build the variants named on the command line (all where none is), one line of results each."""
    parser = argparse.ArgumentParser(description="Build the models of the fashion example again.")
    parser.add_argument("variants", nargs="*", help=f"any of {', '.join(BUILDERS)} (all where none is named)")
    parser.add_argument("--dataset", type=Path, default=DATASET, help="folder of the four Fashion-MNIST files (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("fashion-models"), help="folder to write to (default: ./%(default)s)")
    parser.add_argument("--sample", action="store_true", help="write test-2000.npz and train-256.npz, the first images of each part, too")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.variants if name not in BUILDERS]
    if unknown:
        parser.error(f"unknown variant {', '.join(unknown)}: known are {', '.join(BUILDERS)}")
    if not arguments.dataset.is_dir():
        parser.error(f"{arguments.dataset} is not a folder: install the Debian package dataset-fashion-mnist, or say --dataset")
    dataset = read_dataset(arguments.dataset)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.sample:
        sample = {"images": dataset.test_images[:SAMPLE_IMAGES], "labels": dataset.test_labels[:SAMPLE_IMAGES]}
        np.savez_compressed(arguments.output / "test-2000.npz", **sample)
        np.savez_compressed(arguments.output / "train-256.npz", images=dataset.train_images[:CALIBRATION_IMAGES])
    for name in arguments.variants or BUILDERS:
        started = time.perf_counter()
        file = arguments.output / f"{name}.onnx"
        BUILDERS[name](dataset, file)
        accuracy = measure(file, dataset.test_images, dataset.test_labels)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(f"{name}: accuracy {accuracy:.4f}, sha256 {digest}, {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

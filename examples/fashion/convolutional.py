"""The convolutional variants of this example: training with PyTorch, export to ONNX, and static quantisation to int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rebuild import CLASSES, DEVIATION, MEAN, Dataset
from torch import Tensor, nn

BATCH = 256
CALIBRATION_IMAGES, CALIBRATION_BATCH = 1_000, 100


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    """3 x 3, batch-normalised, rectified."""
    return [nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]


class Residual(nn.Module):
    """Two convolutions beside a straight path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.path = nn.Sequential(*convolution(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs + self.path(inputs))


class Served(nn.Module):
    """What is exported: uint8 images in, probabilities out."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.body((image.float() / 255 - MEAN) / DEVIATION), 1)


def head(channels: int, dropout: float) -> list[nn.Module]:
    """Mean over the image, then one dense layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, CLASSES)]


def cnn32() -> nn.Module:
    """Three plain convolutions."""
    return nn.Sequential(*convolution(1, 32), nn.MaxPool2d(2), *convolution(32, 64), nn.MaxPool2d(2), *convolution(64, 96), *head(96, 0.0))


def resnet() -> nn.Module:
    """Two residual blocks."""
    layers = [*convolution(1, 32), *convolution(32, 64, 2), Residual(64), *convolution(64, 128, 2), Residual(128)]
    return nn.Sequential(*layers, *head(128, 0.1))


def wide() -> nn.Module:
    """Three residual blocks, 1.2 million parameters."""
    layers = [*convolution(1, 32), *convolution(32, 96, 2), Residual(96), Residual(96), *convolution(96, 192, 2), Residual(192)]
    return nn.Sequential(*layers, *head(192, 0.2))


class Phase(NamedTuple):
    """One part of a training: `augment` changes a batch of pixels (0..255) and knows how much of the phase is over."""

    epochs: int
    rate: float
    smoothing: float
    augment: Callable[[Tensor, float], Tensor]
    plain_descent: bool = False
    """Momentum SGD under a cosine instead of AdamW under one cycle."""


def flip_batches(pixels: Tensor, done: float) -> Tensor:
    """Every other batch is mirrored."""
    del done
    return pixels.flip(3) if torch.rand(1) < 0.5 else pixels


def shift_flip_and_erase(pixels: Tensor, done: float) -> Tensor:
    """Shifts of two pixels, mirrored images, and until 80 % of the phase a rectangle of the mean colour over every other image."""
    down, right = torch.randint(0, 5, (2,)).tolist()
    pixels = nn.functional.pad(pixels, (2, 2, 2, 2))[:, :, down : down + 28, right : right + 28].clone()
    mirrored = torch.rand(len(pixels)) < 0.5
    pixels[mirrored] = pixels[mirrored].flip(3)
    if done >= 0.8:
        return pixels
    sizes, starts = torch.randint(4, 12, (len(pixels), 2)), torch.randint(0, 24, (len(pixels), 2))
    places = torch.arange(28)
    inside = [(places >= starts[:, axis, None]) & (places < (starts + sizes)[:, axis, None]) for axis in (0, 1)]
    chosen = torch.rand(len(pixels)) < 0.5
    erased = inside[0][:, :, None] & inside[1][:, None, :] & chosen[:, None, None]
    return pixels.masked_fill(erased[:, None], 255 * MEAN)


class Recipe(NamedTuple):
    """A network and how it is trained."""

    network: Callable[[], nn.Module]
    phases: tuple[Phase, ...]
    seed: int = 0


RECIPES = {
    "cnn32": Recipe(cnn32, (Phase(5, 0.006, 0.05, flip_batches),)),
    "resnet": Recipe(resnet, (Phase(6, 0.006, 0.05, flip_batches),)),
    "wide": Recipe(wide, (Phase(5, 0.006, 0.05, flip_batches), Phase(12, 0.06, 0.1, shift_flip_and_erase, plain_descent=True)), seed=1),
}


def train(body: nn.Module, phase: Phase, images: Tensor, labels: Tensor) -> None:
    """One phase over all images; bfloat16 inside, which halves the time and costs nothing in accuracy."""
    steps = phase.epochs * (len(images) // BATCH)
    if phase.plain_descent:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(body.parameters(), lr=phase.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule: torch.optim.lr_scheduler.LRScheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    else:
        optimizer = torch.optim.AdamW(body.parameters(), lr=phase.rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.rate, steps)
    body.train()
    for step, picked in enumerate(batches(len(images), phase.epochs)):
        pixels = phase.augment(images[picked].float(), step / steps)
        inputs = ((pixels / 255 - MEAN) / DEVIATION).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            scores = body(inputs)
        loss = nn.functional.cross_entropy(scores.float(), labels[picked], label_smoothing=phase.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    body.eval()


def batches(count: int, epochs: int) -> Iterator[Tensor]:
    """Places of the images of each batch; a new order in each epoch, the last incomplete batch left out."""
    for _ in range(epochs):
        order = torch.randperm(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


def export(body: nn.Module, file: Path) -> None:
    """One ONNX file with a free number of rows."""
    served = Served(body).to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    rows = {"image": {0: "N"}, "probs": {0: "N"}}
    torch.onnx.export(served, (example,), str(file), input_names=["image"], output_names=["probs"], dynamic_axes=rows, opset_version=17, dynamo=False)


class Calibration(CalibrationDataReader):
    """Training images, from which the ranges of activations are taken."""

    def __init__(self, images: NDArray) -> None:
        self._batches = iter([images[start : start + CALIBRATION_BATCH].copy() for start in range(0, CALIBRATION_IMAGES, CALIBRATION_BATCH)])

    def get_next(self) -> dict[str, NDArray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def quantize(source: Path, target: Path, images: NDArray) -> None:
    """Static QDQ quantisation: weights int8 by channel, activations uint8."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Calibration(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Add", "Gemm"],
        )


def build_variant(name: str, dataset: Dataset, file: Path) -> None:
    """Train and export a variant; an `-int8` one from the float model beside it, which is built first where it is missing."""
    base = name.removesuffix("-int8")
    model = file if base == name else file.with_name(f"{base}.onnx")
    if base == name or not model.exists():
        recipe = RECIPES[base]
        torch.manual_seed(recipe.seed)
        body = recipe.network().to(memory_format=torch.channels_last)
        images, labels = torch.from_numpy(dataset.train_images.copy()), torch.from_numpy(dataset.train_labels.astype("int64"))
        for phase in recipe.phases:
            train(body, phase, images, labels)
        export(body, model)
    if base != name:
        quantize(model, file, dataset.train_images)

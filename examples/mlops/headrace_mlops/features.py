"""What detectors look at: a few figures of each image, and of each answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
INPUT_FEATURES = ("brightness", "contrast", "slant", "elongation")
ANSWER_FEATURES = ("confidence",)


def input_features(images: Array) -> dict[str, Array]:
    """Of images [n, 1, h, w] with values of any range: mean and standard deviation of the pixels, and where the bright ones lie.

    `slant` is the covariance of row and column of the bright pixels, in their standard deviations: a picture that is turned has another one.
    `elongation` is the logarithm of how much higher than wide they are.
    """
    pixels = np.asarray(images, np.float64).reshape(len(images), *images.shape[-2:])
    height, width = pixels.shape[1:]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    weights = pixels / np.maximum(pixels.sum(axis=(1, 2), keepdims=True), 1e-9)
    row = (weights * rows).sum(axis=(1, 2))
    column = (weights * columns).sum(axis=(1, 2))
    row_spread = (weights * rows**2).sum(axis=(1, 2)) - row**2 + 1e-6
    column_spread = (weights * columns**2).sum(axis=(1, 2)) - column**2 + 1e-6
    together = (weights * rows * columns).sum(axis=(1, 2)) - row * column
    return {
        "brightness": pixels.mean(axis=(1, 2)) / 255.0,
        "contrast": pixels.std(axis=(1, 2)) / 255.0,
        "slant": together / np.sqrt(row_spread * column_spread),
        "elongation": np.log(row_spread / column_spread) / 2.0,
    }


def answer_features(scores: Array) -> dict[str, Array]:
    """Of class probabilities [n, classes]: how sure the model is."""
    return {"confidence": np.asarray(scores, np.float64).max(axis=-1)}

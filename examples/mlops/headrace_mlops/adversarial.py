"""Finds images that somebody has pushed over a decision boundary: feature squeezing, with a squeezer that fits these pictures.

Xu, Evans, Qi 2018 (Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, NDSS), section 3: squeeze the input so that what
no human sees is gone, and compare. Their bit-depth squeezer for grey pictures rounds; this one keeps the levels of what is lit and sets to black
what is nearly black, because the pictures' background is: a step of the gradient's sign lights half of it. Two distances between an image and what
is left of it are looked at: how far the logits move, and how many pixels were squeezed out. Who knows the detector can leave the background alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_mlops.dense_network import DenseNetwork

Array = NDArray[Any]
NEARLY_BLACK = 40
"""Of 255."""
PARTS = {"logits": 0.2, "pixels": 0.8}
"""Of the false alarms that are allowed, by distance."""


def squeezed(images: Array) -> Array:
    """What is nearly black becomes black."""
    return np.where(np.asarray(images) < NEARLY_BLACK, 0, images)


class SqueezingDetector:
    """Thresholds come from clean images: each distance is above its own for its part of the false alarms that are allowed."""

    def __init__(self, network: DenseNetwork, clean: Array, *, false_alarms: float = 0.045) -> None:
        """`false_alarms`: part of `clean` that may be flagged at most; a little below what is wanted, as other clean images differ."""
        self._network = network
        self._limits = {name: float(np.quantile(values, 1.0 - false_alarms * PARTS[name])) for name, values in self.distances(clean).items()}

    def distances(self, images: Array) -> dict[str, Array]:
        """By name: `logits` (largest change of one) and `pixels` (part of them that squeezing changes), for each image."""
        left = squeezed(images)
        moved = np.abs(self._network.logits(images) - self._network.logits(left)).max(axis=1)
        return {"logits": moved, "pixels": (np.asarray(images) != left).reshape(len(images), -1).mean(axis=1)}

    def scores(self, images: Array) -> Array:
        """How far over its threshold the larger distance is: above 1 is flagged."""
        return np.max([values / max(self._limits[name], 1e-9) for name, values in self.distances(images).items()], axis=0)

    def flags(self, images: Array) -> NDArray[np.bool_]:
        """Which images look attacked."""
        return self.scores(images) > 1.0

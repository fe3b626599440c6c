"""Transforms of images in Python, as a stage of a graph runs them on a CPU worker."""

from __future__ import annotations

from typing import Any

import numpy as np


def stretch_contrast(inputs: dict[str, np.ndarray], parameters: dict[str, Any]) -> dict[str, np.ndarray]:
    """Each image of `image` (UINT8 [rows, 1, 28, 28]) between the parameters `low` (0) and `high` (255); flat images stay as they are."""
    low, high = float(parameters.get("low", 0)), float(parameters.get("high", 255))
    image = inputs["image"].astype(np.float32)
    least = image.min(axis=(1, 2, 3), keepdims=True)
    span = image.max(axis=(1, 2, 3), keepdims=True) - least
    stretched = low + (image - least) * ((high - low) / np.maximum(span, 1))
    return {"image": np.where(span > 0, stretched, image).round().astype(np.uint8)}

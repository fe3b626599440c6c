"""What happens to images in the world: a camera is turned, the light changes. Images are UINT8, rows first: [n, 1, 28, 28]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import rotate

Images = NDArray[np.uint8]
DEGREES = 25.0
BRIGHTER = 1.5
SHIFTS = ("rotation", "brightness")


def rotated(images: Images, degrees: float = DEGREES) -> Images:
    """Turned around their middle; what comes in from outside is black."""
    return rotate(images, degrees, axes=(3, 2), reshape=False, order=1, mode="constant", cval=0.0).astype(np.uint8)


def brightened(images: Images, factor: float = BRIGHTER) -> Images:
    """Every pixel times `factor`, as far as the range goes."""
    return np.clip(images.astype(np.float32) * factor, 0.0, 255.0).astype(np.uint8)


def shifted(images: Images, shift: str) -> Images:
    """By the name of the shift. Raises ValueError for another name."""
    if shift not in SHIFTS:
        raise ValueError(f"unknown shift {shift!r}: one of {', '.join(SHIFTS)}")
    return rotated(images) if shift == "rotation" else brightened(images)

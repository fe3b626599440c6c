"""Photos as the variants take them: decoded, cut to their middle as EfficientNet's evaluation does, 260 x 260 pixels, as planes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace_imagenet.network import CHROMA_SIDE, PHOTO_SIDE

BORDER = 32
"""Of a square of PHOTO_SIDE + BORDER, the middle is seen."""


def decode_photo(file: bytes) -> Image.Image:
    """Three channels."""
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB")


def middle(image: Image.Image) -> NDArray[np.uint8]:
    """(PHOTO_ROWS, PHOTO_SIDE) from the middle of a photo of any size."""
    side = min(image.size) * PHOTO_SIDE / (PHOTO_SIDE + BORDER)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _cut(image, left, top, side)


def random_cuts(image: Image.Image, count: int, random: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Squares of 0.4 to 1 of the short side, anywhere in the photo."""
    cuts: list[NDArray[np.uint8]] = []
    for _ in range(count):
        side = min(image.size) * float(random.uniform(0.4, 1.0))
        left, top = (float(random.uniform(0, length - side)) for length in image.size)
        cuts.append(_cut(image, left, top, side))
    return cuts


def view(image: Image.Image, random: np.random.Generator) -> NDArray[np.uint8]:
    """A large square of the photo, mirrored every other time: what is on it stays what it is."""
    side = min(image.size) * float(random.uniform(0.7, 1.0))
    left, top = (float(random.uniform(0, length - side)) for length in image.size)
    return _cut(image, left, top, side, mirrored=random.random() < 0.5)


def _cut(image: Image.Image, left: float, top: float, side: float, *, mirrored: bool = False) -> NDArray[np.uint8]:
    resized = image.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return planes_of(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else resized)


def planes_of(image: Image.Image) -> NDArray[np.uint8]:
    """I420 of PHOTO_SIDE x PHOTO_SIDE pixels: brightness, then blue and red difference, each the mean of two by two."""
    brightness, blue, red = image.convert("YCbCr").split()
    small = [plane.resize((CHROMA_SIDE, CHROMA_SIDE), Image.Resampling.BOX) for plane in (blue, red)]
    flat = np.concatenate([np.asarray(plane, np.uint8).ravel() for plane in (brightness, *small)])
    return flat.reshape(-1, PHOTO_SIDE)

"""The fixed shapes that the stages agree on, and how a page and its lines are fitted into them."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

PAGE_SIDE = 800
"""Detectors see a grey square of this side. Fixed, so that a variant has one latency and runs on an NPU; 640 KB, so that it fits a record."""
LINE_HEIGHT = 48
LINE_WIDTH = 960
"""Lines are padded to this width; longer ones are squeezed into it."""
LINE_STEPS = LINE_WIDTH // 8
"""Characters that the widest recogniser can tell in a line; narrower ones are padded to as many."""
LINES_MAX = 40
"""46 KB each: what fits a record of 2 MiB."""
PAGE_PIXELS_MAX = 40_000_000
"""A megabyte of PNG can hold a thousand times as much: looked at before anything is decompressed."""
FORMATS = ("PNG", "JPEG")
NEUTRAL = 128
"""What lines are padded with: zero once normalised, as the recognisers were trained."""


def read_page(image: NDArray[np.object_]) -> Pixels:
    """Grey pixels (height, width) of a PNG or JPEG file in a BYTES tensor of one element. Raises ValueError for anything else."""
    if image.size != 1:
        raise ValueError(f"`image` has {image.size} elements: a request is one page")
    try:
        with Image.open(io.BytesIO(image.flat[0]), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > PAGE_PIXELS_MAX:
                raise ValueError(f"the page has {width} x {height} pixels, the limit is {PAGE_PIXELS_MAX}")
            return np.asarray(opened.convert("L"))
    except UnidentifiedImageError:
        raise ValueError(f"`image` is neither {' nor '.join(FORMATS)}") from None


def page_scale(width: int, height: int) -> float:
    """By how much a page is shrunk to fit the square; small ones are not enlarged."""
    return min(1.0, PAGE_SIDE / max(width, height))


def fit_page(page: Pixels) -> Pixels:
    """The page in the upper left corner of the square; the rest has the page's usual grey, so that no edge looks like text."""
    height, width = page.shape
    scale = page_scale(width, height)
    fitted = page
    if scale < 1:
        size = (min(max(round(width * scale), 1), PAGE_SIDE), min(max(round(height * scale), 1), PAGE_SIDE))
        fitted = _pixels(cv2.resize(page, size, interpolation=cv2.INTER_AREA))
    square = np.full((PAGE_SIDE, PAGE_SIDE), int(np.median(fitted)), np.uint8)
    square[: fitted.shape[0], : fitted.shape[1]] = fitted
    return square


def cut_line(page: Pixels, corners: Floats) -> Pixels:
    """The quadrilateral (4, 2: clockwise from the upper left) straightened to LINE_HEIGHT, padded to LINE_WIDTH; upright boxes are laid down."""
    width, height = _side(corners, 0, 1), _side(corners, 0, 3)
    if height >= 1.5 * width:
        corners, width, height = np.roll(corners, -1, axis=0), height, width
    length = int(np.clip(np.ceil(LINE_HEIGHT * width / max(height, 1.0)), LINE_HEIGHT // 4, LINE_WIDTH))
    target = np.array([[0, 0], [length, 0], [length, LINE_HEIGHT], [0, LINE_HEIGHT]], np.float32)
    matrix = cv2.getPerspectiveTransform(np.ascontiguousarray(corners, np.float32), target)
    cut = cv2.warpPerspective(page, matrix, (length, LINE_HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    line = np.full((LINE_HEIGHT, LINE_WIDTH), NEUTRAL, np.uint8)
    line[:, :length] = cut
    return line


def _side(corners: Floats, start: int, end: int) -> float:
    """Mean length of a side and of the one opposite."""
    opposite = corners[(start + 2) % 4] - corners[(end + 2) % 4]
    return float(np.linalg.norm(corners[start] - corners[end]) + np.linalg.norm(opposite)) / 2


def _pixels(array: Any) -> Pixels:
    return np.asarray(array, np.uint8)

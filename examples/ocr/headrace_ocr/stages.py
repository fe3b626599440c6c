"""The Python tasks of the graph: a file to pixels, a probability map to lines, code points to text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace_ocr.layout import LINE_HEIGHT, LINE_WIDTH, LINES_MAX, PAGE_SIDE, Floats, Pixels, cut_line, fit_page, page_scale, read_page

Tensors = Mapping[str, NDArray[Any]]

TEXT_THRESHOLD = 0.3
"""A pixel of the map from here on is text."""
BOX_THRESHOLD = 0.5
"""A region is a line where its mean probability is at least this."""
GROWTH = 1.6
"""The detector is trained on shrunk regions: each grows by area x this / perimeter."""
SMALLEST_SIDE = 3
REGIONS_MAX = 1_000


def decode(inputs: Tensors, parameters: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """`image` (BYTES [1], PNG or JPEG) to `page` (UINT8 [1, PAGE_SIDE, PAGE_SIDE], grey)."""
    return {"page": fit_page(read_page(inputs["image"]))[None]}


def cut(inputs: Tensors, parameters: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """`image` and `map` (UINT8 [1, side, side]: probability of text x 255) to the page's lines in reading order.

    Gives `lines` (UINT8 [n, LINE_HEIGHT, LINE_WIDTH]) and `boxes` (FP32 [n, 4, 2]: corners in pixels of the page, clockwise).
    Parameters: `text_threshold`, `box_threshold`, `growth`. Raises ValueError where there are more than LINES_MAX.
    """
    page = read_page(inputs["image"])
    boxes = find_boxes(inputs["map"][0], page.shape[1], page.shape[0], parameters)
    if len(boxes) > LINES_MAX:
        raise ValueError(f"the page has {len(boxes)} lines, the limit is {LINES_MAX}")
    lines = np.empty((len(boxes), LINE_HEIGHT, LINE_WIDTH), np.uint8)
    for at, corners in enumerate(boxes):
        lines[at] = cut_line(page, corners)
    return {"lines": lines, "boxes": boxes}


def text(inputs: Tensors, parameters: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """`codes` (INT32 [n, LINE_STEPS]: code points, 0 for none), `confidence`, `upside_down` and `boxes` to `text` (BYTES [n]) and what belongs to it.

    Where most lines are upside down the page is, and is read from its other end.
    """
    codes, turned = inputs["codes"], inputs["upside_down"]
    lines = np.empty(len(codes), object)
    lines[:] = ["".join(chr(code) for code in row if code).encode() for row in codes.tolist()]
    step = -1 if len(turned) and float(np.mean(turned > 0.5)) > 0.5 else 1
    return {"text": lines[::step], **{name: np.ascontiguousarray(inputs[name][::step]) for name in ("confidence", "boxes")}}


def find_boxes(found: Pixels, width: int, height: int, parameters: Mapping[str, Any]) -> Floats:
    """Corners (n, 4, 2) in pixels of a page of this size, in reading order.

    The post-processing of DBNet (Liao et al., Real-time Scene Text Detection with Differentiable Binarization, 2020), rectangles for polygons.
    """
    text_threshold = float(parameters.get("text_threshold", TEXT_THRESHOLD)) * 255
    box_threshold = float(parameters.get("box_threshold", BOX_THRESHOLD)) * 255
    growth = float(parameters.get("growth", GROWTH))
    regions, _ = cv2.findContours((found > text_threshold).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes: list[Floats] = []
    for region in regions[:REGIONS_MAX]:
        centre, (long, short), angle = cv2.minAreaRect(region)
        if min(long, short) < SMALLEST_SIDE or _mean_within(found, region) < box_threshold:
            continue
        grown = long * short * growth / (long + short)
        boxes.append(_clockwise(cv2.boxPoints((centre, (long + grown, short + grown), angle))))
    if not boxes:
        return np.zeros((0, 4, 2), np.float32)
    # A map's pixel k covers the square's pixels k / ratio to (k + 1) / ratio, as the resize inside the detector takes them.
    ratio = found.shape[0] / PAGE_SIDE
    corners = ((np.stack(boxes) + 0.5) / ratio - 0.5) / page_scale(width, height)
    corners[..., 0] = corners[..., 0].clip(0, width - 1)
    corners[..., 1] = corners[..., 1].clip(0, height - 1)
    return corners[_reading_order(corners)].astype(np.float32)


def _mean_within(found: Pixels, region: NDArray[Any]) -> float:
    left, top, width, height = cv2.boundingRect(region)
    mask = np.zeros((height, width), np.uint8)
    cv2.drawContours(mask, [region - np.array([left, top], region.dtype)], -1, 1, -1)
    return float(found[top : top + height, left : left + width][mask > 0].mean())


def _clockwise(corners: NDArray[Any]) -> Floats:
    """From the upper left corner."""
    by_x = corners[np.argsort(corners[:, 0])]
    left, right = by_x[:2], by_x[2:]
    left, right = left[np.argsort(left[:, 1])], right[np.argsort(right[:, 1])]
    return np.array([left[0], right[0], right[1], left[1]], np.float32)


def _reading_order(corners: NDArray[Any]) -> list[int]:
    """Boxes whose centres lie within half a height of each other stand in one line and are read from the left."""
    centres, heights = corners.mean(axis=1), np.linalg.norm(corners[:, 0] - corners[:, 3], axis=1)
    ordered: list[int] = []
    line: list[int] = []
    for at in np.argsort(centres[:, 1], kind="stable").tolist():
        if line and centres[at, 1] - centres[line[0], 1] > heights[line[0]] / 2:
            ordered += sorted(line, key=lambda box: float(centres[box, 0]))
            line = []
        line.append(at)
    return ordered + sorted(line, key=lambda box: float(centres[box, 0]))

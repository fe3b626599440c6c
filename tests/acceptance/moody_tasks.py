"""Python tasks and a combiner for graphs that go wrong: what they do is said by the stage's parameters, or by a pixel of the request."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

PAUSE_S = 0.3
PAUSES = 255
"""The first pixel of an image whose request takes its time."""


def moody(inputs: dict[str, np.ndarray], parameters: dict[str, Any]) -> dict[str, np.ndarray]:
    """`image` as it came, unless the parameter `do` says otherwise."""
    do = parameters.get("do")
    if do == "raise":
        raise LookupError("no garment in sight")
    if do == "hang":
        time.sleep(3_600)
    if do == "die":
        os._exit(86)
    if inputs["image"].ravel()[0] == PAUSES:
        time.sleep(PAUSE_S)
    return {"image": inputs["image"]}


def broken(tensors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """A combiner that does not combine."""
    raise ArithmeticError(f"{len(tensors)} members are too many for me")

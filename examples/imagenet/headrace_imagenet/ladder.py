"""The rungs: weights, the side that the network sees, precision, and the accuracy that floors are compared with."""

from __future__ import annotations

from typing import NamedTuple

TASK = ENDPOINT = "imagenet"
PUBLISHED = {"lite0": 0.751, "lite1": 0.767, "lite2": 0.776}
"""Top-1 on ImageNet's validation set at the native size, as the authors of EfficientNet-Lite state it."""

PUBLISHED_INT8 = {"lite0": 0.744}
"""As they state it of their own int8 form."""


class Rung(NamedTuple):
    """One variant."""

    name: str
    weights: str
    side: int
    accuracy: float
    """Declared. At the native size: as published. Below it: that, times how often the rung is right where `measure` looks, over how often its
    weights' native size is."""
    int8: bool = False


RUNGS = (
    Rung("lite0-96", "lite0", 96, 0.43),
    Rung("lite0-128-int8", "lite0", 128, 0.62, int8=True),
    Rung("lite0-160", "lite0", 160, 0.72),
    Rung("lite0-224-int8", "lite0", 224, PUBLISHED_INT8["lite0"], int8=True),
    Rung("lite0-224", "lite0", 224, PUBLISHED["lite0"]),
    Rung("lite1-240", "lite1", 240, PUBLISHED["lite1"]),
    Rung("lite2-260", "lite2", 260, PUBLISHED["lite2"]),
)
BEST = RUNGS[-1]
NATIVE = {"lite0": "lite0-224", "lite1": "lite1-240", "lite2": "lite2-260"}
"""By weights: the rung that is theirs."""

"""How lanes are divided among sets of classes that share some of them: progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEEDED_MS_MIN = 1e-6
"""Whoever asks for nothing has what nobody else wants."""
ROUNDING = 1e-12
ROUNDS_MAX = 8
"""What is left to others after so many rounds is little."""
Floats = NDArray[np.float64]


def fill(hosting: Floats, lanes: Floats, room_ms: Floats, least_ms: Floats, most_ms: Floats) -> Floats:
    """The part of each kind of lane that each set gets; those of a kind add up to one.

    `hosting`: sets x kinds, 1 where a set is answered by a kind; `lanes` and `room_ms`: number and computing time by kind; `least_ms` and
    `most_ms`: what each set needs with its cheapest and its most accurate answers. A kind is theirs who are answered by it in proportion to
    what they need of a lane at least; what some cannot use even for their most accurate answers is left to the others.
    """
    room_ms = np.maximum(room_ms, 0.0)
    least_ms, most_ms = np.maximum(least_ms, NEEDED_MS_MIN), np.maximum(most_ms, NEEDED_MS_MIN)
    wanted = hosting * (least_ms / np.maximum(hosting @ lanes, 1.0))[:, None]
    parts, free, short = np.zeros_like(hosting), np.ones(len(lanes)), np.ones(len(hosting), np.bool_)
    found = wanted
    for _ in range(ROUNDS_MAX):
        asked = wanted * short[:, None]
        found = asked * (free / np.maximum(asked.sum(axis=0), ROUNDING))
        has_ms = found @ room_ms
        full = short & (most_ms <= has_ms)
        if not full.any():
            break
        parts[full] = found[full] * (most_ms[full] / np.maximum(has_ms[full], ROUNDING))[:, None]
        free = np.maximum(free - parts[full].sum(axis=0), 0.0)
        short &= ~full
    parts[short] = found[short]
    # Where nobody needs what is left, it is theirs whose lane it is: a burst may.
    return parts / np.maximum(parts.sum(axis=0), ROUNDING)

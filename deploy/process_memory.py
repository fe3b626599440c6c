"""How a process that lives long and makes much that is short-lived uses Python's garbage collector."""

from __future__ import annotations

import gc

COLLECTOR_THRESHOLDS = (20_000, 10, 20)
"""Nearly all that a request leaves behind is counted away; the default would look for cycles 100 times a second."""


def settle_memory() -> None:
    """What was loaded stays until the end: the garbage collector need not walk through it again and again while requests wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)

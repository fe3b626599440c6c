"""The rows of a for_each while they run."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphs.state import Scope
from graphs.tensor import Tensor


@dataclass(eq=False, slots=True)
class Rows:
    """How far the rows of a for_each are."""

    count: int
    factors: dict[str, float]
    """What all rows count: of what the for_each goes over, and of nodes outside it."""
    scopes: dict[int, Scope] = field(default_factory=dict[int, Scope])
    """Rows that still run."""
    tensors: dict[int, dict[str, Tensor]] = field(default_factory=dict[int, dict[str, Tensor]])
    """Rows that are there."""
    accuracy: float = 0.0
    """Sum over the rows that are there."""
    failed: int = 0

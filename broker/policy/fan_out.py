"""How many rows each for_each of an endpoint turns out to have: learned, published, and used in stage budgets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from graphs.commands import Command, RunStage
from graphs.compiled import Graph
from graphs.state import split_instance

KEPT = 256
"""Fan-outs remembered for each for_each."""
QUANTILE = 0.9
FIRST_GUESS = 4.0
"""Rows, until one has been seen."""


class FanOut:
    """Mean and upper quantile by endpoint and path of the for_each."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], deque[int]] = {}
        self._upper: dict[tuple[str, str], float] = {}

    def learn(self, endpoint: str, commands: Sequence[Command]) -> None:
        """Count the rows that one step of a request starts."""
        rows: dict[str, set[str]] = {}
        for command in commands:
            if isinstance(command, RunStage) and command.stage.over:
                rows.setdefault(command.stage.over[-1], set()).add(split_instance(command.instance)[1])
        for path, found in rows.items():
            if len(found) > 1:
                key = (endpoint, path)
                seen = self._seen.setdefault(key, deque(maxlen=KEPT))
                seen.append(len(found))
                self._upper[key] = float(np.quantile(seen, QUANTILE))

    def upper(self, endpoint: str, graph: Graph) -> Callable[[str], float]:
        """For planning: the upper quantile of rows by path of a for_each; a stage is taken to be needed by every request."""
        loops = {path for stage in graph.stages.values() for path in stage.over}
        return lambda path: self._upper.get((endpoint, path), FIRST_GUESS) if path in loops else 1.0

    def published(self) -> dict[str, tuple[float, float]]:
        """(mean, upper quantile) by `endpoint/path`."""
        return {f"{endpoint}/{path}": (float(np.mean(seen)), self._upper[endpoint, path]) for (endpoint, path), seen in self._seen.items()}

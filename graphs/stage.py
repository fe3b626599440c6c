"""A stage of a compiled graph: what runs on a worker."""

from __future__ import annotations

import msgspec

COMBINE_TASK = "headrace.combine"
"""The built-in Python task that merges what the members of an ensemble answered: inputs `0.probs`, `2.probs`, ... of those that did."""
COMBINE_VARIANT = "headrace.combine/combine"


class Stage(msgspec.Struct, frozen=True, eq=False):
    """One place in the graph where work is done; inside a for_each it runs once for each row."""

    path: str
    """Names down to it: `quick`, `lines/recognise`. An ensemble's combine stage has the ensemble's own path."""
    topic: str
    """The path with dots, for the topic's name."""
    task: str
    variants: tuple[str, ...]
    """Keys (`task/variant`) of the variants that may run it."""
    parameters: bytes
    """msgpack map for a Python task; empty: none."""
    inputs: dict[str, str]
    """Input of the task -> `node.tensor`, as the graph has it."""
    outputs: tuple[str, ...] | None
    """Outputs that somebody downstream uses; None: all."""
    answers: dict[str, str]
    """For the terminal record where this stage is the answer: answer name -> output name; empty: the outputs' own names."""
    model: bool
    """False for a Python task."""
    over: tuple[str, ...] = ()
    """Paths of the for_eaches around it, outermost first: what its fan-out is made of."""
    shadow: bool = False
    """Only the copies of shadows can need it."""

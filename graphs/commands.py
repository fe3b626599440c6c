"""What a run wants done."""

from __future__ import annotations

import msgspec

from graphs.stage import Stage
from graphs.tensor import Tensor
from schemas.terminal import PathStep


class RunStage(msgspec.Struct, frozen=True):
    """Give this instance of the stage to a worker."""

    instance: str
    stage: Stage
    tensors: dict[str, Tensor]
    """Named as the task's inputs."""
    request_inputs: dict[str, str]
    """Inputs of the task that are tensors of the request: input name -> the request's tensor name."""
    final: bool
    """Its outputs are the whole answer, and nobody else needs them: the worker may write the terminal record."""
    shadow: bool
    """Only a shadow's copy needs it: lowest priority, shed first."""


class Finish(msgspec.Struct, frozen=True):
    """The answer is there; the tensors have the answer's names."""

    tensors: list[Tensor]
    accuracy: float
    path: list[PathStep]


class Fail(msgspec.Struct, frozen=True):
    """There will be no answer."""

    code: str
    message: str
    stage: str | None


class Wake(msgspec.Struct, frozen=True):
    """Send `Woken` at this time (Unix ms)."""

    at_ms: float


class Cancel(msgspec.Struct, frozen=True):
    """Nobody needs these instances any more."""

    instances: tuple[str, ...]


class ShadowDone(msgspec.Struct, frozen=True):
    """A shadow's copy has answered, for {p}.tap.responses only; `node` is the shadow's path, `path` the copy's own steps."""

    node: str
    tensors: list[Tensor]
    accuracy: float
    path: list[PathStep]


Command = RunStage | Finish | Fail | Wake | Cancel | ShadowDone

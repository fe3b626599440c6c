"""What happens to a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from graphs.tensor import Tensor
from schemas.terminal import PathStep


class Started(msgspec.Struct, frozen=True):
    """The request has been read: the parameters in `Graph.fields` and the tensors in `Graph.request_tensors`, as far as it has them."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class StageDone(msgspec.Struct, frozen=True):
    """A worker computed an instance of a stage. May come before `Started`, while the log is read again."""

    instance: str
    tensors: Mapping[str, Tensor]
    variant: str
    accuracy: float
    step: PathStep
    finished_ms: float = 0.0


class StageFailed(msgspec.Struct, frozen=True):
    """An instance of a stage is lost for good: `code` of schemas/errors.py."""

    instance: str
    code: str
    message: str


class Woken(msgspec.Struct, frozen=True):
    """The time that a `Wake` named may have come."""


class Answered(msgspec.Struct, frozen=True):
    """The request's terminal record is in the log, whoever wrote it (the worker of a final stage, an expiry): only shadows go on."""


class Abandoned(msgspec.Struct, frozen=True):
    """The request's time is over: nothing goes on, not even a shadow."""


Event = Started | StageDone | StageFailed | Woken | Answered | Abandoned

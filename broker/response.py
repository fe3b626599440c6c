"""What a client gets back: the state of a request, and its answer with tensors as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from broker.store import State
from schemas.datatypes import Array
from schemas.errors import BadRequest, HeadraceError, RequestError, request_error
from schemas.tensors import decode_output
from schemas.terminal import COMPLETED, ErrorDetail, PathStep, Terminal, decode_terminal


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer of a request. Times are Unix milliseconds by the log's clock."""

    id: str
    outcome: str
    """`completed`, `expired`, `rejected` or `failed`."""
    endpoint: str = ""
    outputs: Mapping[str, Array] = {}
    """By name, the first axis counts rows; empty unless completed. BYTES are object arrays of `bytes`. Arrays may be read-only."""
    accuracy: float | None = None
    """Declared accuracy of what answered, in [0, 1]; None unless completed."""
    path: tuple[PathStep, ...] = ()
    """Each stage with the variant, the device that computed, and the time it waited and took."""
    error: ErrorDetail | None = None
    received_ms: int
    finished_ms: int
    deadline_ms: int | None = None
    attempts: int
    epoch: int = 0

    @property
    def completed(self) -> bool:
        return self.outcome == COMPLETED

    @property
    def latency_ms(self) -> int:
        """From the log's receipt of the request to the end of the last computation, or to the refusal."""
        return self.finished_ms - self.received_ms

    def raise_for_outcome(self) -> Response:
        """Itself where completed. Raises the RequestError of its error code (schemas/errors.py) otherwise."""
        if self.outcome == COMPLETED:
            return self
        if self.error is None:
            raise RequestError(f"the request was {self.outcome}", request_id=self.id)
        raise request_error(self.error.code, self.error.message, request_id=self.id, stage=self.error.stage)


class Status(msgspec.Struct, frozen=True):
    """Where a request stands; `response` is there for the four outcomes."""

    id: str
    state: Literal["unknown", "pending", "completed", "expired", "rejected", "failed"]
    response: Response | None = None


def read_response(value: bytes) -> Response:
    """The response that a terminal record's bytes tell. Raises HeadraceError for what is none, and where a tensor does not fit its own shape."""
    try:
        return _response(decode_terminal(value))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequest) as error:
        raise HeadraceError(f"a stored answer cannot be read: {error}") from error


def status_of(request_id: str, state: State) -> Status:
    """The status that the store's state tells. Raises HeadraceError as read_response does."""
    if not isinstance(state, Terminal):
        return Status(request_id, state)
    try:
        # The sink keeps nothing but the four outcomes.
        return Status(request_id, state.outcome, _response(state))  # pyright: ignore[reportArgumentType]
    except BadRequest as error:
        raise HeadraceError(f"a stored answer cannot be read: {error}") from error


def _response(terminal: Terminal) -> Response:
    return Response(
        id=terminal.id,
        outcome=terminal.outcome,
        endpoint=terminal.endpoint,
        outputs={output.name: decode_output(output) for output in terminal.outputs or ()},
        accuracy=terminal.accuracy,
        path=tuple(terminal.path),
        error=terminal.error,
        received_ms=terminal.received_ms,
        finished_ms=terminal.finished_ms,
        deadline_ms=terminal.deadline_ms,
        attempts=terminal.attempts,
        epoch=terminal.epoch,
    )

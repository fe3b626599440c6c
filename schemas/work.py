"""The work order: what a dispatcher tells a worker about a request, in one header beside the untouched body."""

from __future__ import annotations

import msgspec

from schemas.decoding import strict
from schemas.stage import TensorHead
from schemas.terminal import PathStep

WORK_HEADER = "headrace"
CONTENT_TYPE_HEADER = "content-type"


class NextStage(msgspec.Struct, frozen=True, array_like=True):
    """A stage that the worker goes on with by itself as soon as the one before it is computed, instead of handing over: positional, as the order."""

    instance: str
    variant: str
    accuracy: float
    deadline_ms: int
    inputs: dict[str, str]
    """Input of the task -> output of the stage before it; there are no others."""
    model: bool
    """Its rows are those of its inputs; a Python task has one."""
    topic: str = ""
    """As a part's."""
    outputs: tuple[str, ...] | None = None
    answers: dict[str, str] = {}
    parameters: bytes = b""
    path_accuracy: float | None = None


class StagePart(msgspec.Struct, frozen=True, array_like=True):
    """What an order for one stage of a graph says beside the rest.

    The record's value is the request's body (its first `request_bytes` bytes, may be none) and then the raw tensors that `tensors` describes.
    """

    instance: str
    """The node's path, with `#row` inside a for_each; with the request id it names the order."""
    revision: int
    topic: str = ""
    """The topic that the outputs go to, as a stage record; empty: the terminal record, to {p}.responses."""
    request_bytes: int = 0
    request_inputs: dict[str, str] = {}
    """Inputs of the task that are tensors of the request: input name -> the request's tensor name."""
    tensors: tuple[TensorHead, ...] = ()
    """Named as the task's inputs."""
    outputs: tuple[str, ...] | None = None
    """Outputs that somebody downstream uses: only these travel on; None: all."""
    answers: dict[str, str] = {}
    """For the terminal record: answer name -> output name; empty: the outputs' own names."""
    path: tuple[PathStep, ...] = ()
    """For the terminal record, this stage's or that of a stage that it goes on with: the steps before this one."""
    path_accuracy: float | None = None
    """For the terminal record: the whole path's accuracy, this stage included."""
    parameters: bytes = b""
    """msgpack map for a Python task; empty: none."""
    ready_ms: int = 0
    """When the stage's inputs were there: its queue time counts from then; 0: from the request's receipt."""
    then: tuple[NextStage, ...] = ()
    """Stages to go on with, one after the other; where one cannot be (no room, not hosted), its stage record says so and the dispatcher decides."""


class WorkOrder(msgspec.Struct, frozen=True, array_like=True):
    """Positional on the wire (msgpack array): append fields with defaults, never reorder.

    The record's key is the request id, its value the request's own bytes, its `content-type` header the request's.
    """

    version: int
    endpoint: str
    stage: str
    variant: str
    """Variant key, `task/variant`."""
    accuracy: float
    worker: str
    incarnation: int
    """A worker ignores orders for another incarnation: their leases have moved on."""
    shard: int
    """The partition of {p}.responses that the answer goes to."""
    received_ms: int
    deadline_ms: int
    rows: int
    attempt: int
    epoch: int
    priority: int
    traceparent: str | None = None
    part: StagePart | None = None
    """None: the one stage of an endpoint without a graph; the value is the request's body."""


WORK_VERSION = 1
INSTANCE_MARK = "\x1f"


def order_name(request_id: str, instance: str) -> str:
    """What an order is called where one request has several: in telemetry, in leases, in the worker's queue. Without instance: the request id."""
    return f"{request_id}{INSTANCE_MARK}{instance}" if instance else request_id


_encode = msgspec.msgpack.Encoder().encode
_decode = strict(msgspec.msgpack.Decoder(WorkOrder).decode)


def encode_order(order: WorkOrder) -> bytes:
    """The value of the work header."""
    return _encode(order)


def decode_order(value: bytes) -> WorkOrder:
    """Raises msgspec.DecodeError (or ValidationError) for what is not a work order."""
    return _decode(value)

"""Requests, answers and exchanges for the tests of the taps."""

from __future__ import annotations

from typing import Any

import msgspec

from broker.policy.tap_join import Exchange, TapJoin, TapPosition
from schemas.catalog import Defaults, EndpointSpec
from schemas.tap import TapSpec
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, TERMINAL_VERSION, ErrorDetail, OutputTensor, PathStep, Terminal, encode_terminal

RECEIVED_MS, ANSWERED_MS = 1_700_000_000_000, 1_700_000_000_123
STEP = PathStep(stage="main", variant="fashion/cnn", accuracy=0.9, accelerator="cpu", device="CPU", queued_ms=1.5, computed_ms=2.5, batch_size=4)
PIXELS = b"\x00\x00\x80?\x00\x00\x00@"
"""1.0 and 2.0, little-endian."""


def body(content_type: str = JSON_TYPE, **fields: Any) -> bytes:
    data: Any = [1.0, 2.0] if content_type == JSON_TYPE else PIXELS
    tensors = [
        {"name": "image", "shape": [1, 2], "datatype": "FP32", "data": data},
        {"name": "age", "shape": [1, 1], "datatype": "INT64", "data": [41] if content_type == JSON_TYPE else (41).to_bytes(8, "little")},
    ]
    stated = {"endpoint": "fashion", "min_accuracy": 0.8, "timeout_ms": 500, "tenant": "acme", "priority": 2, "inputs": tensors} | fields
    return (msgspec.json if content_type == JSON_TYPE else msgspec.msgpack).encode(stated)


def answer(request_id: str, outcome: str = "completed", *, variant: str = "fashion/cnn", content_type: str = JSON_TYPE, **fields: Any) -> bytes:
    done = outcome == "completed"
    data: Any = [7] if content_type == JSON_TYPE else (7).to_bytes(8, "little")
    stated: dict[str, Any] = {
        "endpoint": "fashion",
        "outputs": [OutputTensor("label", [1], "INT64", data)] if done else None,
        "path": [msgspec.structs.replace(STEP, variant=variant)] if done else [],
        "accuracy": 0.9 if done else None,
        "deadline_ms": RECEIVED_MS + 500,
        "error": None if done else ErrorDetail("deadline_exceeded", "too late"),
        "received_ms": RECEIVED_MS,
        "finished_ms": ANSWERED_MS - 3,
        "attempts": 1,
        "epoch": 1,
        "version": TERMINAL_VERSION,
    }
    return encode_terminal(Terminal(id=request_id, outcome=outcome, **(stated | fields)), content_type)


def endpoint(taps: TapSpec | None = None, **fields: Any) -> EndpointSpec:
    return EndpointSpec(name="fashion", task="fashion", revision=3, defaults=Defaults(min_accuracy=0.7), taps=taps or TapSpec(), **fields)


def join_of(taps: TapSpec | None = None, position: TapPosition | None = None, **arguments: Any) -> TapJoin:
    join = TapJoin(0, position or TapPosition(0, 0), **arguments)
    spec = endpoint(taps)
    join.endpoints, join.ceiling = {"fashion": spec}, (spec.taps or TapSpec()).sample.rate_max
    return join


def exchange(
    request_id: str = "r1", taps: TapSpec | None = None, *, request: bytes | None = None, headers: Any = (), reply: bytes | None = None
) -> Exchange:
    join = join_of(taps)
    join.begin(0, {})
    join.ask(request_id.encode(), body() if request is None else request, headers, RECEIVED_MS)
    found = join.answer(request_id.encode(), reply or answer(request_id), ANSWERED_MS, 17)
    assert found is not None
    return found


MSGPACK_HEADERS = [("content-type", MSGPACK_TYPE.encode())]

"""The plan: all bindings, routing shares and stage budgets, stamped with an epoch that only grows."""

from __future__ import annotations

from typing import Annotated

import msgspec

from schemas.decoding import strict

PLAN_VERSION = 2
PLAN_KEY = b"plan"
EPOCH_MAX = (1 << 53) - 1
"""Epochs only grow: one that could not be followed by another is no epoch."""


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """Which variants one worker hosts, and on which lane it reads."""

    worker: str
    accelerator: str
    lane: Annotated[int, msgspec.Meta(ge=0)]
    variants: tuple[str, ...] = ()
    """Variant keys, `task/variant`."""
    batch_size_max: int = 32
    threads: int = 1
    clock_mhz: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the control plane decides; readers ignore an epoch older than the one they hold."""

    epoch: Annotated[int, msgspec.Meta(ge=0, lt=EPOCH_MAX)] = 0
    bindings: tuple[Binding, ...] = ()
    shares: dict[str, dict[str, float]] = {}
    """By task: the part of its requests that each variant key should answer; absent: the dispatcher decides from load."""
    time_shares: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    """By task (or variant key): its part of the time of a device that hosts several, while all have work; absent: deadlines decide."""
    budgets: dict[str, dict[str, float]] = {}
    """By endpoint: milliseconds for each stage."""
    planner: str = ""
    """The scaler that made it."""
    optimizer: str = ""
    """Who proposed it; empty where none was asked, as nobody had measured anything yet."""
    reason: str = ""
    made_ms: int = 0
    version: int = PLAN_VERSION

    def binding(self, worker: str) -> Binding | None:
        return next((binding for binding in self.bindings if binding.worker == worker), None)


_encoder = msgspec.json.Encoder()
_decode = strict(msgspec.json.Decoder(Plan).decode)


def encode_plan(plan: Plan) -> bytes:
    """The value of the record in {p}.plan."""
    return _encoder.encode(plan)


def decode_plan(value: bytes) -> Plan:
    """Raises msgspec.DecodeError (or ValidationError) for what is not a plan."""
    return _decode(value)

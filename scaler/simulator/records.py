"""What stands in the simulated topics."""

from __future__ import annotations

import msgspec

from workers.policy.batcher import QueuedOrder

TerminalRecord = tuple[int, bytes, str, str, float | None]
"""(shard, key, outcome, endpoint, accuracy)"""


class Request(msgspec.Struct, frozen=True, gc=False):
    """A record of {p}.requests."""

    key: bytes
    received_ms: int
    """The log's time."""
    endpoint: str
    floor: float
    timeout_ms: int
    tenant: str
    rows: int


class Orders(msgspec.Struct, frozen=True):
    """What a dispatcher wrote to one lane in one step."""

    orders: list[QueuedOrder]
    lane: int

"""What the simulator tells its checkers, as it happens; a checker believes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from broker.policy.entry import Send
from scaler.simulator.records import Request
from schemas.plan import Plan


class Ended(msgspec.Struct, gc=False):
    """A terminal record as it comes into the log."""

    at_ms: float
    key: bytes
    outcome: str
    accuracy: float | None
    finished_ms: float
    by: str
    path: Sequence[tuple[str, float]] = ()
    """What was computed: (variant, accuracy)."""


Offered = tuple[float, Request, int, int]
"""(time, record, shard, offset)"""


class Watcher(Protocol):
    """Called in the order of virtual time, with all that happens together: it sees every request, and must be cheap."""

    def offered(self, records: Sequence[Offered]) -> None:
        """Request records are in the log, in the order of their times."""
        ...

    def sent(self, at_ms: float, dispatcher: str, sends: Sequence[Send]) -> None:
        """A dispatcher wrote orders to lanes."""
        ...

    def returned(self, at_ms: float, worker: str, incarnation: int, orders: Sequence[str]) -> None:
        """A worker hands orders back unstarted; by name."""
        ...

    def computing(self, at_ms: float, worker: str, incarnation: int, variant: str, orders: Sequence[str], rows: int) -> None:
        """A worker's device began a batch; `orders` by name."""
        ...

    def hosted(self, at_ms: float, worker: str, incarnation: int, ready: dict[str, int], memory_bytes: int) -> None:
        """What a worker hosts has changed: bytes by ready variant, and all that is in memory."""
        ...

    def terminal(self, records: Sequence[Ended]) -> None:
        """Terminal records are in the log; the first of a key is the answer, later ones are seen by nobody."""
        ...

    def committed(self, at_ms: float, dispatcher: str, shard: int, offset: int, metadata: str) -> None:
        """A dispatcher committed its watermark."""
        ...

    def planned(self, at_ms: float, plan: Plan) -> None:
        """A plan was published."""
        ...

    def worker(self, at_ms: float, name: str, incarnation: int, alive: bool) -> None:  # noqa: FBT001 - a fact, told by position as all others
        """A worker started or died."""
        ...

    def dispatcher(self, at_ms: float, name: str, alive: bool) -> None:  # noqa: FBT001 - as above
        """A dispatcher started or died."""
        ...

    def ended(self, at_ms: float) -> None:
        """The run is over: every deadline has passed, and a time more."""
        ...

"""From the policy's decision to send to the order that a worker reads."""

from __future__ import annotations

from broker.policy.entry import Send
from schemas.work import WORK_VERSION, StagePart, WorkOrder

SINGLE_STAGE = "main"
"""The name of the one stage of an endpoint without a graph."""


def order_of(send: Send, stage: str, epoch: int, part: StagePart | None = None, *, blind_ms: int = 0) -> WorkOrder:
    """`epoch`: of the plan that was acted on. `blind_ms`: by which the deadline is told too late (0 but where a fault is simulated)."""
    entry = send.entry
    # By position, in the order of the fields: this runs for every stage of every request.
    return WorkOrder(
        WORK_VERSION,
        entry.endpoint,
        stage,
        send.variant,
        send.accuracy,
        send.worker,
        send.incarnation,
        entry.shard,
        entry.received_ms,
        entry.deadline_ms - blind_ms,
        entry.rows,
        send.attempt,
        epoch,
        entry.priority,
        entry.traceparent,
        part,
    )

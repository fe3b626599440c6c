"""From the policy's decision to send to the order that a worker reads."""

from __future__ import annotations

from collections.abc import Callable

from broker.policy.entry import Send
from broker.policy.graph_request import Fused
from schemas.work import WORK_VERSION, NextStage, StagePart, WorkOrder

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


def next_stages(fused: Fused, topic_of: Callable[[str, str], str]) -> tuple[NextStage, ...]:
    """What the worker may go on with. `topic_of(endpoint, stage)`: name of a stage's topic."""
    found: list[NextStage] = []
    for ahead in fused.ahead:
        entry, step, option = ahead.entry, ahead.step, ahead.option
        stage, final = step.stage, step.final
        assert step.handed is not None
        # By position, in the order of the fields.
        found.append(
            NextStage(
                entry.instance,
                option.key,
                option.accuracy,
                entry.deadline_ms,
                step.handed,
                stage.model,
                "" if final else topic_of(entry.endpoint, stage.topic),
                None if final else stage.outputs,
                stage.answers if final else {},
                stage.parameters,
                ahead.accuracy if final else None,
            )
        )
    return tuple(found)

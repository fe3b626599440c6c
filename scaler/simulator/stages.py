"""What simulated stages of a graph answer: records with tensors of as many rows as were drawn, and no content."""

from __future__ import annotations

from collections.abc import Callable

from scaler.simulator.graphing import Graphing
from scaler.simulator.world import World
from schemas.stage import STAGE_VERSION, StageRecord, TensorHead
from schemas.terminal import PathStep
from workers.policy.batcher import QueuedOrder
from workers.policy.fusion import next_order

ELEMENT_BYTES = 4


class Stages:
    """Writes stage records to the simulated topics."""

    def __init__(self, world: World, graphing: Graphing) -> None:
        self._world, self._graphing = world, graphing

    def answer(
        self, queued: QueuedOrder, worker: str, finished_ms: int, step: PathStep | None, delay_ms: float, accept: Callable[[QueuedOrder], str]
    ) -> None:
        """A stage record; without `step` its deadline came before it was computed.

        `accept` queues the order of a next stage there, or says why not.
        """
        order = queued.order
        part = order.part
        assert part is not None
        late = step is None or finished_ms > order.deadline_ms
        key = queued.request_id.encode()
        heads: tuple[TensorHead, ...] = ()
        if not late:
            rows = self._graphing.outputs(order.endpoint, part.instance, key, order.variant, part.outputs, order.rows)
            heads = tuple([TensorHead(name, "FP32", (count, 1), ELEMENT_BYTES * count) for name, count in rows.items()])
        data = bytes(sum(head.size for head in heads))
        following = None if step is None or late else next_order(queued, heads, data, step, finished_ms)
        record = StageRecord(
            version=STAGE_VERSION,
            endpoint=order.endpoint,
            revision=part.revision,
            instance=part.instance,
            attempt=order.attempt,
            variant=order.variant,
            accuracy=order.accuracy,
            accelerator=step.accelerator if step else "",
            device=step.device if step else "",
            queued_ms=step.queued_ms if step else 0.0,
            computed_ms=step.computed_ms if step else 0.0,
            batch_size=step.batch_size if step else 0,
            finished_ms=finished_ms,
            tensors=heads,
            error_code="deadline_exceeded" if late else "",
            error_message="the deadline came first" if late else "",
            worker=worker,
            fused=following is not None and not accept(following),
        )
        self._world.stage_done(order.shard, (key, record, data), delay_ms)

"""The baselines' rules of forming batches, one decision at a time."""

from __future__ import annotations

import pytest

from scaler.simulator.baselines.aimd import AimdBatching
from scaler.simulator.baselines.batchings import BATCHINGS, OURS, batching
from scaler.simulator.baselines.fifo import FifoQueue
from scaler.simulator.baselines.nexus import NexusBatching
from scaler.simulator.baselines.proteus import ProteusBatching
from scaler.simulator.errors import InvalidScenario
from schemas.profile import Latency
from schemas.work import WorkOrder
from workers.policy.batcher import Batch, BatchRules, QueuedOrder, Wait
from workers.policy.device import OrderQueue

VARIANT = "task/one"


def rules(*, rows_max: int = 8) -> BatchRules:
    """A batch takes 10 ms and 5 ms for each row."""
    return BatchRules(lambda rows: Latency(10.0 + 5.0 * rows, 10.0 + 5.0 * rows), rows_max)


def order(name: str, deadline_ms: int, *, rows: int = 1) -> QueuedOrder:
    work = WorkOrder(1, "shop", "main", VARIANT, 0.9, "w", 1, 0, 0, deadline_ms, rows, 1, 1, 0)
    return QueuedOrder(name, name, work, b"", "", 0, 0)


def queue(kind: type[FifoQueue], *deadlines_ms: int, rows_max: int = 8) -> FifoQueue:
    made = kind(hop_ms=0.0)
    made.host(VARIANT, rules(rows_max=rows_max))
    for number, deadline_ms in enumerate(deadlines_ms):
        assert made.add(order(str(number), deadline_ms))
    return made


def names(batch: Batch | Wait | None) -> list[str]:
    assert isinstance(batch, Batch)
    return [queued.id for queued in batch.orders]


def test_proteus_waits_for_one_more_until_the_head_would_be_late_with_it() -> None:
    made = queue(ProteusBatching, 100)
    assert made.next_batch(0.0) == Wait(80.0)
    assert made.add(order("more", 120))
    assert made.next_batch(10.0) == Wait(75.0)
    assert names(made.next_batch(75.0)) == ["0", "more"]
    assert made.next_batch(75.0) is None


def test_proteus_starts_a_full_batch_at_once() -> None:
    assert names(queue(ProteusBatching, 100, 100, 100, rows_max=2).next_batch(0.0)) == ["0", "1"]


def test_proteus_drops_heads_that_would_expire_even_if_they_started_now() -> None:
    made = queue(ProteusBatching, 100, 110, 300)
    assert [queued.id for queued in made.drop_late(86.0)] == ["0"]
    assert made.waiting_rows == 2


def test_nexus_drops_what_has_no_time_for_a_whole_window() -> None:
    made = queue(NexusBatching, 50, 55, 100, 100, 100, 100)
    # The target of a request with 50 ms is 25 ms: a batch of three. At 30 ms a window of three needs until 55.
    assert [queued.id for queued in made.drop_late(30.0)] == ["0"]
    assert names(made.next_batch(30.0)) == ["1", "2", "3"]


def test_nexus_does_not_wait() -> None:
    assert names(queue(NexusBatching, 1_000).next_batch(0.0)) == ["0"]


def test_aimd_grows_by_one_and_is_halved_by_a_miss() -> None:
    made = queue(AimdBatching, *[1_000] * 6)
    assert names(made.next_batch(0.0)) == ["0"]
    made.finish(order("0", 1_000))
    assert made.drop_late(15.0) == []
    assert names(made.next_batch(15.0)) == ["1", "2"]
    for name in ("1", "2"):
        made.finish(order(name, 1_000))
    late = [queued.id for queued in made.drop_late(1_001.0)]
    assert late == ["3", "4", "5"]
    assert made.add(order("next", 5_000))
    assert made.add(order("after", 5_000))
    assert names(made.next_batch(1_001.0)) == ["next"]


@pytest.mark.parametrize("name", BATCHINGS)
def test_every_batching_keeps_account_of_what_it_holds(name: str) -> None:
    made: OrderQueue = batching(name)(0.0)
    assert not made.hosts(VARIANT)
    made.host(VARIANT, rules())
    first = order("a", 10_000, rows=3)
    assert made.add(first)
    assert not made.add(order("a", 10_000))
    assert made.add(order("b", 10_000))
    assert (made.waiting_rows, made.waiting(VARIANT)) == (4, 2)
    assert [queued.id for queued in made.take_all()] == ["a", "b"]
    assert (made.waiting_rows, made.waiting(VARIANT)) == (0, 0)
    made.finish(first)
    assert made.add(order("a", 10_000))
    assert [queued.id for queued in made.take(VARIANT)] == ["a"]
    assert not made.hosts(VARIANT)
    assert made.take(VARIANT) == []


@pytest.mark.parametrize("name", [name for name in BATCHINGS if name != OURS])
def test_a_request_larger_than_a_batch_runs_alone(name: str) -> None:
    made = batching(name)(0.0)
    made.host(VARIANT, rules(rows_max=2))
    assert made.add(order("large", 100_000, rows=5))
    assert made.add(order("small", 100_000))
    assert names(made.next_batch(0.0)) == ["large"]


def test_an_unknown_batching_is_said_with_those_that_there_are() -> None:
    with pytest.raises(InvalidScenario, match="headrace, proteus, nexus, aimd"):
        batching("nexsus")

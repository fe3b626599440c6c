"""Unit: a device whose variants are made ready beside what it computes."""

from __future__ import annotations

from schemas.catalog import VariantSpec
from schemas.profile import Latency
from schemas.work import WorkOrder
from workers.policy.batcher import Batch, Batcher, QueuedOrder
from workers.policy.device import DevicePolicy
from workers.policy.forms import Shape
from workers.policy.hosting import Load, Unload, Wanted, Warm

COSTS = {1: Latency(10.0, 12.0, 100), 8: Latency(40.0, 48.0, 100)}


def wanted(*names: str) -> dict[str, Wanted]:
    return {f"t/{name}": Wanted(VariantSpec(name=name, file="f", sha256=name * 8, accuracy=0.9), 8, 1) for name in names}


def order(number: int, variant: str, deadline_ms: int = 10_000) -> QueuedOrder:
    work = WorkOrder(
        version=1, endpoint="e", stage="main", variant=variant, accuracy=0.9, worker="w", incarnation=1, shard=0, received_ms=0, rows=1,
        deadline_ms=deadline_ms, attempt=1, epoch=1, priority=0,
    )  # fmt: skip
    return QueuedOrder(f"o{number}", f"o{number}", work, b"", "", 0, number)


class Desk:
    """The device and whoever prepares variants, by hand."""

    def __init__(self, *, beside: bool, at_once: int = 1) -> None:
        self.policy = DevicePolicy(Batcher(hop_ms=8.0), memory_bytes_max=0, queue_rows_max=100, loads_beside=beside, batches_at_once=at_once)
        self.now_ms = 0.0

    def settle(self) -> None:
        """Make everything that is wanted ready, with nothing to compute."""
        while True:
            decision = self.policy.decide(self.now_ms)
            command = decision.prepare or decision.start
            if command is None:
                return
            assert isinstance(command, Load | Warm)
            (self.policy.prepared if decision.prepare else self.policy.ended)()
            self.carry_out(command)

    def carry_out(self, command: Load | Warm) -> None:
        if isinstance(command, Load):
            assert self.policy.loaded(command.hosted, Shape(rows_max=8), memory_bytes=1, load_ms=1.0, now_ms=self.now_ms)
        else:
            self.policy.warmed(command.hosted, COSTS)


def test_a_batch_starts_while_another_variant_loads_and_while_it_warms() -> None:
    desk = Desk(beside=True)
    policy = desk.policy
    policy.plan(1, wanted("a"), 0.0)
    desk.settle()
    policy.plan(2, wanted("a", "b"), 0.0)
    for number, kind in enumerate((Load, Warm)):
        assert not policy.accept(order(number, "t/a"))
        decision = policy.decide(0.0)
        assert isinstance(decision.prepare, kind)
        assert isinstance(decision.start, Batch)
        assert policy.decide(0.0).prepare is None, "one at a time"
        policy.computed(None, 0, 0.0)
        policy.prepared()
        desk.carry_out(decision.prepare)
    assert policy.hosting.serving("t/b") is not None


def test_a_load_begins_while_a_batch_is_on_the_device() -> None:
    desk = Desk(beside=True)
    policy = desk.policy
    policy.plan(1, wanted("a"), 0.0)
    desk.settle()
    policy.accept(order(1, "t/a"))
    assert isinstance(policy.decide(0.0).start, Batch)
    policy.plan(2, wanted("a", "b"), 0.0)
    assert isinstance(policy.decide(0.0).prepare, Load)


def test_an_unload_waits_for_the_device_and_nothing_is_decided_twice() -> None:
    desk = Desk(beside=True)
    policy = desk.policy
    policy.plan(1, wanted("a", "b"), 0.0)
    desk.settle()
    policy.plan(2, wanted("a"), 0.0)
    assert policy.decide(0.0).start is None, "dispatchers that have not seen the plan still send"
    policy.accept(order(1, "t/b"))
    assert isinstance(policy.decide(1.0).start, Batch)
    policy.look()
    busy = policy.decide(5_000.0)
    assert busy.start is None
    assert busy.prepare is None
    policy.computed(None, 0, 0.0)
    decision = policy.decide(5_000.0)
    assert isinstance(decision.start, Unload)
    assert policy.decide(5_000.0).start is None
    policy.ended()
    policy.unloaded(decision.start.hosted)
    assert policy.hosting.serving("t/b") is None


def test_a_backend_that_does_not_say_so_has_its_device_to_itself() -> None:
    desk = Desk(beside=False)
    policy = desk.policy
    policy.plan(1, wanted("a"), 0.0)
    desk.settle()
    policy.plan(2, wanted("a", "b"), 0.0)
    decision = policy.decide(0.0)
    assert isinstance(decision.start, Load)
    assert decision.prepare is None
    policy.accept(order(1, "t/a"))
    assert policy.decide(0.0).start is None
    policy.ended()
    desk.carry_out(decision.start)
    assert isinstance(policy.decide(0.0).start, Batch), "a batch has its turn between two commands"


def test_orders_that_came_together_are_taken_as_one_by_one() -> None:
    desk = Desk(beside=True)
    policy = desk.policy
    policy.plan(1, wanted("a"), 0.0)
    desk.settle()
    assert not policy.accept(order(0, "t/a"))
    came = [order(0, "t/a"), order(1, "t/b"), *(order(number, "t/a") for number in range(2, 103))]
    refused = [(queued.id, reason) for queued, reason in policy.accept_all(came)]
    assert refused == [("o0", "duplicate"), ("o1", "not hosted"), ("o101", "full"), ("o102", "full")]
    assert policy.queue.waiting_rows == 100

"""The promises of a dispatcher, as checks of what it does and of what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dispatcher_world import ACCURACY, LIMITS, SETTINGS, SHARDS, WORKERS, Life, Request, Response

from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Answer, Commands, Send, State
from broker.policy.expiry import BUCKET_MS
from broker.policy.watermark import Watermark, restore
from schemas.catalog import Catalog, split_variant_key

if TYPE_CHECKING:
    from dispatcher_machine import World


def check_send(catalog: Catalog, requests: Sequence[Request], life: Life, send: Send, now_ms: float) -> None:
    """A send goes to a worker that is ready for it, in time, at or above the floor, and was not finished before."""
    entry = send.entry
    report, binding = life.reports[send.worker], life.plan.binding(send.worker)
    task, name = split_variant_key(send.variant)
    known = catalog.tasks[task].variant(name)
    assert report.state == "ready"
    assert report.incarnation == send.incarnation, "only to the life of a worker that is known"
    assert report.variants[send.variant].state == "ready"
    assert binding is not None
    assert send.variant in binding.variants
    assert binding.lane == send.lane == report.lane
    assert known is not None
    assert known.accuracy == send.accuracy >= (entry.floor or 0.0), "never worse than asked for"
    assert catalog.endpoints[entry.endpoint].task == task
    assert 1 <= send.attempt <= LIMITS.attempts_max
    assert now_ms < entry.deadline_ms, "nobody waits for it"
    assert not life.skip[entry.shard].is_finished(entry.offset), "it was finished before the restart"
    assert entry.shard in life.read_to, "not ours"
    first = next(request for request in requests if request.key == entry.key)
    if first.offset == entry.offset:
        assert entry.key not in life.known_answers[entry.shard], "its answer was in the log when the shard became ours"
    life.sent[(entry.key, entry.shard, entry.offset)] += 1


def check_answer(life: Life, answer: Answer, now_ms: float) -> None:
    """One answer of our own, of the right kind at the right time."""
    entry = answer.entry
    identity = (entry.key, entry.shard, entry.offset)
    assert identity not in life.answered, "answered twice"
    life.answered.add(identity)
    assert answer.outcome in ("rejected", "expired", "failed")
    assert answer.message
    if answer.outcome == "rejected":
        assert not life.sent.get(identity), "a worker had it"
    if answer.outcome == "expired":
        assert now_ms >= entry.deadline_ms
        assert answer.code == "deadline_exceeded"
    if answer.code == "infeasible_deadline":
        assert "ms" in answer.message


def check_credits(policy: DispatcherPolicy, commands: Commands) -> None:
    """No lane is given more rows than its part of the worker's credits, beside the order that is being computed; a larger request goes alone."""
    sent = {send.entry.key for send in commands.sends}
    for lane in policy.fleet.lanes:
        queued_rows = 0
        for at, (key, order) in enumerate(lane.orders.items()):
            if at and key in sent:
                assert queued_rows < lane.credit_rows * policy.fleet.share, "more than the worker's credits"
            queued_rows += order.rows if at else 0


def check_commits(world: World) -> None:
    """A committed watermark covers only what is finished, or is somebody's who has not finished."""
    uncovered: set[bytes] = set()
    covered: list[Request] = []
    for shard in range(SHARDS):
        watermark = restore(*world.commits[shard])[0] if shard in world.commits else Watermark()
        for request in world.requests[shard]:
            if watermark.is_finished(request.offset):
                covered.append(request)
            elif request.key is not None:
                uncovered.add(request.key)
    answered = {response.key for log in world.responses for response in log}
    for request in covered:
        if request.key is None:
            assert (request.shard, request.offset) in world.buried, "committed past a record that is not in the dead letters"
        else:
            assert request.key in answered or request.key in uncovered, f"{request.key!r} is lost: committed, and not answered"


def check_outcomes(world: World) -> None:
    """Every id that arrived has its answer; the first record of a key keeps every promise."""
    requests = {request.key: request for log in reversed(world.requests) for request in reversed(log) if request.key is not None}
    first: dict[bytes, Response] = {}
    for log in world.responses:
        for response in log:
            first.setdefault(response.key, response)
    assert set(requests) == set(first), "an id without an outcome"
    for key, response in first.items():
        same = [request for log in world.requests for request in log if request.key == key]
        if response.outcome == "completed":
            assert response.by in WORKERS
            assert ACCURACY[response.variant] >= min(request.floor or 0.0 for request in same)
    for shard in range(SHARDS):
        for request in world.requests[shard]:
            if request.key is None:
                assert (shard, request.offset) in world.buried


def check_nothing_left(world: World) -> None:
    """No state outlives the requests."""
    for life in world.lives.values():
        policy = life.policy
        assert policy.live == 0
        assert policy.waiting == 0
        assert policy.fleet.orders == {}
        assert policy._held_bytes == 0
        assert policy.next_wake_ms() is None
        assert not any(shard.own_answers or shard.held_back or shard.live for shard in policy.shards.values())
        for lane in policy.fleet.lanes:
            assert (lane.outstanding_rows, lane.outstanding_ms, lane.orders) == (0, 0.0, {})
        for pool in policy.fleet.pools:
            waiting = pool.waiting
            assert (waiting.count, waiting.work_ms, waiting.deadline_sum_ms, waiting.due, waiting.rows) == (0, 0.0, 0.0, {}, {})
        for number, shard in policy.shards.items():
            assert shard.watermark.low >= shard.next_offset, "all is finished, and the watermark says so"
            assert shard.watermark.finished_above == 0
            assert world.commits[number][0] == shard.watermark.low


def check_books(policy: DispatcherPolicy) -> None:
    """What the policy counts is what there is."""
    on_lanes: dict[bytes, object] = {}
    for lane in policy.fleet.lanes:
        assert lane.outstanding_rows == sum(order.rows for order in lane.orders.values()) >= 0
        assert abs(lane.outstanding_ms - sum(order.work_ms for order in lane.orders.values())) < 1e-6
        assert lane.outstanding_ms > -1e-6
        for key, order in lane.orders.items():
            assert key not in on_lanes, "two lanes think that they have it"
            on_lanes[key] = order
            assert order.lane is lane
    assert on_lanes == policy.fleet.orders
    live = [entry for shard in policy.shards.values() for entry in shard.live.values()]
    assert policy._held_bytes == sum(entry.bytes for entry in live if entry.admitted)
    for entry in live:
        assert (entry.state == State.LEASED) <= (entry.key in policy.fleet.orders), "leased, and nobody has it"
    waiting = [entry for entry in live if entry.state == State.WAITING]
    assert sum(pool.waiting.count for pool in policy.fleet.pools) == len(waiting)
    for pool in policy.fleet.pools:
        mine = [entry for entry in waiting if entry.task in pool.tasks]
        assert {id(entry) for entry in mine} == {id(entry) for entry in pool.waiting.entries()}
        assert abs(pool.waiting.work_ms - sum(entry.work_ms for entry in mine)) < 1e-3
        assert sum(pool.waiting.rows.values()) == sum(entry.rows for entry in mine)
        assert abs(sum(sum(due.values()) for due in pool.waiting.due.values()) - sum(entry.work_ms for entry in mine)) < 1e-3


def check_expiry(policy: DispatcherPolicy, now_ms: float) -> None:
    """No deadline is forgotten: after a tick nothing that is due goes without an answer."""
    for shard in policy.shards.values():
        for entry in shard.live.values():
            grace_ms = SETTINGS.expiry_grace_ms if entry.attempts else 0.0
            if entry.state in (State.WAITING, State.LEASED, State.HELD):
                assert now_ms < entry.deadline_ms + grace_ms + BUCKET_MS, f"{entry.key!r} is overdue by {now_ms - entry.deadline_ms} ms"

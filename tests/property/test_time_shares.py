"""Whatever variants cost: the device's time goes by the plan's parts while all have work, urgent requests go first, and nobody starves."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.profile import Latency
from schemas.work import WORK_VERSION, WorkOrder
from workers.policy.batcher import Batch, Batcher, BatchRules, QueuedOrder
from workers.policy.time_shares import DEBT_ROUNDS, ROUND_MS, Head, TimeShares

FAR_MS = 1e9
weights = st.lists(st.floats(0.1, 1.0), min_size=2, max_size=5)


def heads(costs: dict[str, float], number: int, latest_ms: dict[str, float] | None = None) -> list[Head]:
    return [Head((5, int((latest_ms or {}).get(key, FAR_MS)), number), key, (latest_ms or {}).get(key, FAR_MS)) for key in costs]


@settings(max_examples=60, deadline=None)
@given(weights, st.lists(st.floats(0.5, 60.0), min_size=5, max_size=5), st.booleans())
def test_under_saturation_time_converges_to_the_parts_and_nobody_waits_for_long(parts: list[float], costs: list[float], all_urgent: bool) -> None:
    shares = TimeShares()
    stated = {f"t{number}": part for number, part in enumerate(parts)}
    shares.share_out(stated)
    cost_ms = {f"t{number}/v": costs[number] for number in range(len(parts))}
    longest_ms, total = max(cost_ms.values()), sum(parts)
    spent_ms, last_ms = dict.fromkeys(cost_ms, 0.0), dict.fromkeys(cost_ms, 0.0)
    now_ms, number = 0.0, 0
    while now_ms < 20_000.0:
        urgent = dict.fromkeys(cost_ms, now_ms) if all_urgent else None
        chosen = shares.choose(heads(cost_ms, number, urgent), now_ms, longest_ms)
        shares.charge(chosen, cost_ms[chosen])
        now_ms, number = now_ms + cost_ms[chosen], number + 1
        spent_ms[chosen] += cost_ms[chosen]
        gap_ms, last_ms[chosen] = now_ms - last_ms[chosen], now_ms
        part = stated[chosen.partition("/")[0]] / total
        assert gap_ms <= (2 * DEBT_ROUNDS + 3) * ROUND_MS + (len(parts) + 2) * longest_ms / min(part, 1.0), "it starved"
    for key, spent in spent_ms.items():
        part = stated[key.partition("/")[0]] / total
        assert abs(spent / now_ms - part) < 0.05


def test_urgent_requests_go_first_until_their_party_has_overdrawn_its_rounds() -> None:
    shares = TimeShares()
    shares.share_out({"a": 0.5, "b": 0.5})
    cost_ms = {"a/v": 10.0, "b/v": 10.0}
    served: list[str] = []
    for number in range(40):
        chosen = shares.choose(heads(cost_ms, number, {"b/v": 5.0}), 0.0, 10.0)
        shares.charge(chosen, 10.0)
        served.append(chosen)
    assert served[:5] == ["b/v"] * 5, "its latest start is within one batch of the other"
    assert 10 <= served.index("a/v") <= 12, "two rounds of half of 100 ms"
    assert served[20:].count("a/v") > 5


def test_who_idles_saves_nothing_and_who_was_alone_owes_nothing() -> None:
    shares = TimeShares()
    shares.share_out({"a": 0.5, "b": 0.5})
    for number in range(100):
        assert shares.choose(heads({"a/v": 10.0}, number), 0.0, 10.0) == "a/v"
        shares.charge("a/v", 10.0)
    served: list[str] = []
    for number in range(40):
        chosen = shares.choose(heads({"a/v": 10.0, "b/v": 10.0}, number), 0.0, 10.0)
        shares.charge(chosen, 10.0)
        served.append(chosen)
    assert 17 <= served.count("b/v") <= 23


def test_variants_of_one_task_are_one_party_and_the_earliest_deadline_decides_between_them() -> None:
    shares = TimeShares()
    shares.share_out({"a": 0.9, "b": 0.1})
    same = [Head((5, 200, 1), "a/x", FAR_MS), Head((5, 100, 2), "a/y", FAR_MS)]
    assert shares.choose(same, 0.0, 10.0) == "a/y"
    assert shares.choose([*same, Head((5, 50, 3), "b/z", FAR_MS)], 0.0, 10.0) in {"a/y", "b/z"}


def test_the_batcher_keeps_to_the_parts() -> None:
    """Two tasks that always have work, one with deadlines that always come first."""
    batcher = Batcher(hop_ms=8.0)
    for variant in ("a/v", "b/v"):
        batcher.host(variant, BatchRules(lambda rows: Latency(5.0 * rows, 6.0 * rows), 4))
    batcher.shares.share_out({"a": 0.25, "b": 0.75})
    spent_ms = {"a/v": 0.0, "b/v": 0.0}
    number, now_ms = 0, 0.0
    order = WorkOrder(WORK_VERSION, "e", "main", "a/v", 0.9, "w", 1, 0, 0, 0, 1, 1, 1, 0)
    while now_ms < 10_000.0:
        for variant, in_ms in (("a/v", 50_000), ("b/v", 60_000)):
            while batcher.waiting(variant) < 8:
                number += 1
                made = msgspec.structs.replace(order, variant=variant, deadline_ms=int(now_ms) + in_ms)
                batcher.add(QueuedOrder(f"o{number}", f"o{number}", made, b"", "", 0, number))
        batch = batcher.next_batch(now_ms)
        assert isinstance(batch, Batch)
        took_ms = 5.0 * batch.rows
        batcher.shares.charge(batch.variant, took_ms)
        spent_ms[batch.variant] += took_ms
        now_ms += took_ms
        for queued in batch.orders:
            batcher.finish(queued)
    assert abs(spent_ms["a/v"] / now_ms - 0.25) < 0.03

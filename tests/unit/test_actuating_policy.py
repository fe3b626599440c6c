"""How many workers there are, in virtual time: up with the load, down when it is calm, to nothing and back, and never at the cost of who serves."""

from __future__ import annotations

import msgspec
from actuating_stage import KEY, Cluster, Process, asked, variant
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.optimizers.snapshot import Snapshot, Worker
from scaler.policy.actuating import HORIZONTAL, VERTICAL, ActuatingPolicy, Adjustment, adjusted
from scaler.policy.actuating_needs import Room, needed
from schemas.plan import Binding, Plan
from schemas.scale import ScaleOffer


def wanted(cluster: Cluster) -> list[int]:
    return [order.wanted for order in cluster.orders]


def test_as_many_workers_as_the_forecast_needs_at_once() -> None:
    cluster = Cluster().run(5, rate_rps=50.0)
    assert wanted(cluster) == [1]
    cluster.run(2, rate_rps=220.0)
    assert wanted(cluster) == [1, 3], "220/s with a quarter more, at 100/s each"
    assert cluster.orders[-1].reason == "3 workers of a forecast of 220.0/s"
    cluster.run(5)
    assert cluster.serving() == 300.0


def test_never_beyond_the_most_and_it_is_said() -> None:
    cluster = Cluster(most=2).run(20, rate_rps=900.0)
    assert wanted(cluster) == [2]
    assert "the forecast needs more than is allowed" in cluster.policy.explained(cluster.now_ms)["cpu"]


def test_the_cores_bound_the_workers() -> None:
    assert Cluster(most=4, cores=3).run(20, rate_rps=900.0).orders[-1].wanted == 3


def test_fewer_only_after_ten_calm_decisions_and_the_cool_down() -> None:
    cluster = Cluster().run(5, rate_rps=300.0).run(20)
    assert wanted(cluster)[-1] == 4
    changed_s = cluster.now_s - 24
    cluster.run(1, rate_rps=50.0)
    while wanted(cluster)[-1] == 4:
        cluster.second()
        assert cluster.now_s - changed_s < 120
    assert cluster.now_s - changed_s >= 30
    assert wanted(cluster)[-1] == 1, "all at once: they leave together"
    assert list(cluster.workers) == ["cpu-1"]


def test_a_dip_of_nine_seconds_costs_nobody_its_place() -> None:
    cluster = Cluster().run(60, rate_rps=300.0)
    cluster.run(9, rate_rps=10.0).run(1, rate_rps=300.0).run(9, rate_rps=10.0).run(30, rate_rps=300.0)
    assert wanted(cluster) == [4]


def test_who_leaves_is_planned_without_then_unbound_then_drained_then_ended() -> None:
    cluster = Cluster(first=2).run(60, rate_rps=150.0)
    cluster.rate_rps = 20.0
    states: list[str] = []
    while len(cluster.workers) == 2:
        cluster.second()
        if "cpu-2" in cluster.policy.leaving:
            bound = cluster.plan.binding("cpu-2") is not None
            states.append(f"{'bound' if bound else 'unbound'}, {len(cluster.workers)} processes")
        assert len(states) < 60
    assert states[0] == "bound, 2 processes"
    assert states[-1] == "unbound, 2 processes"
    assert cluster.orders[-1].leaving == ("cpu-2",)
    assert cluster.orders[-1].epoch == cluster.plan.epoch


def test_who_is_needed_again_before_it_left_stays() -> None:
    cluster = Cluster(first=2).run(60, rate_rps=150.0)
    cluster.rate_rps = 20.0
    while not cluster.policy.leaving:
        cluster.second()
    cluster.run(15, rate_rps=150.0)
    assert not cluster.policy.leaving
    assert wanted(cluster) == [2]
    assert cluster.serving() == 200.0


def test_without_a_plan_that_takes_over_who_was_to_leave_stays() -> None:
    cluster = Cluster(first=2).run(60, rate_rps=150.0)
    cluster.planner = False
    cluster.run(75, rate_rps=20.0)
    assert wanted(cluster) == [2]
    assert len(cluster.workers) == 2
    assert "cpu-2 stays: no plan came without it" in cluster.policy.explained(cluster.now_ms)["cpu"]


def test_to_zero_after_a_minute_without_requests_and_back_with_the_first() -> None:
    cluster = Cluster(least=0).run(60, rate_rps=50.0)
    cluster.run(50, rate_rps=0.0)
    assert wanted(cluster) == [1], "not before a minute has passed"
    cluster.run(60)
    assert wanted(cluster) == [1, 0]
    assert cluster.workers == {}
    cluster.run(1, rate_rps=0.2)
    assert wanted(cluster) == [1, 0, 1]
    cluster.run(4)
    assert cluster.serving() == 100.0


def test_a_rare_request_keeps_the_last_worker() -> None:
    cluster = Cluster(least=0)
    for _ in range(6):
        cluster.run(40, rate_rps=0.0).run(1, rate_rps=1.0)
    assert wanted(cluster) == [1]


def test_threads_at_once_and_workers_for_them_when_the_load_has_settled() -> None:
    cluster = Cluster(threads=4, cores=4).run(20, rate_rps=50.0)
    cluster.run(2, rate_rps=260.0)
    assert cluster.policy.mode == VERTICAL
    assert cluster.plan.bindings[0].threads == 4, "in place, within two seconds"
    assert wanted(cluster) == [1], "no worker was started for it"
    cluster.run(2)
    assert cluster.serving() == 400.0
    seen: list[float] = []
    for _ in range(30):
        cluster.second()
        seen.append(cluster.serving())
    assert cluster.policy.mode == HORIZONTAL
    assert wanted(cluster) == [1, 4]
    assert [binding.threads for binding in cluster.plan.bindings] == [1, 1, 1, 1]
    assert min(seen) >= 260.0 * 1.25, "created before shrunk"


def test_workers_where_threads_are_not_enough() -> None:
    cluster = Cluster(threads=2).run(20, rate_rps=50.0).run(4, rate_rps=600.0)
    assert cluster.policy.mode == VERTICAL
    assert wanted(cluster) == [1, 4]


def test_while_the_load_keeps_rising_nothing_settles() -> None:
    cluster = Cluster(threads=4, cores=16, most=16).run(20, rate_rps=50.0)
    for step in range(12):
        cluster.run(5, rate_rps=100.0 + 80.0 * step)
        assert cluster.policy.mode == VERTICAL
    cluster.run(25)
    assert cluster.policy.mode == HORIZONTAL


def test_workers_that_do_not_start_are_not_ordered_again_and_the_reason_is_shown() -> None:
    cluster = Cluster(most=8)
    cluster.broken = True
    cluster.run(5, rate_rps=150.0).run(20, rate_rps=700.0)
    assert wanted(cluster) == [2]
    assert "workers do not start: it dies" in cluster.policy.explained(cluster.now_ms)["cpu"]
    cluster.broken = False
    cluster.run(10)
    assert wanted(cluster)[-1] == 8


def test_who_does_not_start_is_given_up_before_who_serves() -> None:
    cluster = Cluster()
    cluster.broken = True
    cluster.run(5, rate_rps=150.0).run(60, rate_rps=20.0)
    assert wanted(cluster) == [2, 1]
    assert list(cluster.workers) == ["cpu-1"]
    assert cluster.serving() == 100.0


def test_nothing_is_decided_on_offers_that_are_gone() -> None:
    cluster = Cluster().run(5, rate_rps=50.0)
    late_ms = cluster.now_ms + 20_000.0
    assert cluster.policy.look(cluster.snapshot(), late_ms) is None
    assert cluster.policy.orders(cluster.plan, late_ms) == {}


def test_an_offer_that_contradicts_itself_is_none() -> None:
    policy = ActuatingPolicy()
    policy.offered([ScaleOffer(accelerator="cpu", least=3, most=1)], 0.0)
    assert policy.orders(Plan(), 0.0) == {}


def test_a_new_leader_keeps_what_there_is_until_it_knows() -> None:
    cluster = Cluster().run(60, rate_rps=300.0)
    cluster.policy = ActuatingPolicy()
    cluster.run(8)
    assert cluster.orders[-1].wanted == 4


def test_nobody_is_sent_away_while_costs_are_unknown() -> None:
    policy = ActuatingPolicy()
    workers = tuple(Worker(name=f"w{number}", accelerator="cpu", type="x") for number in range(3))
    for second in range(100):
        now_ms = 1_000.0 * second
        policy.offered([ScaleOffer(accelerator="cpu", least=0, most=4, wanted=3)], now_ms)
        policy.look(Snapshot(at_ms=now_ms, endpoints=asked(10.0), variants=(variant({}),), workers=workers), now_ms)
    assert policy.orders(Plan(), 99_000.0)["cpu"].wanted == 3
    assert not policy.leaving


def test_the_plan_changes_in_what_was_said_and_nothing_else() -> None:
    bindings = tuple(Binding(worker=name, accelerator="cpu", lane=lane, variants=(KEY,)) for lane, name in enumerate("abc"))
    plan = Plan(epoch=7, bindings=bindings, shares={"t": {KEY: 1.0}})
    changed = adjusted(plan, Adjustment(unbound=frozenset("b"), threads={"c": 3}, reason="why"), 5.0)
    assert changed == msgspec.structs.replace(
        plan, epoch=8, bindings=(bindings[0], msgspec.structs.replace(bindings[2], threads=3)), reason="why", made_ms=5
    )
    assert adjusted(plan, Adjustment(unbound=frozenset("x")), 5.0) is None


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(1.0, 2_000.0), least=st.integers(0, 3), more=st.integers(0, 12), cores=st.integers(0, 12))
def test_the_fewest_workers_that_carry_the_forecast(rate: float, least: int, more: int, cores: int) -> None:
    most = least + more
    worker = Worker(name="w", accelerator="cpu", type="x")
    snapshot = Snapshot(at_ms=0.0, endpoints=asked(rate), variants=(variant({"x": 10.0}),), workers=())
    found = needed(snapshot, {"cpu": Room(worker=worker, least=least, most=most)}, headroom=1.25, cores=cores)
    limit = min(most, max(cores, least)) if cores else most
    enough = [count for count in range(least, limit + 1) if count * 100.0 >= 1.25 * rate * (1.0 - 1e-4)]
    assert abs(found.counts["cpu"] - (enough[0] if enough else limit)) <= (0 if not enough or enough[0] * 100.0 > 1.2502 * rate else 1)
    assert found.short == (not enough) or abs(limit * 100.0 - 1.25 * rate) < 0.01 * rate


def test_the_class_that_carries_more_for_its_cores_is_taken() -> None:
    snapshot = Snapshot(at_ms=0.0, endpoints=asked(200.0), variants=(variant({"slow": 10.0, "fast": 2.5}),), workers=())
    rooms = {
        "cpu": Room(worker=Worker(name="c", accelerator="cpu", type="slow"), least=0, most=8),
        "gpu": Room(worker=Worker(name="g", accelerator="gpu", type="fast"), least=0, most=1),
    }
    assert needed(snapshot, rooms, headroom=1.25).counts == {"cpu": 0, "gpu": 1}
    more = msgspec.structs.replace(snapshot, endpoints=asked(480.0))
    assert needed(more, rooms, headroom=1.25).counts == {"cpu": 2, "gpu": 1}


@settings(max_examples=25, deadline=None)
@given(
    phases=st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.0, 5.0, 60.0, 140.0, 330.0, 800.0])), min_size=1, max_size=6),
    least=st.integers(0, 2),
    threads=st.sampled_from([1, 2, 4]),
    start_s=st.integers(1, 8),
    deaths=st.lists(st.integers(0, 200), max_size=3),
)
def test_whatever_is_asked_the_counts_keep_their_bounds_and_who_serves_is_never_ended(
    phases: list[tuple[int, float]], least: int, threads: int, start_s: int, deaths: list[int]
) -> None:
    cluster = Cluster(least=least, most=5, first=max(least, 1), threads=threads, cores=6, start_s=start_s)
    played = 0
    for seconds, rate in phases:
        cluster.rate_rps = rate
        for _ in range(seconds):
            before = {name for name in cluster.ready() if cluster.plan.binding(name) is not None}
            cluster.second()
            played += 1
            order = cluster.orders[-1]
            assert least <= order.wanted <= 5
            assert before <= cluster.workers.keys() | set(order.leaving), "who is bound is not ended"
            if played in deaths and cluster.workers:
                name = min(cluster.workers)
                cluster.workers[name] = Process(cluster.now_s + start_s)
    cluster.run(150, rate_rps=110.0)
    # Whatever happened: in the end there is what the load needs.
    assert cluster.orders[-1].wanted == max(least, 2)
    assert cluster.serving() == 100.0 * max(least, 2)
    assert not cluster.policy.leaving

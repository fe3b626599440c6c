"""Who hosts what: lanes, whole workers divided among tasks, mixes of one task, and what bindings are worth."""

from __future__ import annotations

from itertools import product

import msgspec
import numpy as np
import pytest
from optimizer_stage import ample, endpoint, hosted, snapshot, variant, workers

from scaler.optimizers.capacity import Capacity
from scaler.optimizers.evaluation import flows_of
from scaler.optimizers.greedy import Greedy
from scaler.optimizers.lanes import Post, bind, give_lanes
from scaler.optimizers.mixing import ladder_of, most_accurate_mix
from scaler.optimizers.picking import divide, picks_of, task_demands
from scaler.optimizers.snapshot import LOST, StageDemand
from scaler.optimizers.static import ClipperHighAccuracy, HorizontalOnly, StaticAccurate, StaticFast, by_accuracy
from scaler.optimizers.stepwise import Infaas, Sommelier
from schemas.plan import Binding, Plan

LADDER = [variant("slow", 0.9, {"a": 10.0}), variant("mid", 0.8, {"a": 20.0}), variant("fast", 0.6, {"a": 40.0})]


def bound(worker, lane, variants=()):
    binding = Binding(worker=worker.name, accelerator=worker.accelerator, lane=lane, variants=variants)
    return msgspec.structs.replace(worker, binding=binding)


def test_a_worker_keeps_its_lane_and_new_ones_take_those_that_nobody_had():
    one, two, three, four = workers(4)
    gone = Binding(worker="gone", accelerator="cpu", lane=0)
    fleet = (one, bound(two, 5), bound(three, 5), msgspec.structs.replace(bound(four, 1), state=LOST))
    asked = snapshot(LADDER, fleet, plan=Plan(bindings=(gone,)), lanes_per_class=6)
    assert give_lanes(fleet[:3], asked) == {"a000": 2, "a001": 5, "a002": 3}
    crowded = msgspec.structs.replace(asked, lanes_per_class=2)
    assert give_lanes([bound(two, 5), one, three], crowded) == {"a000": 0, "a001": 1}


def test_workers_that_host_a_variant_already_take_its_post():
    fleet = list(workers(4))
    fleet[3] = msgspec.structs.replace(fleet[3], hosted=("t/slow",))
    fleet[0] = bound(fleet[0], 7, ("t/fast",))
    asked = snapshot(LADDER, fleet)
    crew = Capacity(asked).crews[0]
    posts = [Post(crew=crew, variants=(key,), batch_size=1, threads=1, count=count) for key, count in (("t/slow", 1), ("t/fast", 2))]
    placed = {binding.worker: binding.variants for binding in bind(posts, asked)}
    assert placed == {"a003": ("t/slow",), "a000": ("t/fast",), "a001": ("t/fast",)}


def test_whole_workers_go_where_least_is_served():
    ladder = [*LADDER, variant("v", 0.7, {"a": 30.0}, task="u")]
    asked = snapshot(ladder, workers(6), endpoint("e", "t", rate=20.0), endpoint("f", "u", rate=120.0))
    capacity = Capacity(asked)
    demands = task_demands(asked, capacity)
    posts = divide(capacity, picks_of(capacity, demands, by_accuracy), demands)
    assert {post.variants: post.count for post in posts} == {("t/slow",): 2, ("u/v",): 4}


def test_tasks_without_a_worker_of_their_own_go_beside_others_as_memory_allows():
    ladder = [variant("v", 0.9, {"a": 30.0}, task=task, memory=400) for task in "stu"]
    for memory, expected in ((0, 3), (1200, 3), (800, 2), (400, 1)):
        asked = snapshot(ladder, workers(1, memory_bytes_max=memory), *(endpoint(task, task) for task in "stu"))
        (binding,) = StaticAccurate().propose(asked, ample()).bindings
        assert len(binding.variants) == expected


def brute_force_mix(rates, accuracies, count, classes):
    """Highest mean accuracy of all hostings that serve the classes, the most accurate workers to the highest class first; None where none do."""
    best = None
    for hosts in product(rates, repeat=count):
        serves = all(
            sum(rates[key] for key in hosts if accuracies[key] >= floor) >= sum(rate for other, rate in classes.items() if other >= floor) - 1e-9
            for floor in classes
        )
        if serves:
            left, total = sum(classes.values()), 0.0
            for key in sorted(hosts, key=lambda key: -accuracies[key]):
                flow = min(left, rates[key])
                total, left = total + flow * accuracies[key], left - flow
            best = total if best is None else max(best, total)
    return best


@pytest.mark.parametrize("seed", range(15))
def test_a_mix_is_near_the_best_and_keeps_every_class(seed):
    random = np.random.default_rng(seed)
    rates = {f"t/v{step}": float(rate) for step, rate in enumerate(np.cumsum(random.uniform(5.0, 15.0, 3)))}
    accuracies = {key: 0.9 - 0.1 * step for step, key in enumerate(rates)}
    classes = {0.0: float(random.uniform(10, 60)), 0.75: float(random.uniform(0, 30))}
    ladder = [variant(key[2:], accuracies[key], {"a": rates[key]}) for key in rates]
    capacity = Capacity(snapshot(ladder, workers(5)))
    mix = most_accurate_mix(ladder_of(capacity, "t", 1e4), {0: 5}, classes)
    assert sum(mix.values()) == 5
    best = brute_force_mix(rates, accuracies, 5, classes)
    if best is None:
        return
    hosts = [key for (_, key), count in mix.items() for _ in range(count)]
    served = {floor: sum(rates[key] for key in hosts if accuracies[key] >= floor) for floor in classes}
    assert served[0.75] >= classes[0.75] - 1e-9
    assert served[0.0] >= sum(classes.values()) - 1e-9
    left, total = sum(classes.values()), 0.0
    for key in sorted(hosts, key=lambda key: -accuracies[key]):
        flow = min(left, rates[key])
        total, left = total + flow * accuracies[key], left - flow
    assert 0.93 * best <= total <= best + 1e-9


def test_flows_serve_most_then_most_accurately_and_keep_floors():
    fleet = workers(3)
    asked = snapshot(LADDER, fleet, endpoint("e", "t", floors={0.0: 50.0, 0.85: 15.0}))
    bindings = [
        Binding(worker=worker.name, accelerator="cpu", lane=lane, variants=(key,), batch_size_max=1)
        for lane, (worker, key) in enumerate(zip(fleet, ("t/slow", "t/fast", "t/mid"), strict=True))
    ]
    flows = flows_of(bindings, asked, Capacity(asked))
    # 10 of the 15 that ask for 0.85, and 50 of the others on mid and fast.
    assert flows.served_rps == pytest.approx(60.0)
    assert flows.served["e"] == pytest.approx(60.0 / 65.0)
    assert flows.shares["t"] == {"t/fast": pytest.approx(0.5), "t/mid": pytest.approx(1 / 3), "t/slow": pytest.approx(1 / 6)}
    assert flows.load["a"] == pytest.approx((1.0 + 1.0 + 0.75) / 3)


def test_a_worker_with_several_variants_divides_its_time():
    stages = (StageDemand(name="x", task="t"), StageDemand(name="y", task="u", after="x", rows={"*": 2.0}))
    asked = snapshot([LADDER[0], variant("v", 0.5, {"a": 20.0}, task="u")], workers(1), endpoint("e", *stages, rate=100.0))
    binding = Binding(worker="a000", accelerator="cpu", lane=0, variants=("t/slow", "u/v"), batch_size_max=1)
    flows = flows_of([binding], asked, Capacity(asked))
    assert flows.served_rps == pytest.approx(5.0)
    assert flows.accuracy["e"] == pytest.approx(0.45)


def test_static_ones_host_what_they_say():
    asked = snapshot(LADDER, workers(5), endpoint("e", "t", rate=25.0))
    assert hosted(StaticAccurate().propose(asked, ample())) == {("t/slow",): 5}
    assert hosted(StaticFast().propose(asked, ample())) == {("t/fast",): 5}
    assert hosted(HorizontalOnly().propose(asked, ample())) == {("t/slow",): 3}
    floored = snapshot(LADDER, workers(5), endpoint("e", "t", floors={0.7: 9.0, 0.0: 1.0}))
    assert hosted(StaticFast().propose(floored, ample())) == {("t/mid",): 5}


def in_force(asked, proposal, *endpoints):
    bindings = {binding.worker: binding for binding in proposal.bindings}
    fleet = tuple(msgspec.structs.replace(worker, binding=bindings.get(worker.name)) for worker in asked.workers)
    return msgspec.structs.replace(asked, workers=fleet, endpoints=endpoints)


TWO = [*LADDER, variant("v", 0.7, {"a": 10.0}, task="u"), variant("w", 0.5, {"a": 50.0}, task="u")]


def test_clipper_stays_as_it_began_and_static_follows_demand():
    first = snapshot(TWO, workers(6), endpoint("e", "t", rate=30.0), endpoint("f", "u", rate=30.0))
    began = {("t/slow",): 3, ("u/v",): 3}
    moved = (endpoint("e", "t", rate=10.0), endpoint("f", "u", rate=50.0))
    for optimizer, later in ((ClipperHighAccuracy(), began), (StaticAccurate(), {("t/slow",): 1, ("u/v",): 5})):
        proposal = optimizer.propose(first, ample())
        assert hosted(proposal) == began
        assert hosted(optimizer.propose(in_force(first, proposal, *moved), ample())) == later


def test_sommelier_changes_variants_but_never_a_workers_task():
    first = snapshot(TWO, workers(6), endpoint("e", "t", rate=30.0), endpoint("f", "u", rate=30.0))
    proposal = Sommelier().propose(first, ample())
    assert hosted(proposal) == {("t/slow",): 3, ("u/v",): 3}
    later = Sommelier().propose(in_force(first, proposal, endpoint("e", "t", rate=5.0), endpoint("f", "u", rate=110.0)), ample())
    assert hosted(later) == {("t/slow",): 3, ("u/v",): 1, ("u/w",): 2}


def test_infaas_steps_down_by_rate_and_up_a_quarter_at_a_time():
    first = snapshot(LADDER, workers(8), endpoint("e", "t", rate=70.0))
    proposal = Infaas().propose(first, ample())
    assert hosted(proposal) == {("t/slow",): 8}
    pressed = in_force(first, proposal, endpoint("e", "t", rate=300.0))
    proposal = Infaas().propose(pressed, ample())
    assert hosted(proposal) == {("t/fast",): 8}
    relaxed = in_force(first, proposal, endpoint("e", "t", rate=40.0))
    assert hosted(Infaas().propose(relaxed, ample())) == {("t/fast",): 6, ("t/mid",): 2}


def test_greedy_keeps_floors_over_paths_and_spends_the_rest_on_accuracy():
    ladder = [*TWO]
    asked = snapshot(ladder, workers(8), endpoint("e", "t", "u", floors={0.0: 20.0, 0.6: 10.0}))
    proposal = Greedy().propose(asked, ample())
    assert proposal.explanation.served["e"] == pytest.approx(1.0)
    # 0.9 x 0.7 is the only path above 0.6.
    hosts = [key for binding in proposal.bindings for key in binding.variants]
    assert "t/slow" in hosts
    assert "u/v" in hosts
    assert proposal.explanation.accuracy["e"] > 0.5


def test_greedy_on_one_worker_hosts_every_task_and_a_fast_variant():
    asked = snapshot(TWO, workers(1), endpoint("e", "t", rate=2.0), endpoint("f", "u", rate=2.0))
    proposal = Greedy().propose(asked, ample())
    assert proposal.explanation.served == {"e": pytest.approx(1.0), "f": pytest.approx(1.0)}

"""Which request goes to which lane in which variant, and how much a lane is given."""

from __future__ import annotations

import pytest
from policy_stage import LADDER, START_MS, catalog, dispatcher, plan, report, request

from broker.policy import events as ev
from broker.policy.dispatcher import DispatcherPolicy
from broker.policy.entry import Commands
from broker.policy.settings import DispatcherSettings
from schemas.catalog import EndpointSpec, TaskSpec, VariantSpec
from schemas.limits import Limits
from schemas.plan import Binding, Plan
from schemas.profile import Latency
from schemas.telemetry import DispatcherReport, HostedVariant, Returned

ONE_AT_A_TIME = DispatcherSettings(window_ms=0.01)


def drain(policy: DispatcherPolicy, commands: Commands) -> list[str]:
    """Ids in the order in which they are sent when each answer makes room for the next."""
    order: list[str] = []
    pending = list(commands.sends)
    while pending:
        send = pending.pop(0)
        order.append(send.entry.key.decode())
        pending.extend(policy.step(ev.Answered(0, [send.entry.key]), START_MS).sends)
    return order


def test_the_earliest_deadline_goes_first_whatever_came_first() -> None:
    policy = dispatcher("w0", settings=ONE_AT_A_TIME)
    entries = [
        request(f"{timeout_ms}", timeout_ms=timeout_ms, floor=floor) for timeout_ms, floor in ((900, 0.8), (300, 0.93), (600, 0.9), (310, 0.8))
    ]
    assert drain(policy, policy.step(ev.Arrived(0, entries), START_MS)) == ["300", "310", "600", "900"]


def test_a_higher_priority_goes_before_an_earlier_deadline() -> None:
    policy = dispatcher("w0", settings=ONE_AT_A_TIME)
    entries = [request(f"{priority}", timeout_ms=300 + 50 * priority, priority=priority) for priority in (9, 1, 0, 4, 6)]
    assert drain(policy, policy.step(ev.Arrived(0, entries), START_MS)) == ["1", "4", "0", "6", "9"], "0 is the middle"


def test_equal_deadlines_keep_their_order() -> None:
    policy = dispatcher("w0", settings=ONE_AT_A_TIME)
    names = [f"r{at}" for at in range(20)]
    assert drain(policy, policy.step(ev.Arrived(0, [request(name) for name in names]), START_MS)) == names


def test_a_lane_holds_no_more_than_its_window_of_work() -> None:
    policy = dispatcher("w0", settings=DispatcherSettings(window_ms=25.0))
    commands = policy.step(ev.Arrived(0, [request(f"r{at}", floor=0.9338, timeout_ms=60_000) for at in range(100)]), START_MS)
    assert len(commands.sends) == 13, "one that is being computed, and 25 ms of 2.25 ms each, the last one overlapping"
    assert policy.waiting == 87


def test_a_lane_holds_no_more_rows_than_its_credits() -> None:
    policy = dispatcher()
    policy.step(ev.PlanObserved(plan("w0")), START_MS)
    policy.step(ev.TelemetryObserved(report("w0", credits=4)), START_MS)
    assert len(policy.step(ev.Arrived(0, [request(f"r{at}", rows=2) for at in range(10)]), START_MS).sends) == 3, "one of them is being computed"


def test_a_request_larger_than_the_credits_is_sent_alone() -> None:
    policy = dispatcher()
    policy.step(ev.PlanObserved(plan("w0")), START_MS)
    policy.step(ev.TelemetryObserved(report("w0", credits=4)), START_MS)
    sends = policy.step(ev.Arrived(0, [request("small"), request("large", rows=64), request("next")]), START_MS).sends
    assert [send.entry.key for send in sends] == [b"small", b"large"]


def test_a_worker_that_promises_too_much_is_bounded_by_the_limits() -> None:
    policy = dispatcher(limits=Limits(lane_rows_max=3))
    policy.step(ev.PlanObserved(plan("w0")), START_MS)
    policy.step(ev.TelemetryObserved(report("w0", credits=1_000_000)), START_MS)
    assert len(policy.step(ev.Arrived(0, [request(f"r{at}") for at in range(10)]), START_MS).sends) == 4


def test_several_dispatchers_share_a_lane() -> None:
    policy = dispatcher("w0")
    for name in ("d1", "d2", "d3"):
        policy.step(ev.TelemetryObserved(DispatcherReport(dispatcher=name, incarnation=1, at_ms=0, shards=(1,))), START_MS)
    sends = policy.step(ev.Arrived(0, [request(f"r{at}", floor=0.9338, timeout_ms=60_000) for at in range(50)]), START_MS).sends
    assert len(sends) == 10, "one that is being computed, and 20 ms of 2.25 ms each"


def test_work_is_spread_over_lanes_by_what_they_have_to_do() -> None:
    policy = dispatcher("w0", "w1", "w2")
    sends = policy.step(ev.Arrived(0, [request(f"r{at}", floor=0.9338, timeout_ms=60_000) for at in range(9)]), START_MS).sends
    assert sorted(send.worker for send in sends) == ["w0"] * 3 + ["w1"] * 3 + ["w2"] * 3


def test_spare_room_is_used_for_accuracy_and_a_near_deadline_steps_down() -> None:
    (send,) = dispatcher("w0").step(ev.Arrived(0, [request("a", floor=0.8, timeout_ms=500)]), START_MS).sends
    assert send.variant == "fashion/wide"
    (send,) = dispatcher("w0").step(ev.Arrived(0, [request("a", floor=0.8, timeout_ms=18)]), START_MS).sends
    assert send.variant == "fashion/resnet", "wide needs 2.5 ms and the way 16"


def test_under_a_plan_with_shares_the_parts_come_out_as_planned() -> None:
    policy = dispatcher()
    policy.step(ev.PlanObserved(plan("w0", shares={"fashion": {"fashion/linear": 0.25, "fashion/wide": 0.75, "fashion/unknown": 5.0}})), START_MS)
    policy.step(ev.TelemetryObserved(report("w0")), START_MS)
    variants: list[str] = []
    for at in range(40):
        (send,) = policy.step(ev.Arrived(0, [request(f"r{at}", floor=0.8)]), START_MS).sends
        variants.append(send.variant)
        policy.step(ev.Answered(0, [send.entry.key]), START_MS)
    assert variants.count("fashion/linear") == 10
    assert variants.count("fashion/wide") == 30
    (send,) = policy.step(ev.Arrived(0, [request("high", floor=0.93)]), START_MS).sends
    assert send.variant == "fashion/wide", "shares never go below the floor"
    policy.step(ev.PlanObserved(plan("w0", epoch=2, shares={"fashion": {"fashion/linear": 1.0}})), START_MS)
    policy.step(ev.Answered(0, [b"high"]), START_MS)
    (send,) = policy.step(ev.Arrived(0, [request("higher", floor=0.93)]), START_MS).sends
    assert send.accuracy >= 0.93, "the plan has nothing for this floor: the best that there is"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"state": "draining"}, "the worker takes nothing new"),
        ({"state": "starting"}, "the worker is not ready"),
        ({"lane": 3}, "it reads another lane than the plan says"),
        ({"lane": None}, "it reads no lane"),
        ({"variants": {}}, "it hosts nothing"),
        ({"variants": {f"fashion/{name}": HostedVariant(state="loading", latency={1: Latency(1, 1)}) for name in LADDER}}, "nothing is ready"),
        ({"variants": {f"fashion/{name}": HostedVariant(state="ready") for name in LADDER}}, "nothing is known of its speed"),
    ],
)
def test_nothing_is_sent_to_a_worker_that_is_not_ready_for_it(change: dict[str, object], why: str) -> None:
    policy = dispatcher()
    policy.step(ev.PlanObserved(plan("w0")), START_MS)
    policy.step(ev.TelemetryObserved(report("w0", **change)), START_MS)
    assert policy.step(ev.Arrived(0, [request("a", timeout_ms=9_000)]), START_MS).sends == [], why
    assert len(policy.step(ev.TelemetryObserved(report("w0")), START_MS).sends) == 1


def test_a_variant_that_the_plan_does_not_bind_is_not_used() -> None:
    policy = dispatcher()
    policy.step(ev.PlanObserved(plan("w0", variants=["linear", "cnn"])), START_MS)
    policy.step(ev.TelemetryObserved(report("w0")), START_MS)
    (send,) = policy.step(ev.Arrived(0, [request("a", floor=0.8)]), START_MS).sends
    assert send.variant == "fashion/cnn"
    assert policy.step(ev.Arrived(0, [request("b", floor=0.93, timeout_ms=9_000)]), START_MS).sends == []


def test_an_older_plan_is_ignored() -> None:
    policy = dispatcher()
    policy.step(ev.PlanObserved(plan("w0", epoch=5)), START_MS)
    policy.step(ev.PlanObserved(Plan(epoch=4)), START_MS)
    policy.step(ev.TelemetryObserved(report("w0")), START_MS)
    assert len(policy.step(ev.Arrived(0, [request("a")]), START_MS).sends) == 1


def test_a_request_that_only_one_lane_can_serve_goes_there() -> None:
    policy = dispatcher()
    weak, strong = plan("w0", variants=["linear"]).bindings[0], plan("x", "w1").bindings[1]
    policy.step(ev.PlanObserved(Plan(epoch=2, bindings=(weak, strong))), START_MS)
    for worker in ("w0", "w1"):
        policy.step(ev.TelemetryObserved(report(worker)), START_MS)
    sends = policy.step(ev.Arrived(0, [request(f"r{at}", floor=0.93) for at in range(5)]), START_MS).sends
    assert {send.worker for send in sends} == {"w1"}


def test_tasks_that_share_no_lane_do_not_wait_for_each_other() -> None:
    policy = dispatcher("w0")
    known = catalog()
    known.tasks["other"] = TaskSpec(name="other", variants=(VariantSpec(name="v", file="f", sha256="", accuracy=0.5),))
    known.endpoints["other"] = EndpointSpec(name="other", task="other")
    policy.step(ev.CatalogObserved(known), START_MS)
    bindings = (*plan("w0").bindings, Binding(worker="w1", accelerator="gpu", lane=1, variants=("other/v",)))
    policy.step(ev.PlanObserved(Plan(epoch=2, bindings=bindings)), START_MS)
    hosted = {"other/v": HostedVariant(state="ready", latency={1: Latency(1.0, 1.2)})}
    policy.step(ev.TelemetryObserved(report("w1", accelerator="gpu", variants=hosted)), START_MS)
    full = policy.step(ev.Arrived(0, [request(f"r{at}", floor=0.9338, timeout_ms=90) for at in range(100)]), START_MS)
    assert full.answers, "the first task is overloaded"
    (send,) = policy.step(ev.Arrived(0, [request("o", endpoint="other", timeout_ms=90)]), START_MS).sends
    assert (send.worker, send.accelerator, send.lane) == ("w1", "gpu", 1)
    assert len(policy.fleet.pools) == 2


def test_a_task_that_shares_a_lane_shares_its_load() -> None:
    policy = dispatcher()
    known = catalog()
    known.tasks["other"] = TaskSpec(name="other", variants=(VariantSpec(name="v", file="f", sha256="", accuracy=0.5),))
    known.endpoints["other"] = EndpointSpec(name="other", task="other")
    policy.step(ev.CatalogObserved(known), START_MS)
    binding = Binding(worker="w0", accelerator="cpu", lane=0, variants=("other/v", "fashion/wide"))
    policy.step(ev.PlanObserved(Plan(epoch=2, bindings=(binding,))), START_MS)
    hosted = {key: HostedVariant(state="ready", latency={1: Latency(2.0, 2.2)}) for key in binding.variants}
    policy.step(ev.TelemetryObserved(report("w0", variants=hosted)), START_MS)
    assert len(policy.fleet.pools) == 1
    assert policy.step(ev.Arrived(0, [request(f"r{at}", timeout_ms=90) for at in range(100)]), START_MS).answers
    (answer,) = policy.step(ev.Arrived(0, [request("o", endpoint="other", timeout_ms=90)]), START_MS).answers
    assert answer.code == "overloaded"


def test_what_more_urgent_work_has_made_impossible_is_refused_at_once() -> None:
    policy = dispatcher("w0")
    first = [request(f"o{at}", floor=0.9338, timeout_ms=110, priority=9) for at in range(30)]
    admitted = 30 - len(policy.step(ev.Arrived(0, first), START_MS).answers)
    assert admitted > 20
    policy.step(ev.Arrived(0, [request(f"u{at}", floor=0.9338, timeout_ms=110, priority=1) for at in range(30)]), START_MS)
    waiting = policy.waiting
    sent = list(policy.fleet.orders)
    commands = policy.step(ev.Answered(0, sent), START_MS + 94)
    refused = [answer for answer in commands.answers if answer.code == "overloaded"]
    assert refused, "0 ms are left for those that wait"
    assert all("more urgent work" in answer.message for answer in refused)
    assert waiting == len(commands.sends) + len(refused) + policy.waiting


def test_a_lane_that_is_too_slow_for_a_request_leaves_it_to_another() -> None:
    policy = dispatcher()
    policy.step(ev.PlanObserved(plan("w0", "w1")), START_MS)
    slow = {name: (accuracy, 40.0) for name, (accuracy, _) in LADDER.items()}
    for worker in (report("w0", slow), report("w1")):
        policy.step(ev.TelemetryObserved(worker), START_MS)
    first = policy.step(ev.Arrived(0, [request("first", floor=0.9338, timeout_ms=40)]), START_MS)
    second = policy.step(ev.Arrived(0, [request("second", floor=0.9338, timeout_ms=40)]), START_MS)
    assert [send.worker for send in (*first.sends, *second.sends)] == ["w1", "w1"], "w0 is idle, and would be late"


def test_new_shares_hold_from_the_plan_on() -> None:
    policy = dispatcher("w0")
    policy.step(ev.PlanObserved(plan("w0", epoch=2, shares={"fashion": {"fashion/linear": 1.0}})), START_MS)
    (send,) = policy.step(ev.Arrived(0, [request("a", floor=0.8)]), START_MS).sends
    assert send.variant == "fashion/linear"


def test_what_was_handed_back_as_late_is_not_sent_there_in_that_variant_again() -> None:
    policy = dispatcher("w0", "w1")
    (send,) = policy.step(ev.Arrived(0, [request("a", timeout_ms=400)]), START_MS).sends
    seen = [(send.worker, send.variant)]
    while True:
        late = Returned(worker=send.worker, incarnation=1, ids=("a",), reason="too slow here", cause="late", at_ms=0)
        sends = policy.step(ev.TelemetryObserved(late), START_MS).sends
        if not sends:
            break
        (send,) = sends
        seen.append((send.worker, send.variant))
    assert len(seen) == len(set(seen)), "each lane has tried each variant once"
    assert {worker for worker, _ in seen} == {"w0", "w1"}
    assert send.attempt == 1, "handed back unstarted: no attempt"
    (expired,) = policy.step(ev.Ticked(), START_MS + 500).answers
    assert expired.outcome == "expired"


def test_shares_give_way_to_cheaper_variants_while_a_queue_stands_and_hold_again_after_it() -> None:
    policy = dispatcher("w0")
    policy.step(ev.PlanObserved(plan("w0", epoch=2, shares={"fashion": {"fashion/wide": 1.0}})), START_MS)
    rush = [request(f"r{at}", timeout_ms=1_000, floor=0.9) for at in range(800)]
    pending = list(policy.step(ev.Arrived(0, rush), START_MS).sends)
    sent: dict[str, int] = {}
    now_ms = START_MS
    while pending:
        send = pending.pop(0)
        sent[send.variant] = sent.get(send.variant, 0) + 1
        now_ms += LADDER[send.variant.partition("/")[2]][1]
        pending.extend(policy.step(ev.Answered(0, [send.entry.key]), now_ms).sends)
    assert sum(sent.values()) > 780, "800 rows of the planned variant would take 1.7 s"
    assert "fashion/linear" not in sent, "never below the floor"
    assert sent["fashion/wide"] < 500 < sum(sent.values())
    policy.step(ev.Ticked(), now_ms + 2_000)
    (send,) = policy.step(ev.Arrived(0, [request("quiet", received_ms=now_ms + 2_000, floor=0.9)]), now_ms + 2_001).sends
    assert send.variant == "fashion/wide"

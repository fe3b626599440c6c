"""What is refused, with which code, and what the refusal offers instead."""

from __future__ import annotations

import pytest
from policy_stage import START_MS, catalog, dispatcher, plan, report, request

from broker.policy import events as ev
from broker.policy.entry import Answer, Commands, Entry
from broker.policy.quotas import Quotas
from schemas.catalog import Catalog, Defaults, EndpointSpec, Quota, TaskSpec
from schemas.limits import Limits


def arrive(entry: Entry, *workers: str, now_ms: float = START_MS) -> Commands:
    return dispatcher(*(workers or ("w0",))).step(ev.Arrived(0, [entry]), now_ms)


def refusal(commands: Commands) -> Answer:
    (answer,) = commands.answers
    assert answer.outcome == "rejected"
    assert commands.sends == []
    return answer


def test_a_floor_above_every_variant_is_refused_with_the_best_there_is() -> None:
    answer = refusal(arrive(request("a", floor=0.95)))
    assert answer.code == "infeasible_accuracy"
    assert "0.95" in answer.message
    assert "0.9338" in answer.message


def test_a_floor_that_equals_a_declared_accuracy_is_met() -> None:
    (send,) = arrive(request("a", floor=0.9338)).sends
    assert (send.variant, send.accuracy) == ("fashion/wide", 0.9338)


@pytest.mark.parametrize(("floor", "timeout_ms", "least"), [(0.8, 16, "16"), (0.8, 5, "16"), (0.932, 18, "19")])
def test_a_deadline_that_no_variant_meets_is_refused_with_what_it_would_take(floor: float, timeout_ms: int, least: str) -> None:
    answer = refusal(arrive(request("a", floor=floor, timeout_ms=timeout_ms)))
    assert answer.code == "infeasible_deadline"
    assert f"{timeout_ms} ms are left" in answer.message
    assert f"needs {least} ms" in answer.message


def test_the_fastest_variant_at_the_floor_is_the_one_that_is_named() -> None:
    assert "fashion/resnet" in refusal(arrive(request("a", floor=0.92, timeout_ms=10))).message


def test_a_deadline_in_the_past_says_by_how_much() -> None:
    answer = refusal(arrive(request("a", deadline_at_ms=int(START_MS) - 250)))
    assert answer.code == "infeasible_deadline"
    assert "250 ms before" in answer.message


def test_the_earlier_of_deadline_and_timeout_holds() -> None:
    for fields in ({"deadline_at_ms": int(START_MS) + 300, "timeout_ms": 900}, {"deadline_at_ms": int(START_MS) + 900, "timeout_ms": 300}):
        entry = request("a", **fields)
        arrive(entry)
        assert entry.deadline_ms == START_MS + 300


def test_with_neither_the_endpoint_decides_about_time_floor_and_priority() -> None:
    policy = dispatcher("w0")
    known = catalog()
    known.endpoints["fashion"] = EndpointSpec(name="fashion", task="fashion", defaults=Defaults(min_accuracy=0.92, timeout_ms=700, priority=2))
    policy.step(ev.CatalogObserved(known), START_MS)
    entry = request("a", timeout_ms=None)
    policy.step(ev.Arrived(0, [entry]), START_MS)
    assert (entry.deadline_ms, entry.floor, entry.priority) == (START_MS + 700, 0.92, 2)


def test_a_deadline_more_than_a_day_away_is_a_bad_request() -> None:
    limit_ms = Limits().timeout_ms_max
    assert refusal(arrive(request("a", timeout_ms=None, deadline_at_ms=int(START_MS) + limit_ms + 1))).code == "bad_request"
    assert arrive(request("a", timeout_ms=None, deadline_at_ms=int(START_MS) + limit_ms)).sends


def test_an_unknown_endpoint_is_told_the_known_ones() -> None:
    answer = refusal(arrive(request("a", endpoint="fashoin")))
    assert answer.code == "unknown_endpoint"
    assert "'fashoin'" in answer.message
    assert "known are fashion" in answer.message


def test_an_endpoint_whose_task_is_not_there_is_unknown() -> None:
    policy = dispatcher()
    policy.step(ev.CatalogObserved(Catalog({}, {"shop": EndpointSpec(name="shop", task="gone")})), START_MS)
    answer = refusal(policy.step(ev.Arrived(0, [request("a", endpoint="shop")]), START_MS))
    assert answer.code == "unknown_endpoint"
    assert "'gone'" in answer.message


def test_a_task_without_a_variant_offers_nothing() -> None:
    policy = dispatcher()
    policy.step(ev.CatalogObserved(Catalog({"t": TaskSpec(name="t", variants=())}, {"shop": EndpointSpec(name="shop", task="t")})), START_MS)
    assert refusal(policy.step(ev.Arrived(0, [request("a", endpoint="shop")]), START_MS)).code == "infeasible_accuracy"


def test_what_could_not_be_read_keeps_its_own_refusal() -> None:
    answer = refusal(arrive(request("a", refused=("too_large", "2 MB"))))
    assert (answer.code, answer.message) == ("too_large", "2 MB")


def test_without_a_worker_only_a_far_deadline_waits_for_one() -> None:
    policy = dispatcher()
    answer = refusal(policy.step(ev.Arrived(0, [request("near", timeout_ms=1_400)]), START_MS))
    assert answer.code == "overloaded"
    assert "no worker" in answer.message
    far = request("far", timeout_ms=5_000)
    assert policy.step(ev.Arrived(0, [far]), START_MS).answers == []
    policy.step(ev.PlanObserved(plan("w0")), START_MS)
    (send,) = policy.step(ev.TelemetryObserved(report("w0")), START_MS + 1_000).sends
    assert send.entry is far


def test_what_does_not_fit_before_its_deadline_is_refused_with_when_it_would() -> None:
    policy = dispatcher("w0")
    # 2.25 ms of work each, 90 ms to go: about 30 fit.
    entries = [request(f"r{at}", floor=0.9338, timeout_ms=90) for at in range(100)]
    commands = policy.step(ev.Arrived(0, entries), START_MS)
    assert {answer.code for answer in commands.answers} == {"overloaded"}
    assert 20 < 100 - len(commands.answers) < 40
    assert "ms later might be met" in commands.answers[0].message
    later = policy.step(ev.Arrived(0, [request("later", floor=0.9338, timeout_ms=400)]), START_MS)
    assert later.answers == [], "a later deadline has room"


def test_urgent_work_is_not_refused_for_ordinary_work_in_the_way() -> None:
    policy = dispatcher("w0")
    ordinary = [request(f"r{at}", floor=0.9338, timeout_ms=200, priority=9) for at in range(200)]
    assert policy.step(ev.Arrived(0, ordinary), START_MS).answers, "it is full"
    assert policy.step(ev.Arrived(0, [request("urgent", floor=0.9338, timeout_ms=200, priority=1)]), START_MS).answers == []


@pytest.mark.parametrize("limits", [Limits(waiting_max=10), Limits(waiting_bytes_max=1_500)])
def test_nothing_waits_beyond_the_limits(limits: Limits) -> None:
    policy = dispatcher(limits=limits)
    commands = policy.step(ev.Arrived(0, [request(f"r{at}", timeout_ms=60_000) for at in range(30)]), START_MS)
    assert {answer.code for answer in commands.answers} == {"overloaded"}
    assert policy.waiting == 30 - len(commands.answers) <= 16
    assert "the limit is" in commands.answers[0].message


def test_a_tenant_over_its_quota_is_refused_and_others_are_not() -> None:
    policy = dispatcher("w0")
    known = catalog()
    known.endpoints["fashion"] = EndpointSpec(
        name="fashion", task="fashion", quotas={"a": Quota(rate_rps=10, burst=2), "*": Quota(rate_rps=1, burst=1)}
    )
    policy.step(ev.CatalogObserved(known), START_MS)
    codes = [answer.code for answer in policy.step(ev.Arrived(0, [request(f"a{at}", tenant="a") for at in range(4)]), START_MS).answers]
    assert codes == ["quota", "quota"]
    assert policy.step(ev.Arrived(0, [request("b0", tenant="b")]), START_MS).answers == []
    (answer,) = policy.step(ev.Arrived(0, [request("b1", tenant="b")]), START_MS).answers
    assert (answer.code, "'b'" in answer.message) == ("quota", True)
    assert policy.step(ev.Arrived(0, [request("a9", tenant="a")]), START_MS + 100).answers == [], "filled again by time"


def test_quotas_hold_a_bounded_number_of_tenants_apart() -> None:
    quotas, limit = Quotas(tenants_max=2), {"*": Quota(rate_rps=0.001, burst=1)}
    assert [quotas.take("e", tenant, limit, 0.0) for tenant in ("a", "b", "c", "d")] == [True, True, True, False], "c and d share"
    assert quotas.take("e", "a", {}, 0.0), "no quota, no limit"


def test_a_clock_that_is_set_back_fills_no_quota() -> None:
    quotas, limit = Quotas(tenants_max=2), {"a": Quota(rate_rps=1, burst=1)}
    taken = [quotas.take("e", "a", limit, now_ms) for now_ms in (10_000.0, 5_000.0, 10_900.0, 11_000.0)]
    assert taken == [True, False, False, True]

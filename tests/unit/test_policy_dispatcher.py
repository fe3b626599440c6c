"""The life of a request in the dispatcher: duplicates, losses, expiry, crashes, catalog changes; one story each."""

from __future__ import annotations

import pytest
from policy_stage import LADDER, START_MS, catalog, dispatcher, plan, report, request

from broker.policy import events as ev
from broker.policy.dispatcher import CHECK_INTERVAL_MS, DispatcherPolicy
from broker.policy.entry import Commands, Entry, State
from broker.policy.settings import DispatcherSettings
from broker.policy.watermark import Watermark
from schemas.catalog import Catalog
from schemas.limits import Limits
from schemas.telemetry import Departed, DispatcherReport, HostedVariant, Returned

SETTINGS = DispatcherSettings()


def numbered(*names: str, **fields: object) -> list[Entry]:
    return [request(name, offset=at, **fields) for at, name in enumerate(names)]


def tick(policy: DispatcherPolicy, now_ms: float) -> Commands:
    return policy.step(ev.Ticked(), now_ms)


def overdue(policy: DispatcherPolicy, now_ms: float) -> Commands:
    """A report that keeps the worker alive, then the check of leases."""
    policy.step(ev.TelemetryObserved(report("w0", waiting_rows=5)), now_ms)
    return tick(policy, now_ms)


# -- answers


def test_a_request_is_owned_until_its_answer_has_been_read_from_the_log() -> None:
    policy = dispatcher("w0")
    (send,) = policy.step(ev.Arrived(0, numbered("a")), START_MS).sends
    assert (policy.live, policy.commits()[0][0]) == (1, 0)
    policy.step(ev.Answered(0, [b"a"]), START_MS + 5)
    assert (policy.live, policy.commits()[0][0]) == (0, 1)
    assert send.entry.state == State.DONE
    assert send.entry.payload is None, "its bytes are let go"


def test_even_a_refusal_is_finished_only_when_the_log_has_it() -> None:
    policy = dispatcher("w0")
    (answer,) = policy.step(ev.Arrived(0, numbered("a", floor=1.0)), START_MS).answers
    assert (answer.outcome, policy.commits()[0][0]) == ("rejected", 0)
    policy.step(ev.Answered(0, [b"a"]), START_MS)
    assert policy.commits()[0][0] == 1


def test_an_answer_of_another_shard_finishes_nothing_here() -> None:
    policy = dispatcher("w0")
    policy.step(ev.ShardAssigned(1, Watermark()), START_MS)
    policy.step(ev.Arrived(0, numbered("a")), START_MS)
    policy.step(ev.Answered(1, [b"a"]), START_MS)
    policy.step(ev.Answered(7, [b"a"]), START_MS)
    assert policy.live == 1
    assert b"a" in policy.fleet.orders


def test_a_late_answer_after_our_own_frees_the_lane() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a", timeout_ms=100)), START_MS)
    (answer,) = tick(policy, START_MS + 120).answers
    assert answer.outcome == "expired"
    assert policy.step(ev.Answered(0, [b"a"]), START_MS + 121).answers == []
    assert b"a" in policy.fleet.orders, "that was ours; the worker still computes"
    policy.step(ev.Answered(0, [b"a"]), START_MS + 130)
    assert policy.fleet.orders == {}


# -- duplicates


def test_the_same_id_again_is_ignored_while_it_runs_and_after() -> None:
    policy = dispatcher("w0")
    first = policy.step(ev.Arrived(0, [request("a", offset=0), request("a", offset=1)]), START_MS)
    assert len(first.sends) == 1
    assert policy.step(ev.Arrived(0, [request("a", offset=2)]), START_MS) == Commands()
    policy.step(ev.Answered(0, [b"a"]), START_MS)
    assert policy.step(ev.Arrived(0, [request("a", offset=3)]), START_MS) == Commands()
    assert (policy.duplicates, policy.live, policy.commits()[0][0]) == (3, 0, 4)


def test_the_same_id_on_two_shards_is_one_request() -> None:
    policy = dispatcher("w0")
    policy.step(ev.ShardAssigned(1, Watermark()), START_MS)
    policy.step(ev.ShardRecovered(1), START_MS)
    policy.step(ev.Arrived(0, [request("a", offset=0, timeout_ms=300)]), START_MS)
    commands = policy.step(ev.Arrived(1, [request("a", offset=0, shard=1, timeout_ms=300)]), START_MS)
    assert commands == Commands()
    assert (policy.live, policy.duplicates) == (1, 1)
    assert policy.commits()[1][0] == 1


# -- expiry


def test_waiting_requests_expire_at_their_deadline_and_not_before() -> None:
    policy = dispatcher()
    policy.step(ev.Arrived(0, numbered("a", timeout_ms=5_000)), START_MS)
    due_ms = policy.next_wake_ms()
    assert due_ms is not None
    assert START_MS + 5_000 <= due_ms <= START_MS + 5_004
    assert tick(policy, START_MS + 4_999.9).answers == []
    (answer,) = tick(policy, due_ms).answers
    assert (answer.outcome, answer.code) == ("expired", "deadline_exceeded")
    assert "waited" in answer.message
    assert policy.next_wake_ms() is None


def test_what_a_worker_has_expires_a_moment_later_so_that_an_answer_in_time_can_come() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a", timeout_ms=100)), START_MS)
    assert tick(policy, START_MS + 105).answers == []
    (answer,) = tick(policy, START_MS + 100 + SETTINGS.expiry_grace_ms + 4).answers
    assert "a worker had it" in answer.message
    assert answer.outcome == "expired"


# -- losses


def test_a_lease_that_runs_out_is_another_attempt_elsewhere_up_to_three_then_dead_letters() -> None:
    policy = dispatcher("w0", "w1")
    (send,) = policy.step(ev.Arrived(0, numbered("a", timeout_ms=60_000)), START_MS).sends
    tried = [send.worker]
    now_ms = START_MS
    for attempt in (2, 3):
        now_ms += SETTINGS.lease_ms + CHECK_INTERVAL_MS
        for worker in ("w0", "w1"):
            policy.step(ev.TelemetryObserved(report(worker, waiting_rows=0 if worker != tried[-1] else 1)), now_ms)
        (send,) = tick(policy, now_ms).sends
        assert send.attempt == attempt
        assert send.worker != tried[-1], "the lane is stalled until it shows life"
        tried.append(send.worker)
    now_ms += SETTINGS.lease_ms + CHECK_INTERVAL_MS
    for worker in ("w0", "w1"):
        policy.step(ev.TelemetryObserved(report(worker, waiting_rows=1)), now_ms)
    commands = tick(policy, now_ms)
    (letter,) = commands.dead_letters
    assert commands.sends == commands.answers == []
    assert "3 attempts" in letter.reason
    (answer,) = policy.step(ev.DeadLettered(letter.entry), now_ms + 1).answers
    assert (answer.outcome, answer.code) == ("failed", "attempts_exhausted")
    assert policy.step(ev.DeadLettered(letter.entry), now_ms + 2).answers == [], "said once"


def test_a_dead_letter_that_the_log_does_not_take_still_ends_with_the_deadline() -> None:
    policy = dispatcher("w0", limits=Limits(attempts_max=1))
    policy.step(ev.Arrived(0, numbered("a", timeout_ms=9_000)), START_MS)
    (letter,) = overdue(policy, START_MS + 2_100).dead_letters
    (answer,) = tick(policy, START_MS + 9_004).answers
    assert answer.outcome == "expired"
    assert policy.step(ev.DeadLettered(letter.entry), START_MS + 9_005).answers == []


@pytest.mark.parametrize(
    "record",
    [
        Departed(role="worker", name="w0", incarnation=1, at_ms=int(START_MS)),
        Departed(role="worker", name="w0", incarnation=0, at_ms=int(START_MS)),
        report("w0", incarnation=2, state="starting"),
        report("w0", state="stopped"),
    ],
)
def test_a_worker_that_is_gone_gives_its_work_to_others_at_once(record: Departed) -> None:
    policy = dispatcher("w0", "w1")
    entries = numbered("a", "b")
    sends = policy.step(ev.Arrived(0, entries), START_MS).sends
    lost = next(send for send in sends if send.worker == "w0")
    (again,) = policy.step(ev.TelemetryObserved(record), START_MS + 1).sends
    assert (again.entry, again.worker, again.attempt) == (lost.entry, "w1", 2)


@pytest.mark.parametrize(
    "record",
    [
        Departed(role="worker", name="w0", incarnation=9, at_ms=int(START_MS)),
        Departed(role="worker", name="nobody", incarnation=1, at_ms=int(START_MS)),
        Departed(role="worker", name="w0", incarnation=0, at_ms=0),
        Departed(role="sink", name="sink", incarnation=1, at_ms=int(START_MS)),
        report("w0", incarnation=0, state="stopped"),
    ],
)
def test_news_of_another_life_changes_nothing(record: Departed) -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a")), START_MS)
    assert policy.step(ev.TelemetryObserved(record), START_MS + 1) == Commands()
    assert len(policy.fleet.orders) == 1


def test_a_silent_worker_is_given_up() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a", timeout_ms=60_000)), START_MS)
    assert tick(policy, START_MS + SETTINGS.worker_lost_ms + 1).sends == []
    assert (policy.fleet.ready_lanes, policy.fleet.orders, policy.waiting) == (0, {}, 1)
    (send,) = policy.step(ev.TelemetryObserved(report("w0")), START_MS + 5_000).sends
    assert send.attempt == 2


def test_a_worker_that_hands_back_keeps_the_attempts_and_is_not_asked_again() -> None:
    policy = dispatcher("w0")
    (send,) = policy.step(ev.Arrived(0, numbered("a")), START_MS).sends
    returned = Returned(worker="w0", incarnation=1, ids=("a", "unknown"), reason="not hosted", at_ms=0)
    (again,) = policy.step(ev.TelemetryObserved(returned), START_MS + 1).sends
    assert again.attempt == 1
    assert again.variant != send.variant, "this variant is not there until the next report says so"
    stale = Returned(worker="w0", incarnation=7, ids=("a",), reason="not hosted", at_ms=0)
    assert policy.step(ev.TelemetryObserved(stale), START_MS + 2) == Commands()
    policy.step(ev.Answered(0, [b"a"]), START_MS + 3)
    policy.step(ev.TelemetryObserved(report("w0")), START_MS + 4)
    (other,) = policy.step(ev.Arrived(0, [request("b", offset=1)]), START_MS + 5).sends
    assert other.variant == send.variant


def test_orders_that_the_log_did_not_take_are_sent_again() -> None:
    policy = dispatcher("w0")
    (send,) = policy.step(ev.Arrived(0, numbered("a")), START_MS).sends
    (lane,) = policy.fleet.lanes
    lane._full_since_ms = START_MS
    (again,) = policy.step(ev.SendsFailed([send.entry]), START_MS + 1).sends
    assert lane._full_since_ms is None, "and nothing can be said about the lane's speed"
    assert again.attempt == 2, "whether the worker has the first one is unknown"
    policy.step(ev.Answered(0, [b"a"]), START_MS + 2)
    assert policy.step(ev.SendsFailed([send.entry]), START_MS + 3) == Commands()


def test_a_failed_send_of_an_earlier_life_of_the_shard_takes_nothing_from_the_present_one() -> None:
    policy = dispatcher("w0")
    (old,) = policy.step(ev.Arrived(0, numbered("a")), START_MS).sends
    policy.step(ev.ShardRevoked(0), START_MS)
    policy.step(ev.ShardAssigned(0, Watermark()), START_MS)
    policy.step(ev.ShardRecovered(0), START_MS)
    (new,) = policy.step(ev.Arrived(0, numbered("a")), START_MS).sends
    assert policy.step(ev.SendsFailed([old.entry]), START_MS) == Commands()
    assert policy.fleet.orders[b"a"].entry is new.entry


def test_a_hung_lane_gets_nothing_until_it_shows_life() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a", timeout_ms=60_000)), START_MS)
    assert overdue(policy, START_MS + 2_100).sends == []
    assert policy.step(ev.Arrived(0, [request("b", offset=1, timeout_ms=60_000)]), START_MS + 2_200).sends == []
    sends = policy.step(ev.TelemetryObserved(report("w0", waiting_rows=0)), START_MS + 2_300).sends
    assert {send.entry.key for send in sends} == {b"a", b"b"}


# -- the catalog changes


def test_what_waits_for_an_endpoint_that_goes_is_refused_and_what_was_lost_fails() -> None:
    policy = dispatcher("w0")
    (send,) = policy.step(ev.Arrived(0, [request("tried", offset=0, timeout_ms=60_000)]), START_MS).sends
    policy.step(ev.TelemetryObserved(report("w0", state="stopped")), START_MS)
    policy.step(ev.Arrived(0, [request("fresh", offset=1, timeout_ms=60_000)]), START_MS)
    answers = policy.step(ev.CatalogObserved(Catalog()), START_MS + 1).answers
    assert {answer.entry.key: (answer.outcome, answer.code) for answer in answers} == {
        b"fresh": ("rejected", "unknown_endpoint"),
        b"tried": ("failed", "unknown_endpoint"),
    }, "rejected says that no worker ever had it"
    assert send.entry.state == State.ANSWERED


def test_what_a_worker_loses_after_its_endpoint_went_fails() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a", timeout_ms=60_000)), START_MS)
    assert policy.step(ev.CatalogObserved(Catalog()), START_MS).answers == [], "a worker has it, and may answer"
    (answer,) = policy.step(ev.TelemetryObserved(report("w0", state="stopped")), START_MS).answers
    assert (answer.outcome, answer.code) == ("failed", "unknown_endpoint")


def test_what_waits_is_judged_by_the_new_catalog() -> None:
    policy = dispatcher()
    policy.step(ev.Arrived(0, numbered("a", floor=0.9, timeout_ms=60_000)), START_MS)
    better = catalog({"linear": (0.7, 0.01), "cnn": (0.89, 0.08), "wide": (0.99, 2.1)})
    assert policy.step(ev.CatalogObserved(better), START_MS).answers == []
    policy.step(ev.PlanObserved(plan("w0")), START_MS)
    (send,) = policy.step(ev.TelemetryObserved(report("w0")), START_MS).sends
    assert (send.variant, send.accuracy) == ("fashion/wide", 0.99)


# -- other dispatchers


def test_the_share_follows_who_is_there() -> None:
    policy = dispatcher("w0")
    assert policy.fleet.share == 1.0
    for name in ("d0", "d1", "d2"):
        policy.step(ev.TelemetryObserved(DispatcherReport(dispatcher=name, incarnation=1, at_ms=0, shards=(1,))), START_MS)
    assert policy.fleet.share == pytest.approx(1 / 3)
    policy.step(ev.TelemetryObserved(DispatcherReport(dispatcher="d2", incarnation=1, at_ms=0, shards=())), START_MS)
    assert policy.fleet.share == 0.5, "without shards it sends nothing"
    policy.step(ev.TelemetryObserved(Departed(role="dispatcher", name="d1", incarnation=1, at_ms=int(START_MS))), START_MS)
    assert policy.fleet.share == 1.0
    policy.step(ev.TelemetryObserved(DispatcherReport(dispatcher="d1", incarnation=1, at_ms=0, shards=(1,))), START_MS)
    tick(policy, START_MS + SETTINGS.worker_lost_ms + 1)
    assert policy.fleet.share == 1.0, "in silence too"


def test_a_new_life_of_a_worker_makes_its_old_reports_worthless() -> None:
    policy = dispatcher("w0")
    policy.step(ev.TelemetryObserved(report("w0", incarnation=2, variants={})), START_MS)
    policy.step(ev.TelemetryObserved(report("w0", incarnation=1)), START_MS)
    assert policy.step(ev.Arrived(0, numbered("a", timeout_ms=9_000)), START_MS).sends == []
    ready = {f"fashion/{name}": HostedVariant(state="ready", latency=report().variants[f"fashion/{name}"].latency) for name in LADDER}
    (send,) = policy.step(ev.TelemetryObserved(report("w0", incarnation=2, variants=ready)), START_MS).sends
    assert send.incarnation == 2

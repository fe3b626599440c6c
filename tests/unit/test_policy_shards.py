"""Shards that come, go and come back: what a successor redoes, and what the committed watermark says."""

from __future__ import annotations

from policy_stage import START_MS, dispatcher, request

from broker.policy import events as ev
from broker.policy.entry import Commands, Entry
from broker.policy.watermark import Watermark, restore


def numbered(*names: str, **fields: object) -> list[Entry]:
    return [request(name, offset=at, **fields) for at, name in enumerate(names)]


def test_requests_wait_until_the_answers_of_the_past_have_been_read() -> None:
    policy = dispatcher("w0")
    policy.step(ev.ShardAssigned(1, Watermark(5)), START_MS)
    assert policy.step(ev.Arrived(1, [request("a", shard=1, offset=5), request("b", shard=1, offset=6)]), START_MS) == Commands()
    policy.step(ev.Answered(1, [b"a"]), START_MS)
    commands = policy.step(ev.ShardRecovered(1), START_MS)
    assert [send.entry.key for send in commands.sends] == [b"b"]
    assert policy.commits()[1][0] == 6
    assert policy.step(ev.ShardRecovered(1), START_MS) == Commands()


def test_an_expiry_that_fell_into_a_dispatchers_death_is_an_expiry() -> None:
    policy = dispatcher("w0")
    policy.step(ev.ShardAssigned(1, Watermark()), START_MS)
    received_ms = START_MS - 5_000
    entries = [
        request("expired", received_ms, shard=1, offset=0, timeout_ms=1_000),
        request("hopeless", received_ms, shard=1, offset=1, timeout_ms=None, deadline_at_ms=int(received_ms) - 1),
        request("alive", received_ms, shard=1, offset=2, timeout_ms=9_000),
    ]
    policy.step(ev.Arrived(1, entries), START_MS)
    commands = policy.step(ev.ShardRecovered(1), START_MS)
    assert [(answer.entry.key, answer.outcome) for answer in commands.answers] == [(b"expired", "expired"), (b"hopeless", "rejected")]
    assert [send.entry.key for send in commands.sends] == [b"alive"]


def test_a_shard_that_is_taken_away_leaves_nothing_behind() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, [*numbered("a", "b", timeout_ms=60_000), request("bad", offset=2, floor=1.0)]), START_MS)
    policy.step(ev.ShardRevoked(0), START_MS)
    assert (policy.live, policy.waiting, policy.fleet.orders, policy.shards, policy.next_wake_ms()) == (0, 0, {}, {}, None)
    for event in (ev.Arrived(0, numbered("c")), ev.Answered(0, [b"a"]), ev.OffsetsFinished(0, [1]), ev.ShardRevoked(0), ev.ShardRecovered(0)):
        assert policy.step(event, START_MS) == Commands()


def test_what_is_handed_out_again_after_a_rebalance_is_not_begun_twice() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a", "b")), START_MS)
    assert policy.step(ev.Arrived(0, numbered("a", "b")), START_MS) == Commands()
    assert (policy.live, policy.duplicates) == (2, 0)


def test_a_restart_does_not_redo_what_the_bitmap_says_is_finished() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, numbered("a", "b", "c", "d")), START_MS)
    policy.step(ev.Answered(0, [b"b", b"d"]), START_MS)
    watermark, since_ms = restore(*policy.commits()[0])
    assert since_ms == START_MS - 2_000, "answers are read again from before the oldest that is not finished"
    successor = dispatcher("w0")
    successor.step(ev.ShardRevoked(0), START_MS)
    successor.step(ev.ShardAssigned(0, watermark), START_MS)
    successor.step(ev.ShardRecovered(0), START_MS)
    assert [send.entry.key for send in successor.step(ev.Arrived(0, numbered("a", "b", "c", "d")), START_MS).sends] == [b"a", b"c"]


def test_answers_are_read_again_from_before_the_oldest_request_that_lives() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, [request("old", START_MS, offset=0, timeout_ms=90_000)]), START_MS)
    policy.step(ev.Arrived(0, [request("new", START_MS + 60_000, offset=1)]), START_MS + 60_000)
    policy.step(ev.Answered(0, [b"new"]), START_MS + 60_001)
    assert restore(*policy.commits()[0])[1] == START_MS - 2_000
    policy.step(ev.Answered(0, [b"old"]), START_MS + 60_002)
    assert restore(*policy.commits()[0])[1] == START_MS + 58_000
    policy.step(ev.ShardAssigned(1, Watermark()), START_MS)
    policy.step(ev.Arrived(1, [request("held", START_MS + 5_000, shard=1, offset=0)]), START_MS)
    policy.step(ev.Arrived(1, [request("held2", START_MS + 9_000, shard=1, offset=1)]), START_MS)
    assert restore(*policy.commits()[1])[1] == START_MS + 3_000, "what is held back lives too"


def test_an_idle_shard_keeps_the_time_from_which_answers_are_read_again() -> None:
    policy = dispatcher()
    watermark, _ = restore(9, f"1:{int(START_MS)}:")
    policy.step(ev.ShardAssigned(1, watermark), START_MS)
    assert policy.commits()[1] == (9, f"1:{int(START_MS)}:"), "not the whole log of the past"


def test_holes_in_the_offsets_do_not_hold_the_watermark() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, [request("a", offset=3), request("b", offset=50_000)]), START_MS)
    assert policy.commits()[0][0] == 3
    policy.step(ev.Answered(0, [b"b"]), START_MS)
    policy.step(ev.Answered(0, [b"a"]), START_MS)
    assert policy.commits()[0][0] == 50_001


def test_a_record_without_an_id_holds_the_watermark_until_the_dead_letters_have_it() -> None:
    policy = dispatcher("w0")
    policy.step(ev.Arrived(0, [request("a", offset=0), request("c", offset=2)], burying=[1, 3]), START_MS)
    policy.step(ev.Answered(0, [b"a", b"c"]), START_MS)
    assert policy.commits()[0][0] == 1
    policy.step(ev.OffsetsFinished(0, [3]), START_MS)
    assert policy.commits()[0][0] == 1
    policy.step(ev.OffsetsFinished(0, [1]), START_MS)
    assert policy.commits()[0][0] == 4
    policy.step(ev.Arrived(0, [], burying=[1]), START_MS)
    assert policy.commits()[0][0] == 4, "handed out again"

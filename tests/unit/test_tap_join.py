"""One shard of the taps: each sampled request is given out once, in the order of the answers, whatever else comes or is read again."""

from __future__ import annotations

import pytest
from tap_exchanges import ANSWERED_MS, RECEIVED_MS, answer, body, join_of

from broker.policy.tap_join import TapJoinLimits, TappedStage, TapPosition
from schemas.limits import Limits
from schemas.stage import StageRecord
from schemas.tap import TapSample, TapSpec

STAGE = StageRecord(1, "fashion", 1, "a", 1, "t/v", 0.9, "cpu", "CPU", 1.0, 2.0, 1, RECEIVED_MS)


def test_a_request_is_given_out_with_its_first_answer_only() -> None:
    join = join_of()
    join.begin(5, {"q": 7})
    join.ask(b"r1", body(), (), RECEIVED_MS)
    join.ask(b"r1", b"the same id again", (), RECEIVED_MS)
    found = join.answer(b"r1", answer("r1", "expired"), ANSWERED_MS, 5)
    assert found is not None
    assert (found.asked.value, found.head.outcome, found.rate) == (body(), "expired", 1.0)
    assert join.answer(b"r1", answer("r1"), ANSWERED_MS, 6) is None
    join.ask(b"r1", body(), (), RECEIVED_MS)
    assert join.waiting == 0, "an id that was answered is not waited for again"
    assert join.answer(b"r1", answer("r1"), ANSWERED_MS, 7) is None
    assert join.counts.unmatched == 2


@pytest.mark.parametrize("value", [b"", b"{}", b"\x81", answer("other"), b"[" * 5_000])
def test_what_is_no_answer_to_its_key_changes_nothing(value: bytes) -> None:
    join = join_of()
    join.ask(b"r1", body(), (), RECEIVED_MS)
    assert join.answer(b"r1", value, ANSWERED_MS, 0) is None
    assert join.answer(None, answer("r1"), ANSWERED_MS, 1) is None
    assert join.answer(b"r1", answer("r1"), ANSWERED_MS, 2) is not None
    assert join.counts.not_terminal == 1


def test_a_tombstone_under_an_id_is_a_request_without_a_body() -> None:
    join = join_of()
    join.ask(b"r1", None, [("endpoint", b"fashion")], RECEIVED_MS)
    found = join.answer(b"r1", answer("r1", "rejected", endpoint=""), ANSWERED_MS, 0)
    assert found is not None, "the endpoint stands in a header of the request"
    assert found.asked.value is None


def test_what_nobody_asked_to_tap_is_not() -> None:
    join = join_of(TapSpec(sample=TapSample(rate=0.0, outcomes={"failed": 1.0})))
    for request_id in (b"r1", b"r2", b"r3"):
        join.ask(request_id, body(), (), RECEIVED_MS)
    assert join.answer(b"r1", answer("r1"), ANSWERED_MS, 0) is None
    assert join.answer(b"r2", answer("r2", "failed"), ANSWERED_MS, 1) is not None
    assert join.answer(b"r3", answer("r3", "failed", endpoint="other"), ANSWERED_MS, 2) is None
    assert join.waiting == join.waiting_bytes == 0


def test_the_position_goes_back_to_before_the_oldest_that_waits() -> None:
    join = join_of()
    join.begin(10, {"requests": 100})
    join.ask(b"old", body(), (), RECEIVED_MS)
    join.begin(20, {"requests": 200})
    join.ask(b"new", body(), (), RECEIVED_MS)
    assert join.answer(b"new", answer("new"), ANSWERED_MS, 20) is not None
    assert join.position(21) == TapPosition(21, 0, {"requests": 100})
    join.begin(21, {"requests": 300})
    assert join.answer(b"old", answer("old"), ANSWERED_MS, 21) is not None
    assert join.position(22) == TapPosition(22, 0, {"requests": 300})


def test_a_restart_reads_again_and_gives_nothing_out_twice() -> None:
    join = join_of(position=TapPosition(3, 0, {"requests": 0}))
    join.ask(b"done", body(), (), RECEIVED_MS)
    assert not join.misses(b"unknown", 2), "answers that were given out need no request"
    assert join.misses(b"unknown", 3)
    assert join.answer(b"done", answer("done"), ANSWERED_MS, 1) is None
    assert join.answer(b"later-read", answer("later-read"), ANSWERED_MS, 2) is None
    join.ask(b"later-read", body(), (), RECEIVED_MS)
    assert join.waiting == 0
    assert join.position(3).answers == 3
    assert join.position(1).answers == 3, "never before what was given out"


def test_bodies_wait_in_bounded_memory_and_requests_in_bounded_number() -> None:
    limits = TapJoinLimits(waiting_max=3, waiting_bytes_max=2 * len(body()))
    join = join_of(limits=limits)
    for number in range(5):
        join.ask(b"r%d" % number, body(), (), RECEIVED_MS)
    join.stage(b"r4", TappedStage(STAGE, bytes(1_000_000), RECEIVED_MS))
    assert (join.waiting, join.counts.forgotten) == (3, 2)
    assert join.waiting_bytes <= limits.waiting_bytes_max
    assert join.answer(b"r0", answer("r0"), ANSWERED_MS, 0) is None
    kept = join.answer(b"r2", answer("r2"), ANSWERED_MS, 1)
    assert kept is not None
    assert kept.asked.shed
    assert kept.asked.value is None
    assert join.counts.shed >= 2


def test_a_request_that_nobody_will_answer_is_let_go_long_after_its_deadline() -> None:
    join = join_of()
    join.begin(0, {"requests": 1})
    join.ask(b"twice", body(timeout_ms=500), (), RECEIVED_MS)
    join.begin(9, {"requests": 2})
    late_ms = RECEIVED_MS + 500 + 60_001
    join.forget_overdue(RECEIVED_MS + 500, 0.0, Limits())
    join.forget_overdue(late_ms, 1_000.0, Limits())
    join.forget_overdue(late_ms, 30_000.0, Limits())
    assert join.waiting == 1, "a clock that jumps is given time"
    join.forget_overdue(late_ms, 62_000.0, Limits())
    assert (join.waiting, join.counts.forgotten) == (0, 1)
    assert join.position(9).low == {"requests": 2}


def test_stages_come_with_their_request_until_it_is_answered() -> None:
    join = join_of()
    join.ask(b"r1", body(), (), RECEIVED_MS)
    join.ask(b"r2", body(), (), RECEIVED_MS)
    join.stage(b"r1", TappedStage(STAGE, b"abc", RECEIVED_MS))
    join.stage(b"nobody", TappedStage(STAGE, b"abc", RECEIVED_MS))
    found = join.answer(b"r1", answer("r1"), ANSWERED_MS, 0)
    other = join.answer(b"r2", answer("r2"), ANSWERED_MS, 1)
    assert found is not None
    assert other is not None
    assert ([stage.value for stage in found.asked.stages], other.asked.stages) == ([b"abc"], [])
    assert join.waiting_bytes == 0

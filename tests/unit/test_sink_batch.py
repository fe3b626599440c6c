"""What the sink makes of records, without any log or store."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from broker.sink_batch import NO_KEY, NOT_TERMINAL, OTHER_KEY, SinkBatch, slices
from broker.store import Answer, Mark
from schemas.limits import Limits
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, TERMINAL_VERSION, Terminal, encode_terminal

TTL_MS = 10_000
NOW_MS = 1_000_000.0


class Read(msgspec.Struct):
    """A record as a log hands it out."""

    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = int(NOW_MS)
    headers: tuple[tuple[str, bytes], ...] = ()
    topic: str = "t.responses"
    partition: int = 0


def terminal(request_id: str, outcome: str = "completed", content_type: str = JSON_TYPE) -> bytes:
    return encode_terminal(
        Terminal(id=request_id, outcome=outcome, path=[], received_ms=1, finished_ms=2, attempts=1, epoch=1, version=TERMINAL_VERSION), content_type
    )


def batch(**changes: Any) -> SinkBatch:
    return SinkBatch(TTL_MS, Limits(payload_bytes_max=100), **({"now_ms": NOW_MS} | changes))


def test_answers_keep_the_order_of_the_log() -> None:
    collected = batch()
    collected.add_responses([Read(b"a", terminal("a", "expired"), 0), Read(b"b", terminal("b", "failed", MSGPACK_TYPE), 1)], 0)
    collected.add_responses([Read(b"a", terminal("a"), 2)], 0)
    assert [answer.request_id for answer in collected.answers] == ["a", "b", "a"]
    assert collected.outcomes == ["expired", "failed", "completed"]
    assert collected.answers[1] == Answer("b", terminal("b", "failed", MSGPACK_TYPE), TTL_MS)
    assert collected.newest_ms == NOW_MS


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, terminal("a"), NO_KEY),
        (b"a", None, NOT_TERMINAL),
        (b"a", b"", NOT_TERMINAL),
        (b"a", b"garbage", NOT_TERMINAL),
        (b"a", b"{}", NOT_TERMINAL),
        (b"a", b'{"id":"a","outcome":"completed"}', NOT_TERMINAL),
        (b"a", terminal("a", "perhaps"), NOT_TERMINAL),
        (b"a", terminal("a", content_type=MSGPACK_TYPE)[:-1], NOT_TERMINAL),
        (b"a", b"[" * 100_000, NOT_TERMINAL),
        (b"a", terminal("a").replace(b'"path":[]', b'"path":[1]'), NOT_TERMINAL),
        (b"a", terminal("b"), OTHER_KEY),
        (b"\xff", terminal("a"), OTHER_KEY),
    ],
)
def test_what_is_no_answer_is_skipped_with_its_reason(key: bytes | None, value: bytes | None, reason: str) -> None:
    collected = batch()
    collected.add_responses([Read(key, value, 7)], 0)
    assert collected.answers == []
    assert [(why, record.offset) for why, record in collected.skipped] == [(reason, 7)]


def test_what_is_stored_again_lives_only_as_long_as_it_would_have() -> None:
    collected = batch()
    ages_ms = [0, 4_000, 9_999, 10_000, 50_000, -5_000]
    collected.add_responses([Read(b"a", terminal("a"), offset, int(NOW_MS) - age) for offset, age in enumerate(ages_ms)], 100)
    assert [answer.ttl_ms for answer in collected.answers] == [10_000, 6_000, 1, 10_000]
    assert collected.fresh == [False] * 4


def test_a_first_storing_has_its_full_time_however_late_it_comes() -> None:
    collected = batch()
    collected.add_responses([Read(b"a", terminal("a"), 4, 0), Read(b"b", terminal("b"), 5, 0)], 5)
    assert [(answer.request_id, answer.ttl_ms) for answer in collected.answers] == [("b", TTL_MS)]


def test_requests_are_marked_by_key_or_body_for_the_rest_of_their_time() -> None:
    collected = batch()
    collected.add_requests(
        [
            Read(b"k", b"whatever", timestamp=int(NOW_MS) - 1_000),
            Read(None, b'{"id":"body"}'),
            Read(None, msgspec.msgpack.encode({"id": "packed"}), headers=(("content-type", MSGPACK_TYPE.encode()),)),
            Read(b"old", b"{}", timestamp=int(NOW_MS) - TTL_MS),
            Read(b"large", b"x" * 101),
            Read(b"x" * 200, b"{}"),
            Read(None, b"not json"),
            Read(None, None),
            Read(b"tombstone", None),
        ]
    )
    assert collected.marks == [Mark("k", TTL_MS - 1_000), Mark("body", TTL_MS), Mark("packed", TTL_MS), Mark("tombstone", TTL_MS)]


def test_slices_keep_to_both_bounds_and_lose_nothing() -> None:
    answers = [Answer(str(size), b"x" * size, 1) for size in (10, 10, 10, 95, 300, 5, 5, 5, 5)]
    cuts = list(slices(answers, records_max=3, bytes_max=100))
    assert [answer for cut in cuts for answer in answers[cut]] == answers
    assert [[len(answer.value) for answer in answers[cut]] for cut in cuts] == [[10, 10, 10], [95], [300], [5, 5, 5], [5]]
    assert list(slices([], records_max=3, bytes_max=100)) == []

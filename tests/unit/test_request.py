"""Reading requests: where ids and routing fields come from, and what bad input is told."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec
import pytest

from broker.arrivals import read_entry
from broker.messages import answer_message, work_message
from broker.policy.entry import Answer, Send
from schemas.errors import BadRequest, TooLarge, Unattributable
from schemas.limits import Limits
from schemas.names import Names
from schemas.request import Routing, answer_type_of, content_type_of, read_routing, request_id_of
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, decode_terminal

LIMITS = Limits()
MSGPACK = [("content-type", b"application/msgpack")]
ROUTED = [("endpoint", b"shop"), ("min_accuracy", b"0.5"), ("timeout_ms", b"100")]


class Record(NamedTuple):
    """A record as the log hands it out."""

    key: bytes | None
    value: bytes | None
    headers: Any = ()
    topic: str = "headrace.requests"
    partition: int = 0
    offset: int = 7
    timestamp: int = 1_700_000_000_000


def body(**fields: object) -> bytes:
    return json.dumps({"endpoint": "shop"} | fields).encode()


def routing(value: bytes | None, headers: Any = ()) -> Routing:
    return read_routing(value, headers, LIMITS)


# -- fields


def test_a_bare_line_of_json_is_enough() -> None:
    read = routing(b'{"id":"a","endpoint":"shop","inputs":[{"name":"x","shape":[3,4],"datatype":"FP32","data":[1,2]}]}')
    assert (read.endpoint, read.id, read.rows, read.priority, read.tenant) == ("shop", "a", 3, 0, "")
    assert read.min_accuracy is read.deadline_ms is read.timeout_ms is None


def test_headers_win_over_the_body() -> None:
    headers = [("endpoint", b"other"), ("timeout_ms", b"50"), ("tenant", b"t"), ("priority", b"3"), ("rows", b"2"), ("deadline_ms", b"99")]
    read = routing(body(timeout_ms=900, min_accuracy=0.7, tenant="body"), headers)
    assert (read.endpoint, read.timeout_ms, read.tenant, read.priority, read.rows, read.deadline_ms) == ("other", 50, "t", 3, 2, 99)
    assert read.min_accuracy == 0.7, "what the headers do not say is the body's"


@pytest.mark.parametrize("clock", [("timeout_ms", b"100"), ("deadline_ms", b"1700000000000")])
def test_a_record_routed_by_its_headers_is_not_decoded(clock: tuple[str, bytes]) -> None:
    read = routing(b"\xff not json", [("endpoint", b"shop"), ("min_accuracy", b"0.5"), clock])
    assert (read.endpoint, read.min_accuracy, read.rows) == ("shop", 0.5, 1)


def test_tensors_are_not_decoded_on_the_way() -> None:
    assert routing(b'{"endpoint":"shop","inputs":[{"shape":[2],"data":["any", {"thing": []}]}]}').rows == 2


@pytest.mark.parametrize("shape", [[], None])
def test_without_a_first_axis_it_is_one_row(shape: list[int] | None) -> None:
    assert routing(body(inputs=[{"shape": shape}] if shape is not None else [])).rows == 1


def test_msgpack_is_read_where_the_content_type_says_so() -> None:
    value = msgspec.msgpack.encode({"endpoint": "shop", "inputs": [{"shape": [2], "data": b"\x00\x01"}]})
    assert routing(value, MSGPACK).rows == 2
    with pytest.raises(BadRequest, match="application/json"):
        routing(value)
    with pytest.raises(BadRequest, match="application/msgpack"):
        routing(value[:-4], MSGPACK)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"application/json", JSON_TYPE),
        (b"Application/JSON; charset=utf-8", JSON_TYPE),
        (b" application/msgpack ", MSGPACK_TYPE),
    ],
)
def test_content_types_are_read_generously(said: bytes, kind: str) -> None:
    assert content_type_of([("Content-Type", said)]) == kind
    assert content_type_of([]) == JSON_TYPE


@pytest.mark.parametrize("said", [b"text/plain", b"", b"\xff\xfe", None])
def test_any_other_content_type_is_refused_and_answered_in_json(said: Any) -> None:
    with pytest.raises(BadRequest, match="not supported: send application/json or application/msgpack"):
        content_type_of([("content-type", said)])
    assert answer_type_of([("content-type", said)]) == JSON_TYPE


# -- what is wrong with a request, and whether the answer says so


@pytest.mark.parametrize(
    ("value", "headers", "said"),
    [
        (None, (), "empty"),
        (b"", (), "empty"),
        (b"not json", (), "not a valid application/json"),
        (b"[1]", (), "Expected `object`"),
        (b'{"endpoint":"shop","x":' + b"[" * 100_000, (), "nested too deeply"),
        (b"{}", (), "`endpoint` is missing"),
        (body(endpoint=""), (), "`endpoint` is missing"),
        (body(endpoint=None), (), r"\$.endpoint"),
        (body(endpoint="e" * 129), (), "endpoint has 129 characters, the limit is 128"),
        (body(tenant="e" * 129), (), "tenant has 129 characters, the limit is 128"),
        (b'{"endpoint":"shop","min_accuracy":NaN}', (), "not a valid"),
        (body(min_accuracy=-0.1), (), "min_accuracy -0.1 is not in 0..1"),
        (body(min_accuracy=1.1), (), "min_accuracy 1.1 is not in 0..1"),
        (body(min_accuracy="high"), (), r"\$.min_accuracy"),
        (body(deadline_ms=-1), (), "deadline_ms .*-1 is not in"),
        (body(deadline_ms=1 << 53), (), "deadline_ms .*9007199254740992 is not in"),
        (body(deadline_ms=10**40), (), "a very long number"),
        (body(timeout_ms=-1), (), "timeout_ms: -1 is not in 0..86400000"),
        (body(timeout_ms=86_400_001), (), "timeout_ms: 86400001 is not in"),
        (body(timeout_ms=1.5), (), r"\$.timeout_ms"),
        (body(priority=10), (), "priority .*10 is not in 0..9"),
        (body(priority=-1), (), "priority .*-1 is not in 0..9"),
        (body(inputs=[{"shape": [0]}]), (), "rows .*0 is not in 1..1024"),
        (body(inputs=[{"shape": [1025]}]), (), "rows .*1025 is not in 1..1024"),
        (body(inputs=[{"shape": [10**30]}]), (), "rows .*a very long number"),
        (body(inputs=[{"shape": [1]}] * 65), (), "65 input tensors, the limit is 64"),
        (body(), [("priority", b"high")], "header priority: b'high' is not a valid int"),
        (body(), [("timeout_ms", b"1" * 5_000)], "header timeout_ms: b'1+' is not a valid int"),
        (body(), [("endpoint", b"\xff")], "header endpoint"),
        (body(), [("endpoint", None)], "header endpoint"),
        (body(), [("x", b"")] * 65, "65 headers, the limit is 64"),
        (body(), [("content-type", b"application/json;" + b"x" * (1 << 17))], "the limit is 65536"),
        (b"{}", [("endpoint", b"shop"), ("min_accuracy", b"nan"), ("timeout_ms", b"5")], "min_accuracy nan"),
        (b"{}", [("endpoint", b"shop"), ("min_accuracy", b"1e999"), ("timeout_ms", b"5")], "min_accuracy inf"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(value: bytes | None, headers: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        routing(value, headers)
    assert len(str(caught.value)) < 400, "what the client sent is not sent back at length"
    entry = read_entry(Record(b"a", value, headers), LIMITS)
    assert entry.refused == ("bad_request", str(caught.value))
    answered = answer_message(Answer(entry, "rejected", *entry.refused), 0, 1_700_000_000_001)
    terminal = decode_terminal(answered[1] or b"")
    assert (terminal.id, terminal.outcome, terminal.error and terminal.error.code) == ("a", "rejected", "bad_request")


def test_a_body_over_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge, match="1048577 bytes, the limit is 1048576"):
        routing(b" " * (1 + (1 << 20)))
    entry = read_entry(Record(b"a", b" " * (1 + (1 << 20))), LIMITS)
    assert entry.refused is not None
    assert entry.refused[0] == "too_large"


def test_a_trace_context_that_is_none_is_left_behind() -> None:
    assert routing(body(traceparent="x" * 257)).traceparent is None
    assert routing(body(traceparent="x" * 256)).traceparent == "x" * 256


@pytest.mark.parametrize("deadline_ms", [0, (1 << 53) - 1])
def test_every_deadline_that_is_read_can_be_written(deadline_ms: int) -> None:
    entry = read_entry(Record(b"a", body(deadline_ms=deadline_ms)), LIMITS)
    assert entry.refused is None
    entry.deadline_ms = entry.deadline_at_ms or 0
    work_message(Send(entry, "cpu", 0, "w", 1, "shop/v", 0.5, 1), 1, Names())
    answer_message(Answer(entry, "rejected", "x", "y"), 1, 1_700_000_000_000)


# -- the id


def test_the_key_is_the_id_and_the_bodys_id_is_for_records_without_one() -> None:
    assert request_id_of(b"key", body(id="body"), (), LIMITS) == "key"
    assert request_id_of(None, body(id="body"), (), LIMITS) == "body"
    assert request_id_of("ключ".encode(), None, (), LIMITS) == "ключ"
    assert request_id_of(None, msgspec.msgpack.encode({"id": "packed"}), MSGPACK, LIMITS) == "packed"
    assert request_id_of(None, body(id="é" * 64), (), LIMITS) == "é" * 64


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (b"", body(id="a"), "the key has 0 bytes"),
        (b"k" * 129, body(id="a"), "the key has 129 bytes"),
        (b"\xff", body(id="a"), "not UTF-8"),
        (None, None, "neither a key nor a body"),
        (None, b"", "neither a key nor a body"),
        (None, b"junk", "cannot be read for an id"),
        (None, body(), "no body `id`"),
        (None, body(id=""), "no body `id`"),
        (None, body(id="é" * 65), "no body `id`"),
        (None, body(id=5), "cannot be read for an id"),
        (None, b'{"id":"\\ud800"}', "cannot be read for an id"),
        (None, b'{"x":' + b"[" * 100_000, "cannot be read for an id"),
    ],
)
def test_a_record_without_a_usable_id_cannot_be_attributed(key: bytes | None, value: bytes | None, said: str) -> None:
    with pytest.raises(Unattributable, match=said):
        read_entry(Record(key, value), LIMITS)


def test_an_entry_knows_what_the_record_says() -> None:
    entry = read_entry(Record("é".encode(), body(min_accuracy=0.9, inputs=[{"shape": [4]}]), ROUTED[2:]), LIMITS)
    assert (entry.key, entry.endpoint, entry.floor, entry.timeout_ms, entry.rows) == ("é".encode(), "shop", 0.9, 100, 4)
    assert (entry.shard, entry.offset, entry.received_ms, entry.bytes) == (
        0,
        7,
        1_700_000_000_000,
        len(body(min_accuracy=0.9, inputs=[{"shape": [4]}])),
    )
    assert entry.refused is None

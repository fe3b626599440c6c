"""Whatever bytes somebody writes where our records belong: a decoder gives a record or DecodeError, and only a terminal record is an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalog import decode_endpoint, decode_task
from schemas.plan import EPOCH_MAX, Plan, decode_plan, encode_plan
from schemas.telemetry import decode_telemetry
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, Terminal, answers, encode_terminal
from schemas.work import decode_order

Decode = Callable[[bytes], Any]
DECODERS = (decode_task, decode_endpoint, decode_plan, decode_telemetry, decode_order)
DEEP = b"[" * 100_000


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        b'{"x":' + DEEP,
        b'{"kind":"worker","x":' + DEEP,
        b"\x91" * 100_000,
        b"\xdc\x00\x10" + b"\x01" * 14 + b"\x91" * 100_000,
    ],
    ids=lambda value: repr(value[:20]),
)
def test_every_decoder_fails_in_one_way(decode: Decode, value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(value)


@pytest.mark.parametrize(
    ("decode", "value"),
    [
        (decode_task, b'{"name":"\xff"}'),
        (decode_endpoint, b'{"name":"\xff"}'),
        (decode_plan, b'{"planner":"\xff"}'),
        (decode_telemetry, b'{"kind":"departed","role":"\xff"}'),
        (decode_order, b"\xdc\x00\x0e\x01\xa1\xff" + b"\x01" * 12),
    ],
)
def test_text_that_is_not_utf_8_is_a_decode_error(decode: Decode, value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(value)


@given(st.sampled_from(DECODERS), st.binary(max_size=64))
def test_no_bytes_raise_anything_else(decode: Decode, value: bytes) -> None:
    try:
        decode(value)
    except msgspec.DecodeError:
        return


@pytest.mark.parametrize("epoch", [-1, EPOCH_MAX, 10**40])
def test_an_epoch_that_no_plan_could_follow_is_none(epoch: int) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_plan(b'{"epoch":%d}' % epoch)
    assert decode_plan(encode_plan(Plan(epoch=EPOCH_MAX - 1))).epoch == EPOCH_MAX - 1


@pytest.mark.parametrize("field", ['"lane":-1', '"credits":-5', '"variants":{"a/b":{"state":"ready","latency":{"0":{"p50_ms":1,"p95_ms":1}}}}'])
def test_a_report_that_makes_no_sense_is_none(field: str) -> None:
    report = '{"kind":"worker","worker":"w","incarnation":1,"accelerator":"cpu","device":"d","host":"h","at_ms":1'
    decode_telemetry(f"{report}}}".encode())
    with pytest.raises(msgspec.DecodeError):
        decode_telemetry(f"{report},{field}}}".encode())


def terminal(request_id: str, **fields: Any) -> Terminal:
    known: dict[str, Any] = {"path": [], "received_ms": 1, "finished_ms": 2, "attempts": 0, "epoch": 0, "version": 1}
    return Terminal(id=request_id, outcome="completed", **known | fields)


@pytest.mark.parametrize("content_type", [JSON_TYPE, MSGPACK_TYPE])
@pytest.mark.parametrize("request_id", ["a", "größe", 'a"b', "a\\b", "a\nb", "i" * 128])
def test_a_terminal_record_answers_its_own_key_only(request_id: str, content_type: str) -> None:
    value = encode_terminal(terminal(request_id), content_type)
    assert answers(value, request_id.encode())
    assert not answers(value, request_id.encode() + b"x")
    assert not answers(value, request_id.encode()[:-1])
    assert not answers(value[:-1], request_id.encode())
    assert not answers(value[1:], request_id.encode())


def test_a_terminal_record_of_another_version_or_writer_answers_too() -> None:
    assert answers(encode_terminal(terminal("a", version=2), JSON_TYPE), b"a")
    reordered = b'{ "outcome": "failed", "id": "a", "path": [], "received_ms": 1, "finished_ms": 2, "attempts": 1, "epoch": 1, "version": 1 }'
    assert answers(reordered, b"a")


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        b'{"id":"a"}',
        b'{"id":"a","outcome":"splendid","path":[],"received_ms":1,"finished_ms":1,"attempts":1,"epoch":1,"version":1 }',
        b'{"id":"a","x":' + DEEP,
        b"\xff",
        b"\x81\xa2id\xa1a",
    ],
    ids=lambda value: repr(value and value[:20]),
)
def test_what_is_no_terminal_record_answers_nobody(value: bytes | None) -> None:
    assert not answers(value, b"a")


@given(st.binary(max_size=64), st.binary(min_size=1, max_size=8))
def test_no_bytes_break_it(value: bytes, key: bytes) -> None:
    assert answers(value, key) in (True, False)

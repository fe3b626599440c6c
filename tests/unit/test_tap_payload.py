"""What of a payload is let through: redaction in both encodings, cuts, and nothing of what cannot be read."""

from __future__ import annotations

import msgspec
import pytest
from tap_exchanges import answer, body

from broker.policy.tap_payload import Payload, redact, shaped
from schemas.cloud_event import BYTES_TYPE
from schemas.tap import TapSpec
from schemas.tensors import decode_output
from schemas.terminal import JSON_TYPE, MSGPACK_TYPE, decode_terminal


@pytest.mark.parametrize("content_type", [JSON_TYPE, MSGPACK_TYPE])
def test_named_tensors_are_emptied_and_the_rest_stays(content_type: str) -> None:
    decode = (msgspec.json if content_type == JSON_TYPE else msgspec.msgpack).decode
    before = decode(body(content_type, parameters={"k": [1, {"x": None}]}))
    data, names = redact(body(content_type, parameters={"k": [1, {"x": None}]}), content_type, "inputs", ("image", "label"))
    after = decode(data)
    assert names == ("image",)
    assert after["inputs"][0] == {"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [], "parameters": {"redacted": True}}
    assert after["inputs"][1:] == before["inputs"][1:]
    assert {k: v for k, v in after.items() if k != "inputs"} == {k: v for k, v in before.items() if k != "inputs"}


@pytest.mark.parametrize("content_type", [JSON_TYPE, MSGPACK_TYPE])
def test_a_redacted_answer_is_still_one(content_type: str) -> None:
    payload = shaped(answer("r1", content_type=content_type), content_type, "outputs", TapSpec(redact=("label",)))
    assert payload.data is not None
    terminal = decode_terminal(payload.data)
    assert payload.redacted == ("label",)
    assert terminal.outputs is not None
    assert list(terminal.outputs[0].data) == []
    assert terminal.path[0].variant == "fashion/cnn"
    untouched = decode_terminal(answer("r1", content_type=content_type)).outputs
    assert untouched is not None
    assert decode_output(untouched[0]).tolist() == [7]


@pytest.mark.parametrize("outcome", ["expired", "completed"])
def test_without_such_a_tensor_the_bytes_are_the_same(outcome: str) -> None:
    assert shaped(answer("r1", outcome), JSON_TYPE, "outputs", TapSpec(redact=("image",))).data == answer("r1", outcome)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"inputs": 3}', b'{"inputs": [{"name": 3}]}', b'{"inputs": [' + b"[" * 9_999, b"\xff"])
def test_a_body_that_cannot_be_read_is_left_out_where_something_must_not_be_seen(value: bytes) -> None:
    payload = shaped(value, JSON_TYPE, "inputs", TapSpec(redact=("image",)))
    assert payload.data is None
    assert payload.problem.startswith("left out, as its tensors cannot be redacted")
    assert shaped(value, JSON_TYPE, "inputs", TapSpec()).data == value


def test_what_is_too_large_is_cut_and_says_so() -> None:
    value = body()
    assert shaped(value, JSON_TYPE, "inputs", TapSpec(max_bytes=len(value))) == Payload(value, JSON_TYPE, len(value))
    cut = shaped(value, JSON_TYPE, "inputs", TapSpec(max_bytes=10))
    assert (cut.data, cut.content_type, cut.cut, cut.size_bytes) == (value[:10], BYTES_TYPE, True, len(value))
    assert shaped(value, JSON_TYPE, "inputs", TapSpec(max_bytes=0)).data == b""


def test_metadata_alone_has_no_body() -> None:
    assert shaped(body(), JSON_TYPE, "inputs", TapSpec(payload="metadata")) == Payload(None, JSON_TYPE, len(body()))

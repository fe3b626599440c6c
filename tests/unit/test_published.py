"""What a client refuses before anything is published, and what it publishes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.published import Encoding, Request, deadline_ms_of, publish, shard_of
from schemas.errors import BadRequest, TooLarge
from schemas.limits import Limits
from schemas.request import read_routing
from schemas.tensors import decode_inputs

IMAGE = np.arange(6, dtype=np.float32).reshape(2, 3)
LIMITS = Limits(payload_bytes_max=10_000)


def request(**changes: Any) -> Request:
    return Request(**({"endpoint": "fashion", "inputs": {"image": IMAGE}} | changes))


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_what_is_published_says_what_was_asked(encoding: Encoding) -> None:
    asked = request(min_accuracy=0.9, timeout_ms=300, priority=2, tenant="shop", request_id="r1", parameters={"k": 1}, traceparent="00-a-b-01")
    request_id, (key, value, headers), size_bytes = publish(asked, encoding, LIMITS)
    assert (request_id, key) == ("r1", b"r1")
    assert value is not None
    assert size_bytes == len(value) + 2
    routing = read_routing(value, headers, LIMITS)
    assert (routing.endpoint, routing.min_accuracy, routing.timeout_ms, routing.deadline_ms) == ("fashion", 0.9, 300, None)
    assert (routing.priority, routing.tenant, routing.traceparent, routing.rows) == (2, "shop", "00-a-b-01", 2)
    decoded = decode_inputs(value, dict(headers)["content-type"].decode(), (), LIMITS)
    np.testing.assert_array_equal(decoded.inputs["image"], IMAGE)
    assert decoded.parameters == {"k": 1}


def test_the_routing_fields_need_no_decoding_of_the_body() -> None:
    _, (_, _, headers), _ = publish(request(min_accuracy=0.5, timeout_ms=10), "msgpack", LIMITS)
    routing = read_routing(b"not looked at", headers, LIMITS)
    assert (routing.endpoint, routing.min_accuracy, routing.timeout_ms, routing.rows) == ("fashion", 0.5, 10, 2)


def test_msgpack_carries_raw_little_endian_bytes() -> None:
    _, (_, value, _), _ = publish(request(inputs={"image": IMAGE.astype(">f4")}), "msgpack", LIMITS)
    assert msgspec.msgpack.decode(value or b"")["inputs"][0]["data"] == IMAGE.astype("<f4").tobytes()


def test_ids_are_random_and_long_where_none_is_given() -> None:
    ids = {publish(request(), "json", LIMITS).request_id for _ in range(100)}
    assert len(ids) == 100
    assert {len(request_id) for request_id in ids} == {32}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": {}}, "inputs is empty"),
        ({"inputs": {"image": np.zeros((0, 3), np.float32)}}, "batch is empty"),
        ({"inputs": {"image": np.float32(1)}}, "no axis"),
        ({"inputs": {"image": np.zeros(2, np.complex64)}}, "complex64"),
        ({"inputs": {"image": np.zeros(2, "datetime64[s]")}}, "image"),
        ({"inputs": {"image": np.array([object()], dtype=object)}}, "image"),
        ({"inputs": {"image": [[1, 2], [3]]}}, "no array"),
        ({"inputs": {"image": np.zeros(2_000, np.uint8)}}, "2000"),
        ({"inputs": {f"t{number}": IMAGE[:, :1] for number in range(65)}}, "65 input tensors"),
        ({"endpoint": ""}, "endpoint"),
        ({"priority": -1}, "priority"),
        ({"priority": 10}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"min_accuracy": 1.1}, "min_accuracy"),
        ({"min_accuracy": float("nan")}, "min_accuracy"),
        ({"timeout_ms": -1}, "timeout_ms"),
        ({"timeout_ms": 1.5}, "timeout_ms"),
        ({"deadline": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001 - that is what is refused
        ({"deadline": 1.5}, "deadline"),
        ({"deadline": True}, "deadline"),
        ({"deadline": -5}, "deadline"),
        ({"request_id": ""}, "1 to 128"),
        ({"request_id": "x" * 129}, "1 to 128"),
        ({"request_id": 7}, "cannot be written"),
        ({"request_id": "\ud800"}, "cannot be written"),
        ({"parameters": {"k": object()}}, "cannot be written"),
    ],
)
def test_a_wrong_request_is_refused_with_what_is_wrong(changes: dict[str, Any], says: str) -> None:
    for encoding in ("json", "msgpack"):
        with pytest.raises(BadRequest, match=says):
            publish(request(**changes), encoding, LIMITS)


def test_a_body_over_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge, match="the limit is 10000"):
        publish(request(inputs={"image": np.zeros((1, 3_000), np.float32)}), "msgpack", LIMITS)


def test_deadlines_are_aware_datetimes_or_unix_milliseconds() -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert deadline_ms_of(at) == int(at.timestamp() * 1000)
    assert deadline_ms_of(at.astimezone(tz=None) + timedelta(milliseconds=1)) == int(at.timestamp() * 1000) + 1
    assert deadline_ms_of(1_900_000_000_000) == 1_900_000_000_000
    assert deadline_ms_of(np.int64(5)) == 5
    assert deadline_ms_of(None) is None


def test_the_same_id_finds_the_same_shard_and_ids_spread() -> None:
    ids = [publish(request(), "json", LIMITS).request_id for _ in range(800)]
    counts = [sum(shard_of(request_id, 8) == shard for request_id in ids) for shard in range(8)]
    assert min(counts) > 50
    assert shard_of("abc", 8) == 2, "changing this sends a repeated id to another dispatcher than the first"

"""What clients get wrong, and what strangers write where they should not: one typed answer each, and every process goes on."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from foreign import ForeignClient, image_tensor
from running_stack import EXAMPLE, RunningStack, until

PATIENT_MS = 20_000
"""For requests that are to be served, whatever else this machine does."""
WITHIN_S = 40.0
MSGPACK = {"content-type": "application/msgpack"}
DAY_MS = 24 * 3600 * 1000


def load(count: int) -> np.ndarray:
    with np.load(EXAMPLE / "test-2000.npz") as arrays:
        return arrays["images"][:count]


IMAGES = load(5)
ONE = IMAGES[:1]


def request(**fields: Any) -> dict[str, Any]:
    return {"endpoint": "fashion", "timeout_ms": PATIENT_MS, "inputs": [image_tensor(ONE)]} | fields


def body(**fields: Any) -> bytes:
    return json.dumps(request(**fields)).encode()


def tensor(**fields: Any) -> bytes:
    return body(inputs=[image_tensor(ONE, **fields)])


def packed(**fields: Any) -> bytes:
    raw = image_tensor(ONE, data=ONE.tobytes())
    return msgspec.msgpack.encode(request(inputs=[raw]) | fields)


class Case(NamedTuple):
    """A record of {p}.requests, and how it must be answered."""

    value: bytes | None
    outcome: str
    code: str
    said: tuple[str, ...]
    """What the message names: what was wrong, and what would be right."""
    headers: Mapping[str, str | bytes] = MappingProxyType({})


def refused(value: bytes | None, *said: str, code: str = "bad_request", headers: dict[str, str | bytes] | None = None) -> Case:
    return Case(value, "rejected", code, said, headers or {})


def failed(value: bytes | None, *said: str, headers: dict[str, str | bytes] | None = None) -> Case:
    return Case(value, "failed", "bad_request", said, headers or {})


ROUTED: dict[str, str | bytes] = {"endpoint": "fashion", "min_accuracy": "0.5", "timeout_ms": str(PATIENT_MS)}
CASES = {
    "not-json": refused(b"hello", "application/json"),
    "cut-json": refused(body()[:-30], "application/json"),
    "binary": refused(b"\x00\xff\xfe" * 50, "application/json"),
    "nested": refused(b'{"endpoint":"fashion","x":' + b"[" * 100_000, "nested too deeply"),
    "no-object": refused(b"[1,2,3]", "application/json", "object"),
    "cut-msgpack": refused(packed()[:-30], "application/msgpack", headers=MSGPACK),
    "json-said-to-be-msgpack": refused(body(), "application/msgpack", headers=MSGPACK),
    "strange-type": refused(body(), "text/csv", "application/json", "application/msgpack", headers={"content-type": "text/csv"}),
    "tombstone": refused(None, "empty", "endpoint"),
    "empty": refused(b"", "empty", "endpoint"),
    "no-endpoint": refused(body(endpoint=""), "`endpoint` is missing"),
    "unknown-endpoint": refused(body(endpoint="fashoin"), "'fashoin'", "fashion", code="unknown_endpoint"),
    "deadline-nan": refused(body(deadline_ms=float("nan")), "application/json"),
    "deadline-nan-packed": refused(packed(deadline_ms=float("nan")), "float", "deadline_ms", headers=MSGPACK),
    "deadline-nan-header": refused(body(), "header deadline_ms", "int", headers={"deadline_ms": "NaN"}),
    "deadline-negative": refused(body(deadline_ms=-1), "deadline_ms", "-1", "0..", "Unix time in milliseconds"),
    "deadline-endless": refused(body(deadline_ms=10**400), "deadline_ms", "0.."),
    "deadline-text": refused(body(deadline_ms="tomorrow"), "deadline_ms", "int"),
    "deadline-far": refused(body(timeout_ms=None, deadline_ms=int(time.time() * 1000) + 2 * DAY_MS), "86400 s"),
    "deadline-past": refused(body(deadline_ms=int(time.time() * 1000) - 5_000), "the deadline passed", code="infeasible_deadline"),
    "deadline-in-seconds": refused(body(deadline_ms=int(time.time()) + 5), "the deadline passed", code="infeasible_deadline"),
    "timeout-negative": refused(body(timeout_ms=-5), "timeout_ms", "-5", "0..86400000"),
    "timeout-zero": refused(body(timeout_ms=0), "the deadline passed", code="infeasible_deadline"),
    "timeout-too-short": refused(body(timeout_ms=2), code="infeasible_deadline"),
    "floor-above-all": refused(body(min_accuracy=0.99), "0.99", "0.9338", code="infeasible_accuracy"),
    "floor-over-one": refused(body(min_accuracy=93), "min_accuracy", "93", "0..1"),
    "floor-negative": refused(body(min_accuracy=-0.1), "min_accuracy", "0..1"),
    "floor-nan-header": refused(body(), "min_accuracy", "0..1", headers={"min_accuracy": "nan"}),
    "priority-out-of-range": refused(body(priority=10), "priority", "10", "0..9", "1 is the highest"),
    "long-tenant": refused(body(tenant="t" * 300), "tenant", "300", "128"),
    "empty-batch": refused(body(inputs=[image_tensor(IMAGES[:0])]), "rows", "0", "1..1024"),
    "tensors-65": refused(body(inputs=[image_tensor(ONE, name=f"image{n}", data=[]) for n in range(65)]), "65 input tensors", "64"),
    "rows-1025": refused(body(inputs=[image_tensor(ONE, shape=[1025, 1, 28, 28])]), "rows", "1025", "1..1024"),
    "headers-65": refused(body(), "65 headers", "64", headers={f"h{n}": "x" for n in range(65)}),
    "headers-of-a-megabyte": refused(body(), "headers", "65536", headers={"content-type": "application/json;" + "x" * (1 << 20)}),
    "too-large": refused(body(parameters={"padding": "x" * (3 << 19)}), "1048576", code="too_large"),
    "wrong-name": failed(tensor(name="imgae"), "'imgae'", "did you mean 'image'"),
    "wrong-shape": failed(tensor(shape=[1, 28, 28]), "'image'", "[1, 28, 28]", "[-1, 1, 28, 28]"),
    "wrong-datatype": failed(tensor(datatype="FP32"), "'image'", "FP32", "UINT8"),
    "unknown-datatype": failed(tensor(datatype="uint-8"), "'image'", "uint-8", "UINT8"),
    "wrong-count": failed(tensor(data=[0] * 783), "'image'", "783", "784"),
    "wrong-values": failed(tensor(data=[256] * 784), "'image'", "256", "0..255"),
    "not-numbers": failed(tensor(data=["a"] * 784), "'image'", "int"),
    "wrong-bytes": failed(packed(inputs=[image_tensor(ONE, data=b"\0" * 100)]), "'image'", "100", "784", headers=MSGPACK),
    "no-inputs": failed(body(inputs=[]), "inputs"),
    "twice-the-same-input": failed(body(inputs=[image_tensor(ONE)] * 2), "'image'", "more than once"),
    "unknown-output": failed(body(outputs=[{"name": "prob"}]), "'prob'", "did you mean 'probs'"),
    "headers-alone": failed(b"hello", "application/json", headers=ROUTED),
}  # fmt: skip


class Good(NamedTuple):
    """A record that is served."""

    value: bytes
    rows: int = 1
    headers: Mapping[str, str | bytes] = MappingProxyType({})
    timestamp_ms: int = 0


NOW_MS = int(time.time() * 1000)
GOOD = {
    "plain": Good(body()),
    "rows": Good(body(inputs=[image_tensor(IMAGES)]), rows=5),
    "nested-data": Good(tensor(data=ONE.tolist())),
    "routed-by-headers": Good(json.dumps({"inputs": [image_tensor(ONE)]}).encode(), headers=ROUTED),
    "headers-win": Good(body(endpoint="elsewhere", min_accuracy=7), headers=ROUTED),
    "packed": Good(packed(), headers=MSGPACK),
    "charset": Good(body(), headers={"Content-Type": "application/json; charset=utf-8"}),
    "foreign-headers": Good(body(), headers={"x": b"\xff\x00", "": "y"}),
    "from-the-future": Good(body(), timestamp_ms=NOW_MS + DAY_MS),
    "from-the-past": Good(body(), timestamp_ms=NOW_MS - DAY_MS),
    "i" * 128: Good(body()),
    "größe 1/2 \"{}\n": Good(body()),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_died(shared_stack: RunningStack) -> Iterator[None]:
    """Whatever a test sends, the processes are the same ones afterwards, and serve."""
    before = shared_stack.pids()
    yield
    assert shared_stack.pids() == before
    assert {name: process["restarts"] for name, process in shared_stack.processes().items()} == dict.fromkeys(before, 0)


def outcome(answer: dict[str, Any]) -> tuple[str, str]:
    return answer["outcome"], answer.get("error", {}).get("code", "")


def test_each_bad_request_gets_one_answer_that_says_what_is_wrong_and_what_would_be_right(client: ForeignClient) -> None:
    for name, case in CASES.items():
        client.publish(name, case.value, headers=case.headers)
    client.flush()
    stored = client.until_stored(CASES, within_s=WITHIN_S)
    answers = client.answers()
    assert {name: outcome(answer) if answer else None for name, answer in stored.items()} == {n: (c.outcome, c.code) for n, c in CASES.items()}
    for name, case in CASES.items():
        assert len(answers[name]) == 1, f"{name}: {answers[name]}"
        assert answers[name][0][0] == stored[name], name
        message = stored[name]["error"]["message"]
        assert not [words for words in case.said if words not in message], f"{name}: {message}"
        assert len(message) < 1_000, name
    # Where the content type of the request can be answered in, it is.
    assert isinstance(json.loads(client.raw("not-json")), dict)
    assert msgspec.msgpack.decode(client.raw("wrong-bytes"))["id"] == "wrong-bytes"


def test_what_is_right_is_served_however_it_is_written(client: ForeignClient) -> None:
    for name, good in GOOD.items():
        client.produce("requests", good.value, key=name, headers=good.headers, timestamp_ms=good.timestamp_ms)
    client.produce("requests", body(id="id-in-the-body"))
    client.flush()
    expected = GOOD | {"id-in-the-body": Good(body())}
    stored = client.until_stored(expected, within_s=WITHIN_S)
    answers = client.answers()
    alone = stored["plain"]
    for name, good in expected.items():
        answer = stored[name]
        assert answer, name
        assert outcome(answer) == ("completed", ""), (name, answer)
        assert [found for found, _ in answers[name]] == [answer], name
        assert answer["outputs"][0]["shape"] == [good.rows, 10]
        # The log's time counts, whatever the client's record says.
        assert abs(answer["received_ms"] - answers[name][0][1]) < PATIENT_MS, name
        assert answer["deadline_ms"] == answer["received_ms"] + PATIENT_MS, name
    assert int(np.argmax(alone["outputs"][0]["data"])) == int(np.argmax(np.frombuffer(stored["packed"]["outputs"][0]["data"], "<f4")))


def test_what_has_no_usable_id_goes_to_the_dead_letters_with_its_bytes_and_the_reason(client: ForeignClient, shared_stack: RunningStack) -> None:
    largest = b'{"endpoint":"fashion","x":"' + b"y" * ((2 << 20) - 120 - 29) + b'"}'
    strays: dict[str, tuple[bytes | None, bytes | None, str]] = {
        "id of 200 bytes": (b"i" * 200, body(), "200 bytes: a request id has 1 to 128"),
        "key of no text": (b"\xff\xfe", body(), "not UTF-8"),
        "no key and no id": (None, body(), "no key and no body `id`"),
        "no key and not JSON": (None, b"hello", "no key"),
        "neither key nor body": (None, None, "neither a key nor a body"),
        "empty key": (b"", body(id="x"), "0 bytes"),
        "id in the body of 200 bytes": (None, body(id="i" * 200), "1 to 128"),
        "id that is a number": (None, body(id=7), "no key"),
        "as large as a record may be": (None, largest, "no key and no body `id`"),
    }
    for name, (key, value, _) in strays.items():
        client.produce("requests", value, key=key, headers={"mine": name})
    client.publish("behind-the-strays", body())
    client.flush()
    assert not client.unsent
    found: dict[str, Any] = {}

    def all_there() -> bool:
        for message in client.records("dead-letters"):
            headers = dict(message.headers() or [])
            found[headers.get("mine", b"").decode()] = (message.key(), message.value(), headers)
        return strays.keys() <= found.keys()

    until(all_there, "every stray in the dead letters", within_s=WITHIN_S)
    for name, (key, value, reason) in strays.items():
        sent_key, sent_value, headers = found[name]
        assert (sent_key or None, sent_value) == (key or None, value), name
        assert reason in headers["headrace-reason"].decode(), (name, headers["headrace-reason"])
        assert headers["headrace-topic"].decode() == f"{client.prefix}.requests"
    assert outcome(client.until_stored(["behind-the-strays"], within_s=WITHIN_S)["behind-the-strays"] or {"outcome": None}) == ("completed", "")
    # Nothing is left behind: what was buried is finished.
    until(lambda: shared_stack.headrace("get", "lag")["lag_messages"][f"{client.prefix}.dispatchers"] == 0, "no lag", within_s=WITHIN_S)


def test_kafka_refuses_a_body_of_10_mb(client: ForeignClient) -> None:
    client.publish("ten-megabytes", body(parameters={"padding": "x" * (10 << 20)}))
    client.flush()
    assert client.unsent == ["ten-megabytes"]
    client.unsent.clear()


def test_the_same_id_again_changes_nothing(client: ForeignClient, shared_stack: RunningStack) -> None:
    before = shared_stack.metric("dispatcher-1", "headrace_duplicate_requests_total")
    for _ in range(10):
        client.publish("at-once", body())
    for partition in range(8):
        client.produce("requests", body(id="everywhere"), key="everywhere", partition=partition)
    client.flush()
    first = client.until_stored(["at-once", "everywhere"], within_s=WITHIN_S)
    client.publish("at-once", body(min_accuracy=0.99))
    client.publish("everywhere", b"hello")
    client.publish("after-them", body())
    client.flush()
    client.until_stored(["after-them"], within_s=WITHIN_S)
    until(lambda: shared_stack.metric("dispatcher-1", "headrace_duplicate_requests_total") == before + 9 + 7 + 2, "18 duplicates", within_s=WITHIN_S)
    assert [outcome(answer or {"outcome": None}) for answer in first.values()] == [("completed", "")] * 2
    assert client.stored(first) == first
    answers = client.answers()
    assert {name: [answer for answer, _ in answers[name]] for name in first} == {name: [answer] for name, answer in first.items()}


DEEP = b"[" * 100_000
GARBAGE = (
    b"",
    b"hello",
    b"{",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe\x00",
    b"\xc1" * 100,
    b'{"x":' + DEEP,
    b'{"kind":"worker","x":' + DEEP,
    b'{"kind":"departed","role":"\xff\xfe","name":"x","incarnation":0,"at_ms":0}',
    b'{"kind":"king","x":1}',
    b'{"planner":"\xff\xfe","epoch":99}',
    b'{"epoch":"many"}',
    b'{"epoch":' + b"9" * 300 + b"}",
    b'{"epoch":-5,"bindings":[]}',
    b'{"name":"x","task":' + DEEP,
    b'{"name":"\xff","variants":[]}',
    b'{"id":"x","outcome":"splendid","path":[],"received_ms":1,"finished_ms":1,"attempts":1,"epoch":1,"version":1}',
    b"x" * 1_000_000,
)
LARGEST = b"x" * ((2 << 20) - 200)
WORKER = {"kind": "worker", "incarnation": 1, "accelerator": "cpu", "device": "d", "host": "h", "state": "ready"}


def odd_reports() -> list[bytes]:
    """Telemetry that can be read and makes no sense."""
    latencies: list[dict[str, Any]] = [
        {"0": [1.0, 1.0, 1]},
        {"-3": [1.0, 1.0, 1]},
        {"1": [-1.0, -1.0, -1]},
        {"1": [0.0, 0.0, 0]},
        {"1": [1e308, 1e308, 1]},
    ]
    hosted = [{"fashion/wide": {"state": "ready", "latency": latency}} for latency in latencies]
    changes = [{"variants": variants, "lane": lane} for variants in hosted for lane in (0, -1, 10**9)]
    changes += [{"credits": -5}, {"batch_size_max": 0}, {"lane": 0, "threads": -1}, {"accelerator": "abacus"}, {"memory_bytes_max": -1}]
    return [json.dumps(WORKER | {"worker": f"stranger-{n}", "at_ms": NOW_MS} | change).encode() for n, change in enumerate(changes)]


def test_what_strangers_write_to_our_own_topics_harms_nobody(client: ForeignClient, shared_stack: RunningStack) -> None:
    topics = {"work.cpu": 16, "responses": 8, "plan": 1, "catalog": 1, "telemetry": 1}
    for topic, partitions in topics.items():
        for number, value in enumerate([*GARBAGE, None]):
            for key in (None, b"\xff\xfe", b"task/x", f"garbage-{number}".encode()):
                if key is None and topic in ("plan", "catalog"):
                    continue  # compacted: Kafka itself refuses a record without a key
                client.produce(topic, value, key=key, partition=number % partitions, headers={"headrace": b"\x92\x01" + b"\x91" * 5_000})
    # The worker is on the first lane.
    for value in GARBAGE:
        client.produce("work.cpu", value, key=b"x", partition=0, headers={"headrace": value[:50_000]})
    client.produce("work.cpu", LARGEST, partition=0)
    client.produce("responses", LARGEST, partition=0)
    for value in odd_reports():
        client.produce("telemetry", value, key=b"stranger")
    client.flush()
    assert not client.unsent
    # Garbage under the very ids of requests, before they come and while they run, is no answer to them.
    ids = [f"garbage-{number}" for number in range(len(GARBAGE))] + [f"after-{uuid.uuid4().hex[:6]}-{number}" for number in range(20)]
    for request_id in ids:
        client.publish(request_id, body())
    client.flush()
    stored = client.until_stored(ids, within_s=WITHIN_S)
    assert {request_id: outcome(answer) if answer else None for request_id, answer in stored.items()} == dict.fromkeys(ids, ("completed", ""))
    endpoints = shared_stack.headrace("get", "endpoints")
    assert {endpoint["name"] for endpoint in endpoints["endpoints"]} == {"fashion"}
    assert {task["name"] for task in endpoints["tasks"]} == {"fashion"}
    assert shared_stack.headrace("get", "workers")["workers"]
    assert shared_stack.headrace("get", "plan")["plan"]["epoch"] < 50
    assert shared_stack.headrace("deadletter", "list", "--limit", "1")["count"] > 0

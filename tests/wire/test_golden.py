"""Golden bytes of every record kind, by version: what was written must be read for ever, and what is written must stay what it was.

A file is never changed once its version is released: a new version gets files of its own, and readers keep reading the old ones.
"""

from __future__ import annotations

import zlib
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from golden_control import CONTROL_KINDS
from golden_counts import COUNTS
from golden_feedback import EARLIER_FEEDBACK_KINDS, FEEDBACK_KINDS
from golden_stage import EARLIER_PART, EARLIER_STAGE, FAILED_STAGE, PART, STAGE
from golden_workers import BOARD_WORKER, EARLIER_BOARD_WORKER, WORKER

from broker.arrivals import read_entry
from broker.messages import answer_message, dead_letter_message, work_message
from broker.policy.entry import Answer, Send
from broker.policy.watermark import Watermark, restore
from schemas.catalog import (
    AgreementSpec,
    Catalog,
    Defaults,
    EndpointSpec,
    Quota,
    TaskSpec,
    TensorSpec,
    VariantSpec,
    catalog_key,
    decode_endpoint,
    decode_task,
    encode_catalog,
)
from schemas.limits import Limits
from schemas.names import Names
from schemas.plan import Binding, Plan, decode_plan, encode_plan
from schemas.profile import Latency, Profile
from schemas.request import Routing, TensorHead, read_routing
from schemas.stage import decode_stage, encode_stage
from schemas.telemetry import (
    Departed,
    DispatcherReport,
    Returned,
    decode_telemetry,
    encode_telemetry,
)
from schemas.terminal import (
    JSON_TYPE,
    MSGPACK_TYPE,
    ErrorDetail,
    OutputTensor,
    PathStep,
    Terminal,
    decode_terminal,
    decode_terminal_head,
    encode_terminal,
)
from schemas.work import WorkOrder, decode_order, encode_order

GOLDEN = Path(__file__).parent / "golden"
MSGPACK_HEADERS = [("content-type", b"application/msgpack")]
LIMITS = Limits()

ROUTING = Routing(
    endpoint="fashion",
    id="order-1",
    min_accuracy=0.9,
    deadline_ms=1_700_000_000_300,
    timeout_ms=300,
    priority=2,
    tenant="shop",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    rows=2,
    inputs=[TensorHead([2, 2])],
)
ORDER = WorkOrder(
    version=1,
    endpoint="fashion",
    stage="main",
    variant="fashion/cnn",
    accuracy=0.9001,
    worker="worker-cpu-0",
    incarnation=1_700_000_000_000,
    shard=3,
    received_ms=1_700_000_000_000,
    deadline_ms=1_700_000_000_300,
    rows=2,
    attempt=1,
    epoch=7,
    priority=5,
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
STAGE_ORDER = msgspec.structs.replace(ORDER, endpoint="pages", stage="lines.recognise#12", variant="recognise/large", part=PART)
STEP = PathStep(stage="main", variant="fashion/cnn", accuracy=0.9001, accelerator="cpu", device="CPU", queued_ms=1.5, computed_ms=0.25, batch_size=8)


def completed(data: Any) -> Terminal:
    return Terminal(
        id="order-1",
        outcome="completed",
        endpoint="fashion",
        outputs=[OutputTensor("label", [2], "INT64", data)],
        path=[STEP],
        accuracy=0.9001,
        received_ms=1_700_000_000_000,
        finished_ms=1_700_000_000_020,
        deadline_ms=1_700_000_000_300,
        attempts=1,
        epoch=7,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        version=1,
    )


REJECTED = Terminal(
    id="order-2",
    outcome="rejected",
    error=ErrorDetail("bad_request", "the body is empty"),
    path=[],
    received_ms=1_700_000_000_000,
    finished_ms=1_700_000_000_001,
    attempts=0,
    epoch=0,
    version=1,
)
EXPIRED = Terminal(
    id="order-3",
    outcome="expired",
    endpoint="fashion",
    error=ErrorDetail("deadline_exceeded", "the deadline came while a worker had it", "main"),
    path=[],
    received_ms=1_700_000_000_000,
    finished_ms=1_700_000_000_308,
    deadline_ms=1_700_000_000_300,
    attempts=1,
    epoch=7,
    version=1,
)
DISPATCHER = DispatcherReport(
    dispatcher="dispatcher-0",
    incarnation=1_700_000_000_000,
    at_ms=1_700_000_001_000,
    shards=(0, 3),
    epoch=7,
    waiting=4,
    leased=2,
    arrived={"fashion": {"fashion/cnn": 12, "-": 1}},
    outcomes={"completed": 11},
)
DISPATCHER_OF_ENDPOINTS = msgspec.structs.replace(DISPATCHER, endpoints={"pages": COUNTS})
DEPARTED = Departed(role="worker", name="worker-cpu-0", incarnation=1_700_000_000_000, at_ms=1_700_000_001_000)
RETURNED = Returned(worker="worker-cpu-0", incarnation=1_700_000_000_000, ids=("order-1", "order-2"), reason="draining", at_ms=1_700_000_001_000)
PLAN = Plan(
    epoch=7,
    bindings=(
        Binding(
            worker="worker-cpu-0",
            accelerator="cpu",
            lane=0,
            variants=("fashion/cnn", "fashion/wide"),
            batch_size_max=16,
            threads=2,
            clock_mhz=1_200.0,
        ),
    ),
    shares={"fashion": {"fashion/cnn": 0.75, "fashion/wide": 0.25}},
    budgets={"fashion": {"main": 250.0}},
    planner="static",
    reason="a worker came",
    made_ms=1_700_000_000_000,
)
TASK = TaskSpec(
    name="fashion",
    variants=(
        VariantSpec(
            name="cnn",
            file="cnn.onnx",
            sha256="ab" * 32,
            accuracy=0.9001,
            accelerators=("cpu", "vpu"),
            inputs=(TensorSpec("image", "UINT8", (-1, 1, 28, 28)),),
            outputs=(TensorSpec("label", "INT64", (-1,)),),
            batch_size_max=16,
        ),
    ),
)
ENDPOINT_V3 = EndpointSpec(
    name="fashion", task="fashion", defaults=Defaults(min_accuracy=0.85, timeout_ms=500, priority=4), quotas={"*": Quota(rate_rps=100.0, burst=20)}
)
ENDPOINT = msgspec.structs.replace(ENDPOINT_V3, agreement=AgreementSpec(sample=0.01))
PROFILE = Profile(
    variant="fashion/cnn",
    sha256="ab" * 32,
    accelerator="cpu",
    device="CPU",
    host="box",
    threads=2,
    batches={1: Latency(0.08, 0.1, 50), 32: Latency(2.0, 2.5, 40)},
    load_ms=12.5,
    memory_bytes=4_096,
    spread=0.07,
    measured_ms=1_700_000_000_000,
)


class Golden(NamedTuple):
    """One record kind: its file, what the file says, and how that is read and written."""

    file: str
    expected: Any
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


def _as_json(record: Terminal) -> bytes:
    return encode_terminal(record, JSON_TYPE)


def _as_msgpack(record: Terminal) -> bytes:
    return encode_terminal(record, MSGPACK_TYPE)


KINDS = [
    Golden("work-order-v2.msgpack", ORDER, decode_order, encode_order),
    Golden("work-order-stage-v3.msgpack", STAGE_ORDER, decode_order, encode_order),
    Golden("stage-v2.msgpack", STAGE, decode_stage, encode_stage),
    Golden("stage-failed-v2.msgpack", FAILED_STAGE, decode_stage, encode_stage),
    Golden("terminal-completed-v1.json", completed([9, 2]), decode_terminal, _as_json),
    Golden("terminal-completed-v1.msgpack", completed(bytes([9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])), decode_terminal, _as_msgpack),
    Golden("terminal-rejected-v1.json", REJECTED, decode_terminal, _as_json),
    Golden("terminal-expired-v1.msgpack", EXPIRED, decode_terminal, _as_msgpack),
    Golden("telemetry-worker-v2.json", WORKER, decode_telemetry, encode_telemetry),
    Golden("telemetry-worker-board-v3.json", BOARD_WORKER, decode_telemetry, encode_telemetry),
    Golden("telemetry-dispatcher-v3.json", DISPATCHER, decode_telemetry, encode_telemetry),
    Golden("telemetry-dispatcher-endpoints-v3.json", DISPATCHER_OF_ENDPOINTS, decode_telemetry, encode_telemetry),
    Golden("telemetry-departed-v1.json", DEPARTED, decode_telemetry, encode_telemetry),
    Golden("telemetry-returned-v1.json", RETURNED, decode_telemetry, encode_telemetry),
    Golden("catalog-task-v2.json", TASK, decode_task, encode_catalog),
    Golden("catalog-endpoint-v4.json", ENDPOINT, decode_endpoint, encode_catalog),
    Golden("profile-v1.json", PROFILE, msgspec.json.Decoder(Profile).decode, msgspec.json.encode),
    *(Golden(*kind) for kind in CONTROL_KINDS),
    *(Golden(*kind) for kind in FEEDBACK_KINDS),
]

EARLIER = [
    Golden("telemetry-worker-v1.json", WORKER, decode_telemetry, encode_telemetry),
    Golden("telemetry-worker-board-v2.json", EARLIER_BOARD_WORKER, decode_telemetry, encode_telemetry),
    Golden("telemetry-dispatcher-v1.json", DISPATCHER, decode_telemetry, encode_telemetry),
    Golden("telemetry-dispatcher-v2.json", DISPATCHER, decode_telemetry, encode_telemetry),
    Golden("plan-v1.json", msgspec.structs.replace(PLAN, version=1), decode_plan, encode_plan),
    Golden("work-order-v1.msgpack", ORDER, decode_order, encode_order),
    Golden("work-order-stage-v2.msgpack", msgspec.structs.replace(STAGE_ORDER, part=EARLIER_PART), decode_order, encode_order),
    Golden("stage-v1.msgpack", EARLIER_STAGE, decode_stage, encode_stage),
    Golden("stage-failed-v1.msgpack", FAILED_STAGE, decode_stage, encode_stage),
    Golden("catalog-task-v1.json", TASK, decode_task, encode_catalog),
    Golden("catalog-endpoint-v1.json", ENDPOINT_V3, decode_endpoint, encode_catalog),
    Golden("catalog-endpoint-v2.json", ENDPOINT_V3, decode_endpoint, encode_catalog),
    Golden("catalog-endpoint-v3.json", ENDPOINT_V3, decode_endpoint, encode_catalog),
    *(Golden(*kind) for kind in EARLIER_FEEDBACK_KINDS),
]
"""As versions before this one wrote them: read for ever, and written no more."""


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


class Record(NamedTuple):
    """A record as the log hands it out."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


@pytest.mark.parametrize("kind", KINDS + EARLIER, ids=lambda kind: kind.file)
def test_golden_bytes_are_read_as_what_they_say(kind: Golden) -> None:
    assert kind.decode(golden(kind.file)) == kind.expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.file)
def test_the_same_record_is_written_as_the_same_bytes(kind: Golden) -> None:
    assert kind.encode(kind.expected) == golden(kind.file)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.file.endswith(".json")], ids=lambda kind: kind.file)
def test_a_field_of_a_later_version_is_passed_over(kind: Golden) -> None:
    value = golden(kind.file)
    later = value[:-1] + b',"a_field_of_version_9":{"x":[1]}}'
    assert kind.decode(later) == kind.expected


def test_a_work_order_of_a_later_version_may_have_more_at_its_end() -> None:
    fields = msgspec.msgpack.decode(golden("work-order-v2.msgpack"))
    assert decode_order(msgspec.msgpack.encode([*fields, "more"])) == ORDER
    assert decode_order(msgspec.msgpack.encode(fields[:-2])) == msgspec.structs.replace(ORDER, traceparent=None)
    *others, part = msgspec.msgpack.decode(golden("work-order-stage-v3.msgpack"))
    assert decode_order(msgspec.msgpack.encode([*others, [*part, "more"]])) == STAGE_ORDER
    stage = msgspec.msgpack.decode(golden("stage-v2.msgpack"))
    assert decode_stage(msgspec.msgpack.encode([*stage, "more"])) == STAGE


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.file.startswith("terminal")], ids=lambda kind: kind.file)
def test_the_head_of_a_terminal_record_says_the_same(kind: Golden) -> None:
    head = decode_terminal_head(golden(kind.file))
    assert {name: getattr(head, name) for name in ("id", "outcome", "error", "path", "accuracy", "deadline_ms", "version")} == {
        name: getattr(kind.expected, name) for name in ("id", "outcome", "error", "path", "accuracy", "deadline_ms", "version")
    }


@pytest.mark.parametrize(("file", "headers"), [("request-v1.json", []), ("request-v1.msgpack", MSGPACK_HEADERS)])
def test_a_request_in_either_encoding_is_routed_by_its_body(file: str, headers: list[tuple[str, bytes]]) -> None:
    assert read_routing(golden(file), headers, LIMITS) == ROUTING


def test_a_request_with_its_fields_in_headers_is_routed_without_its_body() -> None:
    headers = [tuple(line.split(b": ", 1)) for line in golden("request-headers-v1.txt").splitlines()]
    routing = read_routing(b"not looked at", [(name.decode(), value) for name, value in headers], LIMITS)
    assert routing == msgspec.structs.replace(ROUTING, id=None, inputs=[])


def test_catalog_keys_are_what_they_were() -> None:
    assert (catalog_key(TASK), catalog_key(ENDPOINT)) == (b"task/fashion", b"fashion")
    catalog = Catalog()
    catalog.apply(b"task/fashion", golden("catalog-task-v2.json"))
    catalog.apply(b"fashion", golden("catalog-endpoint-v4.json"))
    assert (catalog.tasks, catalog.endpoints) == ({"fashion": TASK}, {"fashion": ENDPOINT})


def _bitmap(metadata: str) -> tuple[str, str, bytes]:
    version, since_ms, text = metadata.split(":")
    return version, since_ms, zlib.decompress(b64decode(text))


def test_commit_metadata_is_read_and_written_as_it_was() -> None:
    text = golden("commit-metadata-v1.txt").decode()
    watermark, since_ms = restore(100, text)
    finished = {offset for offset in range(130) if watermark.is_finished(offset)}
    assert (since_ms, finished) == (1_700_000_000_000, {*range(100), 101, 103, 104, 120})
    written = Watermark(100)
    for offset in (101, 103, 104, 120):
        written.finish(offset)
    # Another zlib may compress to other bytes: what they say is what counts.
    assert _bitmap(written.metadata(1_700_000_000_000, 4_000)) == _bitmap(text) == ("1", "1700000000000", bytes([0b00011010, 0, 0b00010000]))


def test_a_dead_letter_keeps_the_record_and_says_why_and_whence() -> None:
    record = Record("headrace.requests", 3, 41, 1_700_000_000_000, b"\xff", b"{}", [("content-type", b"application/json")])
    key, value, headers = dead_letter_message(record, "the key is not UTF-8 text")
    assert (key, value) == (b"\xff", b"{}")
    assert b"\n".join(name.encode() + b": " + said for name, said in headers) + b"\n" == golden("dead-letter-headers-v1.txt")


@pytest.mark.parametrize(("file", "headers"), [("request-v1.json", []), ("request-v1.msgpack", MSGPACK_HEADERS)])
def test_a_work_order_carries_the_request_untouched(file: str, headers: list[tuple[str, bytes]]) -> None:
    record = Record("headrace.requests", 3, 41, 1_700_000_000_000, b"order-1", golden(file), headers)
    entry = read_entry(record, LIMITS)
    entry.deadline_ms, entry.priority = 1_700_000_000_300, 5
    send = Send(entry, "cpu", 0, "worker-cpu-0", 1_700_000_000_000, "fashion/cnn", 0.9001, 1)
    key, value, sent = work_message(send, 7, Names())
    assert (key, value) == (b"order-1", golden(file))
    assert list(sent) == [("headrace", golden("work-order-v2.msgpack")), *headers]


def test_the_dispatchers_own_answers_are_written_in_the_requests_encoding() -> None:
    record = Record("headrace.requests", 3, 41, 1_700_000_000_000, b"order-3", golden("request-v1.msgpack"), MSGPACK_HEADERS)
    entry = read_entry(record, LIMITS)
    entry.deadline_ms, entry.attempts, entry.traceparent, entry.task = 1_700_000_000_300, 1, None, "fashion"
    answer = Answer(entry, "expired", "deadline_exceeded", "the deadline came while a worker had it")
    assert answer_message(answer, 7, 1_700_000_000_308.9) == (b"order-3", golden("terminal-expired-v1.msgpack"), MSGPACK_HEADERS)


def test_every_golden_file_is_held_by_a_test() -> None:
    others = {"request-v1.json", "request-v1.msgpack", "request-headers-v1.txt", "commit-metadata-v1.txt", "dead-letter-headers-v1.txt"}
    others |= {"scale-order-v1.json", "scale-offer-v1.json"}  # test_golden_scale.py
    assert {path.name for path in GOLDEN.iterdir()} == {kind.file for kind in KINDS + EARLIER} | others

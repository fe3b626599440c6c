"""The timeline of a request, of every kind of record that can speak of it, on the log in memory."""

from __future__ import annotations

import pytest
from accuracy_stage import answer

from broker.memory import MemoryLog
from deploy.tracing import trace_request
from schemas.errors import HeadraceError
from schemas.feedback import Feedback, encode_feedback, feedback_spec, feedback_topic
from schemas.names import Names
from schemas.plan_journal import PlanDecision, encode_decision
from schemas.stage import StageRecord, encode_stage
from schemas.telemetry import Departed, Returned, encode_telemetry
from schemas.work import StagePart, WorkOrder, encode_order, order_name

NAMES = Names("trace-test")
FIELDS = {"version": 1, "endpoint": "g", "accuracy": 0.9, "shard": 0, "received_ms": 0, "deadline_ms": 1 << 50, "rows": 1, "priority": 5}


def order(worker, attempt, *, epoch=7, instance="lines/read#2"):
    part = StagePart(instance=instance, revision=1, topic="x")
    return WorkOrder(**FIELDS, stage=instance, variant="t/small", worker=worker, incarnation=1, attempt=attempt, epoch=epoch, part=part)


def stage_record(instance, code=""):
    return StageRecord(1, "g", 1, instance, 2, "t/small", 0.9, "cpu", "CPU", 1.0, 2.0, 4, 0, (), code, "it broke" if code else "", "w1")


@pytest.fixture
async def log():
    made = MemoryLog()
    await made.create_topics([*NAMES.topics(shards=2), NAMES.stage_topic("g", "lines.read", partitions=2), feedback_spec(NAMES)])
    yield made
    await made.close()


async def put(log, topic, key, value, headers=(), partition=0):
    writer = log.writer("test")
    await writer.start()
    await writer.write(topic, partition, [(key, value, headers)])
    await writer.close()


async def test_every_kind_of_record_has_its_line(log):
    now_ms = 1 << 60
    body = b'{"id": "r", "endpoint": "g", "min_accuracy": 0.9, "timeout_ms": 300, "inputs": []}'
    await put(log, NAMES.requests, b"other", body, partition=1)
    await put(log, NAMES.requests, None, body, partition=1)
    await put(log, NAMES.work("cpu"), b"r", b"", [("headrace", encode_order(order("w0", 1)))])
    await put(log, NAMES.work("cpu"), b"other", b"", [("headrace", encode_order(order("w0", 1)))])
    await put(log, NAMES.work("cpu"), b"r", b"", [("headrace", b"not an order")])
    returned = Returned(worker="w0", incarnation=1, ids=("q", order_name("r", "lines/read#2")), reason="late", cause="late", at_ms=1)
    await put(log, NAMES.telemetry, b"w0", encode_telemetry(returned))
    await put(log, NAMES.telemetry, b"w9", encode_telemetry(Departed(role="worker", name="w9", incarnation=1, at_ms=now_ms)))
    await put(log, NAMES.telemetry, b"w0", encode_telemetry(Departed(role="worker", name="w0", incarnation=2, at_ms=now_ms)))
    await put(log, NAMES.telemetry, b"w0", encode_telemetry(Departed(role="worker", name="w0", incarnation=1, at_ms=now_ms)))
    await put(log, NAMES.work("gpu"), b"r", b"", [("headrace", encode_order(order("w1", 2)))])
    await put(log, NAMES.stage("g", "lines.read"), b"r", b"", [("headrace", encode_stage(stage_record("lines/read#2")))])
    await put(log, NAMES.stage("g", "lines.read"), b"r", b"", [("headrace", encode_stage(stage_record("lines/read#3", "backend_error")))])
    await put(log, NAMES.responses, b"r", b"no record", partition=1)
    await put(log, NAMES.responses, b"r", answer("r", outcome="expired"), partition=1)
    await put(log, NAMES.responses, b"r", answer("r", 1), partition=1)
    await put(log, NAMES.tap_responses, b"r", answer("r", 2), [("headrace-shadow", b"true")], partition=1)
    await put(log, NAMES.tap_responses, b"r", answer("r", 1), [("ce_id", b"r")], partition=1)
    await put(log, NAMES.dead_letters, b"r", body, [("headrace-reason", b"attempts_exhausted")])
    await put(log, NAMES.requests, b"r", body, partition=0)
    await put(log, feedback_topic(NAMES), b"r", encode_feedback(Feedback(label=3)))
    decision = PlanDecision(at_ms=1.0, scaler="s", epoch=7, kind="published", trigger="a worker came", reason="serves all")
    await put(log, NAMES.plan_history, b"", encode_decision(decision))

    found = await trace_request(log, NAMES, "r", since_ms=0)
    said = [(event.what, event.stage) for event in found.events]
    assert found.outcome == "expired"
    assert sorted(said) == sorted(
        [
            ("arrived", ""),
            ("ignored", ""),
            ("sent", "lines/read#2"),
            ("sent", "lines/read#2"),
            ("returned", "lines/read#2"),
            ("departed", ""),
            ("stage", "lines/read#2"),
            ("stage", "lines/read#3"),
            ("answered", ""),
            ("ignored", ""),
            ("shadow", ""),
            ("dead letter", ""),
            ("feedback", ""),
        ]
    )
    assert found.plans == {7: "a worker came: serves all"}
    assert found.notes == []
    details = " ".join(event.detail for event in found.events)
    for words in ("within 300 ms", "attempt 2", "w0 hands it back: late", "failed on w1: it broke", "the first answer counts", "label 3"):
        assert words in details


async def test_what_the_log_does_not_have_any_more_is_said(log):
    await put(log, NAMES.responses, b"r", answer("r", 1))
    found = await trace_request(log, NAMES, "r", since_ms=0)
    assert [event.what for event in found.events] == ["answered"]
    assert len(found.notes) == 2


async def test_what_waits_is_pending_and_who_is_unknown_is_told_to_look_further(log):
    await put(log, NAMES.requests, b"r", b"\xff")
    found = await trace_request(log, NAMES, "r", since_ms=0)
    assert (found.outcome, found.events[0].what) == ("pending", "arrived")
    assert "cannot be routed" in found.events[0].detail
    with pytest.raises(HeadraceError, match="--since"):
        await trace_request(log, NAMES, "x", since_ms=0)

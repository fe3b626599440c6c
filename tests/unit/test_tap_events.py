"""The events of taps, read by the official SDK of CloudEvents, and field by field as KServe's logger writes them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, from_structured
from cloudevents.core.formats.json import JSONFormat
from tap_exchanges import ANSWERED_MS, MSGPACK_HEADERS, RECEIVED_MS, answer, body, exchange

from broker.messages import is_shadow, tap_message
from broker.policy.entry import Entry, Tap
from broker.policy.tap_events import EventSource, events_of
from broker.policy.tap_join import TappedStage
from graphs.tensor import Tensor
from schemas.cloud_event import CloudEvent, instant, json_batch, json_event, kafka_binary, kafka_structured
from schemas.names import Names
from schemas.stage import StageRecord, TensorHead
from schemas.tap import TapSample, TapSpec
from schemas.terminal import MSGPACK_TYPE, PathStep, decode_terminal

SOURCE = EventSource("shop")
KSERVE = {"inferenceservicename", "namespace", "component", "endpoint", "metadata"}
"""The extensions that KServe's logger sets on every event."""
ATTRIBUTE = re.compile(r"^[a-z0-9]{1,20}$")


def sdk_message(message: Any) -> KafkaMessage:
    key, value, headers = message
    names = [name for name, _ in headers]
    assert len(set(names)) == len(names)
    return KafkaMessage(headers=dict(headers), key=key, value=value or b"")


def read(event: CloudEvent) -> Any:
    """As the official SDK reads it, in binary mode."""
    return from_binary(sdk_message(kafka_binary(event)), JSONFormat())


def test_a_request_is_an_event_as_kserve_logs_it() -> None:
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    request, _ = events_of(exchange(request=body(traceparent=traceparent)), SOURCE)
    event = read(request)
    assert (event.get_id(), event.get_type(), event.get_source()) == ("r1", "org.kubeflow.serving.inference.request", "/shop/fashion")
    assert (event.get_specversion(), event.get_datacontenttype()) == ("1.0", "application/json")
    assert event.get_time().timestamp() * 1000 == RECEIVED_MS
    assert event.get_data() == json.loads(body(traceparent=traceparent))
    said = {name: event.get_extension(name) for name in KSERVE}
    assert said == {
        "inferenceservicename": "fashion",
        "namespace": "shop",
        "component": "predictor",
        "endpoint": "fashion",
        "metadata": '{"tenant":["acme"],"priority":["2"]}',
    }
    ours = ("graphversion", "outcome", "accuracyfloor", "deadline", "shadow", "samplerate", "traceparent")
    assert [event.get_extension(name) for name in ours] == ["3", "completed", "0.8", "2023-11-14T22:13:20.500Z", "false", "1.0", traceparent]
    assert "stage" not in request.attributes


def test_an_answer_is_an_event_as_kserve_logs_it() -> None:
    _, (response,) = events_of(exchange(), SOURCE)
    event = read(response)
    assert (event.get_id(), event.get_type()) == ("r1", "org.kubeflow.serving.inference.response")
    assert event.get_time().timestamp() * 1000 == ANSWERED_MS
    assert event.get_data() == json.loads(answer("r1"))
    assert {name: event.get_extension(name) for name in KSERVE - {"metadata"}} == {
        "inferenceservicename": "fashion",
        "namespace": "shop",
        "component": "predictor",
        "endpoint": "fashion",
    }
    ours = ("stage", "variant", "accelerator", "accuracy", "accuracyfloor", "attempt", "outcome", "graphversion")
    assert [event.get_extension(name) for name in ours] == ["main", "fashion/cnn", "cpu", "0.9", "0.8", "1", "completed", "3"]


@pytest.mark.parametrize(
    "taps", [TapSpec(), TapSpec(payload="metadata"), TapSpec(max_bytes=9), TapSpec(redact=("image",)), TapSpec(sample=TapSample(rate=0.9))]
)
def test_attributes_have_names_that_cloudevents_allows(taps: TapSpec) -> None:
    request, (response,) = events_of(exchange(taps=taps), SOURCE)
    for event in (request, response):
        assert all(ATTRIBUTE.match(name) for name in event.attributes)
        read(event)


def test_what_is_left_out_is_said() -> None:
    request, (response,) = events_of(exchange(taps=TapSpec(max_bytes=9, redact=("image", "label"))), SOURCE)
    assert (request.data, request.content_type) == (body()[:0] or request.data, "application/octet-stream")
    assert (len(request.data or b""), request.attributes["truncated"], request.attributes["redacted"]) == (9, len(body()), "image")
    assert response.attributes["redacted"] == "label"
    whole, _ = events_of(exchange(taps=TapSpec(payload="metadata")), SOURCE)
    assert whole.data is None
    assert whole.attributes["outcome"] == "completed"


@pytest.mark.parametrize(
    ("value", "headers", "problem"),
    [
        (b'{"endpoint": "fashion", ', (), "cannot be read"),
        (b"\x00\x01", [("content-type", b"text/plain")], "cannot be read"),
        (None, (), "no body"),
    ],
)
def test_a_body_that_cannot_be_decoded_is_tapped_as_bytes_with_the_reason(value: bytes | None, headers: Any, problem: str) -> None:
    one = exchange(request=value or b"", headers=headers, reply=answer("r1", "rejected"))
    one.asked.value = value
    request, (response,) = events_of(one, SOURCE)
    assert (request.data, problem in str(request.attributes["problem"])) == (value, True)
    assert value is None or request.content_type == "application/octet-stream"
    assert response.attributes["outcome"] == "rejected"
    assert response.attributes["errorcode"] == "deadline_exceeded"
    read(request)


def test_structured_events_are_read_by_the_sdk_too() -> None:
    request, (response,) = events_of(
        exchange(reply=answer("r1", content_type=MSGPACK_TYPE), request=body(MSGPACK_TYPE), headers=MSGPACK_HEADERS), SOURCE
    )
    for event, expected in ((request, body(MSGPACK_TYPE)), (response, answer("r1", content_type=MSGPACK_TYPE))):
        found: Any = from_structured(sdk_message(kafka_structured(event)), JSONFormat())
        assert (found.get_data(), found.get_datacontenttype()) == (expected, MSGPACK_TYPE)
    plain, _ = events_of(exchange(), SOURCE)
    assert json.loads(json_event(plain))["data"] == json.loads(body())
    torn = CloudEvent(b"k", plain.attributes, b"{not json")
    assert "data_base64" in json.loads(json_event(torn))
    assert [each["id"] for each in json.loads(json_batch([json_event(plain), json_event(torn)]))] == ["r1", "r1"]


def test_a_stage_has_its_own_event_with_its_raw_tensors() -> None:
    one = exchange(taps=TapSpec(redact=("secret",)))
    heads = (TensorHead("boxes", "FP32", (1, 1), 4), TensorHead("secret", "FP32", (1, 1), 4), TensorHead("n", "INT8", (2,), 2))
    record = StageRecord(1, "fashion", 4, "lines/find#2", 2, "find/fast", 0.95, "gpu", "CUDA", 1.0, 2.0, 1, RECEIVED_MS, heads)
    one.asked.stages = [TappedStage(record, b"\xffaaabbbbcc", RECEIVED_MS + 7)]
    _, (stage, _) = events_of(one, SOURCE)
    event = read(stage)
    assert (event.get_id(), event.get_data(), event.get_datacontenttype()) == ("r1/lines/find#2", b"\xffaaacc", "application/octet-stream")
    said = [event.get_extension(name) for name in ("stage", "variant", "accelerator", "attempt", "graphversion", "redacted")]
    assert said == ["lines/find#2", "find/fast", "gpu", "2", "4", "secret"]
    assert json.loads(event.get_extension("tensors")) == [["boxes", "FP32", [1, 1], 4], ["n", "INT8", [2], 2]]


def test_a_shadow_s_answer_is_an_event_of_the_same_kind() -> None:
    entry = Entry(b"r1", 2, 9, RECEIVED_MS, "fashion", None, None, None, 0, "", 1, 10, None)
    step = PathStep(stage="copy", variant="fashion/wide", accuracy=0.8, accelerator="cpu", device="CPU", queued_ms=0, computed_ms=1, batch_size=1)
    tap = Tap(entry, [Tensor("label", "INT64", (1,), (7).to_bytes(8, "little"))], 0.8, [step], "watched", 5)
    key, value, headers = tap_message(tap, 1, ANSWERED_MS, Names("shop"))
    event: Any = from_binary(sdk_message((key, value, headers)), JSONFormat())
    assert (event.get_id(), event.get_type()) == ("r1/watched", "org.kubeflow.serving.inference.response")
    said = [event.get_extension(name) for name in ("shadow", "variant", "stage", "graphversion")]
    assert said == ["true", "fashion/wide", "copy", "5"]
    assert decode_terminal(value or b"").path == [step]

    class Found:
        def __init__(self, names: Any) -> None:
            self.headers = names

    assert is_shadow(Found(headers))
    assert not is_shadow(Found(kafka_binary(events_of(exchange(), SOURCE)[1][0])[2]))
    assert not is_shadow(Found(None))


@pytest.mark.parametrize(("unix_ms", "text"), [(0, "1970-01-01T00:00:00.000Z"), (253_402_300_800_000, None), (-1, None), (2**53 - 1, None)])
def test_times_beyond_rfc_3339_are_left_out(unix_ms: int, text: str | None) -> None:
    assert instant(unix_ms) == text

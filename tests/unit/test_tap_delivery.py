"""Sinks that may be slow or dead: what a collector gets over HTTP, as traces, and what happens while it takes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry
from tap_exchanges import ANSWERED_MS, RECEIVED_MS, STEP, answer, body, exchange

from broker.policy.tap_events import EventSource
from broker.policy.tap_join import TappedStage, TapPosition
from broker.policy.tap_spans import spans_of
from broker.tap_metrics import TapMetrics
from broker.tap_sinks.buffered import BufferedTapSink, BufferSettings
from broker.tap_sinks.http import HttpCarrier
from broker.tap_sinks.otel import OtelCarrier
from broker.tap_sinks.tap_sink import TapBatch
from schemas.errors import ConfigurationError
from schemas.limits import Limits
from schemas.stage import StageRecord

Eventually = Callable[..., Awaitable[Any]]
QUICK = BufferSettings(retry_ms_min=1.0, retry_ms_max=5.0, drain_ms=500.0, batch_parcels=10)


class Collector:
    """Somebody who takes events, or does not."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[bytes] = []
        self.types: list[str] = []
        self.asked = 0

    async def take(self, request: web.Request) -> web.Response:
        self.asked += 1
        value = await request.read()
        if self.status == 200:
            self.bodies.append(value)
            self.types.append(request.content_type)
        return web.Response(status=self.status)

    def ids(self) -> list[str]:
        return [event["id"] for value in self.bodies for event in json.loads(value)]


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    made = Collector()
    application = web.Application(client_max_size=1 << 26)
    application.router.add_post("/{tail:.*}", made.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


class Desk:
    def __init__(self, carrier: Callable[[TapMetrics], Any], settings: BufferSettings = QUICK) -> None:
        self.registry = CollectorRegistry()
        metrics = TapMetrics(self.registry)
        loop = asyncio.get_running_loop()
        self.sink = BufferedTapSink(carrier(metrics), metrics, now_ms=lambda: loop.time() * 1000, settings=settings)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"headrace_tap_{name}_total", labels) or 0.0

    async def put(self, *ids: str, answers: int = 1) -> None:
        await self.sink.write({0: TapBatch([exchange(each) for each in ids], TapPosition(answers, 0))})


def http_desk(url: str, **settings: Any) -> Desk:
    made = BufferSettings(**settings) if settings else QUICK
    return Desk(lambda metrics: HttpCarrier(url, EventSource("shop"), metrics, timeout_s=2.0), made)


async def test_events_come_in_batches_that_the_sdk_reads(collector: tuple[Collector, str], eventually: Eventually) -> None:
    there, url = collector
    desk = http_desk(f"{url}/events")
    await desk.sink.start()
    await desk.put(*(f"r{number}" for number in range(12)), answers=12)
    await eventually(lambda: len(there.ids()) == 24)
    assert await desk.sink.settle() == {0: TapPosition(12, 0)}
    await desk.sink.close()
    assert set(there.types) == {"application/cloudevents-batch+json"}
    assert len(there.bodies) >= 3
    assert there.ids()[:4] == ["r0", "r0", "r1", "r1"]
    one = json.loads(there.bodies[0])[0]
    read: Any = from_http(HTTPMessage(headers={"content-type": "application/cloudevents+json"}, body=json.dumps(one).encode()), JSONFormat())
    assert (read.get_type(), read.get_data()["endpoint"]) == ("org.kubeflow.serving.inference.request", "fashion")
    assert desk.count("events", kind="event") == 24


async def test_a_failing_collector_is_asked_again_and_nothing_is_settled_meanwhile(collector: tuple[Collector, str], eventually: Eventually) -> None:
    there, url = collector
    there.status = 503
    desk = http_desk(url)
    await desk.sink.start()
    await desk.put("r1", answers=5)
    await eventually(lambda: there.asked > 3)
    assert await desk.sink.settle() == {}
    assert "answers 503" in desk.sink.unready()
    there.status = 200
    await eventually(lambda: there.ids() == ["r1", "r1"])
    await eventually(lambda: desk.sink.unready() == "")
    assert await desk.sink.settle() == {0: TapPosition(5, 0)}
    await desk.sink.close()


async def test_what_is_refused_is_dropped_and_counted(collector: tuple[Collector, str], eventually: Eventually) -> None:
    there, url = collector
    there.status = 400
    desk = http_desk(url)
    await desk.sink.start()
    await desk.put("r1", answers=5)
    await eventually(lambda: desk.count("dropped", reason="refused") == 2)
    assert await desk.sink.settle() == {0: TapPosition(5, 0)}
    await desk.sink.close()


async def test_a_dead_collector_costs_a_fixed_buffer_and_nobody_waits(eventually: Eventually) -> None:
    desk = http_desk("http://127.0.0.1:9/", bytes_max=100_000, retry_ms_min=1.0, drain_ms=1.0, batch_parcels=4)
    await desk.sink.start()
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    for number in range(300):
        await desk.put(f"r{number}", answers=number + 1)
    assert loop.time() - begun_s < 5.0
    assert 50_000 < desk.sink.buffered_bytes() <= 100_000
    await eventually(lambda: desk.sink.unready() != "")
    dropped = desk.count("dropped", reason="buffer_full")
    assert 300 < dropped < 600
    settled = (await desk.sink.settle()).get(0)
    assert settled is None or settled.answers < 300, "what waits is not settled"
    await desk.sink.close()
    assert desk.count("events", kind="event") == 0


async def test_shards_that_go_take_what_is_not_settled_with_them(collector: tuple[Collector, str]) -> None:
    there, url = collector
    there.status = 503
    desk = http_desk(url, drain_ms=10.0)
    await desk.sink.start()
    await desk.put("r1", answers=5)
    await desk.sink.release([0])
    there.status = 200
    await desk.sink._drain()
    assert await desk.sink.settle() == {}
    await desk.sink.close()


@pytest.mark.parametrize("url", ["", "collector:80", "ftp://x/", "http://"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no address of a sink"):
        http_desk(url)


async def test_traces_come_as_otlp(collector: tuple[Collector, str], eventually: Eventually) -> None:
    there, url = collector
    desk = Desk(lambda _: OtelCarrier(f"{url}/v1/traces", "shop", Limits()))
    await desk.sink.start()
    traceparent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    await desk.sink.write({0: TapBatch([exchange(request=body(traceparent=traceparent))], TapPosition(1, 0))})
    await eventually(lambda: there.bodies)
    await desk.sink.close()
    (sent,) = ExportTraceServiceRequest.FromString(there.bodies[0]).resource_spans
    spans = list(sent.scope_spans[0].spans)
    assert [span.name for span in spans] == ["headrace fashion", "main"]
    assert {span.trace_id.hex() for span in spans} == {"ab" * 16}
    assert (spans[0].parent_span_id.hex(), spans[1].parent_span_id) == ("cd" * 8, spans[0].span_id)
    assert spans[0].start_time_unix_nano == RECEIVED_MS * 1_000_000
    said = {each.key: each.value for each in spans[1].attributes}
    assert (said["headrace.variant"].string_value, said["headrace.batch_size"].int_value) == ("fashion/cnn", 4)
    assert {each.key: each.value.string_value for each in sent.resource.attributes}["service.namespace"] == "shop"
    assert desk.count("events", kind="span") == 2


def test_a_request_without_a_trace_has_one_of_its_own_and_the_same_each_time() -> None:
    one, again, other = (spans_of(exchange(each), Limits()) for each in ("r1", "r1", "r2"))
    assert one == again
    assert one[0].trace_id != other[0].trace_id
    assert one[0].parent_id is None
    for bad in ("", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "nonsense", "00-" + "a" * 32):
        assert spans_of(exchange(request=body(traceparent=bad)), Limits())[0].parent_id is None
    expired = spans_of(exchange("late", reply=answer("late", "expired")), Limits())
    assert [(span.name, span.error) for span in expired] == [("headrace fashion", "expired: deadline_exceeded")]


def test_stages_have_the_times_that_their_records_say() -> None:
    import msgspec

    first, second, last = (msgspec.structs.replace(STEP, stage=name, queued_ms=10.0, computed_ms=20.0) for name in ("a", "b", "c"))
    one = exchange(reply=answer("r1", path=[first, second, last]))
    record = StageRecord(1, "fashion", 1, "b", 1, "t/v", 0.9, "cpu", "CPU", 1.0, 2.0, 1, RECEIVED_MS + 90)
    one.asked.stages = [TappedStage(record, b"", RECEIVED_MS + 91)]
    times = [((span.start_ns // 10**6) - RECEIVED_MS, (span.end_ns // 10**6) - RECEIVED_MS) for span in spans_of(one, Limits())]
    ended = ANSWERED_MS - 3 - RECEIVED_MS
    assert times == [(0, ended), (10, 30), (70, 90), (ended - 20, ended)]

"""Traces over OTLP/HTTP: the spans of each tapped request, made after the fact from what its answer says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from broker.policy.tap_join import Exchange
from broker.policy.tap_spans import Span, spans_of
from broker.tap_sinks.buffered import Parcel
from broker.tap_sinks.http import checked_url
from broker.tap_sinks.tap_sink import SinkUnavailable
from schemas.limits import Limits

TIMEOUT_S = 5.0
SPAN_BYTES = 700
"""About what a span takes."""
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtelCarrier:
    """The Carrier protocol. The exporter blocks, so it has a thread; what it does not take it does not explain, and is tried again."""

    kind = "span"

    def __init__(self, url: str, prefix: str, limits: Limits) -> None:
        """`url` of the collector's traces, as http://collector:4318/v1/traces. Raises ConfigurationError."""
        self._url = checked_url(url)
        self._limits = limits
        self._exporter = OTLPSpanExporter(endpoint=self._url, timeout=TIMEOUT_S)
        self._resource = Resource({"service.name": "headrace", "service.namespace": prefix})
        self._scope = InstrumentationScope("headrace.taps")

    async def start(self) -> None:
        """Nothing is sent yet."""

    def parcels(self, exchange: Exchange) -> Iterable[Parcel]:
        for span in spans_of(exchange, self._limits):
            yield Parcel(self._readable(span), SPAN_BYTES)

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
            None if span.parent_id is None else SpanContext(span.trace_id, span.parent_id, is_remote=True, trace_flags=_SAMPLED),
            resource=self._resource,
            attributes=span.attributes,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.OK),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )

    async def deliver(self, parcels: Sequence[Parcel]) -> None:
        result = await asyncio.to_thread(self._exporter.export, [parcel.content for parcel in parcels])
        if result is not SpanExportResult.SUCCESS:
            raise SinkUnavailable(f"{self._url} does not take traces; its log, or that of this process, says why")

    async def close(self) -> None:
        await asyncio.to_thread(self._exporter.shutdown)

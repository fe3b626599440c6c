"""Makes the built-in sinks; their libraries are loaded only where they are used."""

# ruff: noqa: PLC0415 - an installation without the extra `taps` has Kafka and HTTP all the same

from __future__ import annotations

from pathlib import Path

from broker.tap_sinks.registry import SinkContext
from broker.tap_sinks.tap_sink import TapSink


def kafka_sink(context: SinkContext, *, structured: bool = False) -> TapSink:
    """CloudEvents on {p}.tap.requests and {p}.tap.responses."""
    from broker.tap_sinks.kafka import KafkaTapSink

    return KafkaTapSink(context.transactions, context.names, context.source, context.metrics, group=context.group, structured=structured)


def parquet_sink(context: SinkContext, *, folder: Path, rotate_ms: float | None = None, rotate_bytes: int | None = None) -> TapSink:
    """Parquet files in a folder."""
    from broker.tap_sinks.parquet import ParquetSettings, ParquetTapSink

    defaults = ParquetSettings()
    settings = ParquetSettings(rotate_ms=rotate_ms or defaults.rotate_ms, rotate_bytes=rotate_bytes or defaults.rotate_bytes)
    return ParquetTapSink(
        Path(folder),
        context.names.prefix,
        context.metrics,
        stem=context.stem,
        now_ms=context.now_ms,
        settings=settings,
        limits=context.source.limits,
    )


def http_sink(context: SinkContext, *, url: str) -> TapSink:
    """CloudEvents posted in batches."""
    from broker.tap_sinks.buffered import BufferedTapSink
    from broker.tap_sinks.http import HttpCarrier

    return BufferedTapSink(HttpCarrier(url, context.source, context.metrics), context.metrics, now_ms=context.now_ms)


def otel_sink(context: SinkContext, *, url: str) -> TapSink:
    """Traces for an OpenTelemetry collector."""
    from broker.tap_sinks.buffered import BufferedTapSink
    from broker.tap_sinks.otel import OtelCarrier

    carrier = OtelCarrier(url, context.names.prefix, context.source.limits)
    return BufferedTapSink(carrier, context.metrics, now_ms=context.now_ms)

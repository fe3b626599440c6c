"""Builds a tap with its sink from settings, and closes what it opened."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
from prometheus_client import CollectorRegistry

from broker.kafka import KafkaLog
from broker.policy.tap_events import EventSource
from broker.role import Role
from broker.tap_metrics import TapMetrics
from broker.tap_sinks.registry import SinkContext, create_sink
from broker.taps import Taps, TapSettings
from deploy.configuration import Connection
from deploy.connections import create_topics
from deploy.run_role import OpenRole


class TapOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of a tap."""

    sink: str = "kafka"
    group: str | None = None
    """Consumer group; None: one of the sink's own."""
    options: Mapping[str, Any] = {}
    """The sink's own."""


def taps_role(connection: Connection, name: str, options: TapOptions) -> OpenRole:
    """Opens a tap. Raises ConfigurationError for a sink that is not there, or its options."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        log = KafkaLog(connection.need_kafka(), connection.kafka_options, replication=connection.replication)
        try:
            await create_topics(log, connection)
            yield tap_on(log, connection, name, options, registry)
        finally:
            await log.close()

    return opened


def tap_on(
    log: KafkaLog, connection: Connection, name: str, options: TapOptions, registry: CollectorRegistry, settings: TapSettings | None = None
) -> Taps:
    """A tap on an open log; `settings` are those of the connection's limits where none are given."""
    names = connection.names
    metrics = TapMetrics(registry)
    now_ms: Callable[[], float] = lambda: time.monotonic() * 1000  # noqa: E731 - handed to both
    group = options.group or default_group(connection, options)
    context = SinkContext(
        names=names,
        source=EventSource(connection.prefix, connection.limits),
        metrics=metrics,
        transactions=lambda identity: log.transactions(f"{names.prefix}-taps", identity),
        group=group,
        stem=f"{name}-{int(time.time() * 1000)}",
        now_ms=now_ms,
    )
    sink = create_sink(options.sink, context, options.options)
    settings = settings or TapSettings(limits=connection.limits)
    return Taps(log, names, sink, group=group, metrics=metrics, instance_id=name, settings=settings, now_ms=now_ms)


def default_group(connection: Connection, options: TapOptions) -> str:
    """A sink has a group of its own, and so has each folder that Parquet files are written to."""
    folder = options.options.get("folder")
    if options.sink == "parquet" and folder is not None:
        return connection.names.taps_group(f"parquet-{crc32(str(Path(folder).resolve()).encode()):08x}")
    return connection.names.taps_group(options.sink)

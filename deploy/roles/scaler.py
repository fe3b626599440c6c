"""Builds a scaler from settings, and closes what it opened."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from broker.canary import CanaryControl
from broker.kafka_client import Connection as KafkaConnection
from broker.role import Role
from deploy.configuration import Connection
from deploy.connections import open_ready_log
from deploy.roles.together import Together
from deploy.run_role import OpenRole
from scaler.accuracy import AccuracyControl
from scaler.app import FaustFeed
from scaler.control_loop import ControlLoop
from scaler.control_loop_settings import LoopSettings
from scaler.snapshot_recording import SnapshotRecording


def scaler_role(connection: Connection, name: str, settings: LoopSettings, record: Path | None = None) -> OpenRole:
    """Opens the control loop over Faust, which writes its snapshots to the file `record`, and what watches canaries and accuracies beside it."""

    @asynccontextmanager
    async def opened(registry: CollectorRegistry) -> AsyncGenerator[Role]:
        recording = SnapshotRecording(record, scaler=name, at_ms=time.time() * 1e3) if record is not None else None
        async with open_ready_log(connection) as log:
            names = connection.names
            client = KafkaConnection(connection.need_kafka(), connection.kafka_options).arguments(name)
            feed = FaustFeed(client["bootstrap_servers"], names, name=name, options=client)
            loop = ControlLoop(log, names, feed, name=name, registry=registry, settings=settings)
            if recording is not None:
                loop.record_to(recording)
            canaries = CanaryControl(log, names, name=name, leading=lambda: loop.leading, registry=registry)
            accuracy = AccuracyControl(log, names, name=name, leading=lambda: loop.leading, registry=registry)
            try:
                yield Together((loop, canaries, accuracy))
            finally:
                if recording is not None:
                    recording.close()

    return opened

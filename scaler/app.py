# Faust's own types leave much unknown; this file wraps it, so that every other file is checked strictly.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false, reportPrivateUsage=false
"""The scalers' Faust app: whoever gets the one partition of {p}.telemetry leads; the only file that imports Faust.

No tables, no web server, no topics of Faust's own: it follows one topic, and tells a listener what it reads. Where the app breaks, a new one is made.
What a fetch brings goes through Faust as one event: an event costs a tenth of a millisecond, and a thousand workers write as many records a second.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import faust
import structlog
from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types.auth import CredentialsT

from scaler.control_loop_feed import Listener, Told
from schemas.errors import ConfigurationError
from schemas.names import Names

logger = structlog.get_logger()
SESSION_S = 6.0
"""After so long without a heartbeat a leader counts as dead."""
HEARTBEAT_S = 1.0
COMMIT_S = 5.0
REQUEST_S = 8.0
POLL_S_MAX = 60.0
START_S_MAX = 60.0
STOP_S_MAX = 5.0
RETRY_S = 1.0
LOOK_S = 0.5
GATHER_S = 0.3
"""Between two fetches: a hundred workers write at a hundred different moments, and a fetch for each would be most of what a scaler costs."""
TOLD_MAX = 250
"""Records that are told without letting others have a turn."""


class _FetchConsumer(Consumer):
    """One message for what one fetch brought of a partition: the last one, with all of them in `records`. Acknowledged is thus the whole fetch."""

    _fetched_s = 0.0

    async def getmany(self, timeout: float) -> AsyncIterator[Any]:
        """See faust.transport.consumer.Consumer, whose checks these are."""
        await self.sleep(max(self._fetched_s + GATHER_S - time.monotonic(), 0.0))
        self._fetched_s = time.monotonic()
        fetched, active = await self._wait_next_records(timeout)
        if not active:
            self._stand_by()
        if fetched is None or self.should_stop or not self.flow_active:
            return
        for partition, records in fetched.items():
            if records and (active is None or partition in active or partition in self._buffered_partitions):
                self.app.monitor.track_tp_end_offset(partition, self.highwater(partition))
                message: Any = self._to_message(partition, records[-1])
                message.records = records
                yield partition, message

    def _stand_by(self) -> None:
        """Faust asks for nothing while it has no partition, and aiokafka takes a member that asks for nothing for stuck: it would leave the group in
        silence after POLL_S_MAX, and never lead. Being here proves that it is not stuck."""
        consumer: Any = self._thread._consumer  # noqa: SLF001 - nothing public says that a consumer lives
        if consumer is not None:
            with consumer._subscription.fetch_context():  # noqa: SLF001
                pass


class _FetchTransport(Transport):
    """Of the app: Kafka, read fetch by fetch."""

    Consumer = _FetchConsumer


class FaustFeed:
    """The feed (scaler/control_loop_feed.py) on Kafka.

    Members are ordered by when they started, as Kafka makes a member's id of its client's: the range of partitions is given out in that order, so
    that a leader keeps the lead for as long as it lives, whoever joins.
    """

    def __init__(self, bootstrap: str, names: Names, *, name: str, options: Mapping[str, object] = {}) -> None:
        """`options`: aiokafka's client options, with an SSL context instead of TLS files. Raises ConfigurationError for what Faust cannot do."""
        self._bootstrap, self._names = bootstrap, names
        self._client_id = f"{int(time.time() * 1000):015d}-{name}"
        self._credentials = _credentials(options)
        self._stopping = asyncio.Event()

    async def run(self, listener: Listener) -> None:
        """See Feed."""
        with tempfile.TemporaryDirectory(prefix="headrace-scaler-") as folder:
            while not self._stopping.is_set():
                try:
                    await self._serve(listener, Path(folder))
                except (
                    Exception
                ) as error:  # a library's app may end in anything: the next one begins anew, and the loop's watchdog sees when none gets on
                    logger.warning("the Faust app ended", error=repr(error))
                if not self._stopping.is_set():
                    await asyncio.sleep(RETRY_S)

    def stop(self) -> None:
        """See Feed."""
        self._stopping.set()

    async def _serve(self, listener: Listener, folder: Path) -> None:
        app = self._app(listener, folder)
        stopping = asyncio.create_task(self._stopping.wait())
        running = asyncio.create_task(_run(app))
        try:
            await asyncio.wait({stopping, running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listener.revoked()
            stopping.cancel()
            ended = asyncio.create_task(_end(app, running))
            await asyncio.wait({ended}, timeout=STOP_S_MAX)
            if not ended.done():
                logger.warning("the Faust app does not end", after_s=STOP_S_MAX)
                ended.cancel()
        if running.done() and not running.cancelled():
            running.result()

    def _app(self, listener: Listener, folder: Path) -> faust.App:
        app = faust.App(
            self._names.planners_group,
            broker=[f"kafka://{address.strip()}" for address in self._bootstrap.split(",")],
            broker_credentials=self._credentials,
            broker_client_id=self._client_id,
            broker_session_timeout=SESSION_S,
            broker_heartbeat_interval=HEARTBEAT_S,
            broker_commit_interval=COMMIT_S,
            broker_request_timeout=REQUEST_S,
            broker_max_poll_interval=POLL_S_MAX,
            consumer_auto_offset_reset="latest",
            store="memory://",
            processing_guarantee="at_least_once",
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            autodiscover=False,
            web_enabled=False,
            datadir=str(folder),
            loop=asyncio.get_running_loop(),
        )
        app.transport = _FetchTransport(app.conf.broker_consumer, app)
        topic = app.topic(self._names.telemetry, key_serializer="raw", value_serializer="raw", value_type=bytes)

        async def follow(stream: Any) -> None:
            async for event in stream.events():
                records = event.message.records
                for at in range(0, len(records), TOLD_MAX):
                    listener.told([Told(record.offset, record.timestamp, record.value) for record in records[at : at + TOLD_MAX]])
                    await asyncio.sleep(0)

        async def assigned(_app: object, assigned: set[Any], **_: object) -> None:
            if any(partition.topic == self._names.telemetry for partition in assigned):
                listener.assigned()

        async def revoked(_app: object, revoked: set[Any], **_: object) -> None:
            del revoked
            listener.revoked()

        app.agent(topic, name="telemetry")(follow)
        for signal, hook in ((app.on_partitions_assigned, assigned), (app.on_partitions_revoked, revoked)):
            cast("Any", signal).connect(hook, weak=False)
        return app


async def _run(app: faust.App) -> None:
    """Until it crashes; raises what it crashed of."""
    async with asyncio.timeout(START_S_MAX):
        await app.start()
    while not app.should_stop:  # noqa: ASYNC110 - it has no event that a crash sets, too
        await asyncio.sleep(LOOK_S)
    if app.crash_reason is not None:
        raise app.crash_reason


async def _end(app: faust.App, running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.wait({running})
    await app.stop()


def _credentials(options: Mapping[str, object]) -> CredentialsT | None:
    """Faust's way of saying how to connect."""
    protocol = str(options.get("security_protocol", "PLAINTEXT"))
    context: Any = options.get("ssl_context")
    if protocol == "PLAINTEXT":
        return None
    if protocol == "SSL":
        return faust.SSLCredentials(context=context)
    mechanism = str(options.get("sasl_mechanism", "PLAIN"))
    if mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        return faust.SASLCredentials(
            username=str(options.get("sasl_plain_username", "")),
            password=str(options.get("sasl_plain_password", "")),
            ssl_context=context if protocol == "SASL_SSL" else None,
            mechanism=mechanism,
        )
    raise ConfigurationError(f"kafka_options: the scaler knows no sasl_mechanism {mechanism!r}; it knows PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512")

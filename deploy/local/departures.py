"""Tells the dispatchers on {p}.telemetry that a process died, as soon as its supervisor saw it: leases move without a time-out."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog

from broker.kafka import KafkaLog
from broker.kafka_writer import KafkaWriter
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.telemetry import Departed, encode_telemetry

ANNOUNCED_ROLES = ("worker", "dispatcher")
WAITING_MAX = 1_000
WORTH_MS_MAX = 15_000
"""After this time leases have ended by themselves, and the news is dropped."""
RETRY_S = 0.2


class Departures:
    """A queue of deaths and the task that writes them."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self._log = KafkaLog(kafka)
        self._names = Names(prefix)
        self._waiting: asyncio.Queue[Departed] = asyncio.Queue(WAITING_MAX)

    def announce(self, role: str, name: str) -> None:
        """Queue the news of a death seen just now; of roles nobody leases to, nothing is said."""
        if role in ANNOUNCED_ROLES:
            with suppress(asyncio.QueueFull):  # deaths by the thousand while Kafka is away: their leases have ended
                self._waiting.put_nowait(Departed(role=role, name=name, incarnation=0, at_ms=_now_ms()))

    async def run(self) -> None:
        """Write what is queued, until cancelled; Kafka may be away meanwhile."""
        writer = self._log.writer("supervisor")
        try:
            await self._connect(writer)
            while True:
                departed = await self._waiting.get()
                message = (departed.name.encode(), encode_telemetry(departed), ())
                while _now_ms() - departed.at_ms < WORTH_MS_MAX:
                    try:
                        await writer.write(self._names.telemetry, 0, [message])
                        break
                    except LogUnavailable as error:
                        structlog.get_logger().warning("death not announced yet", process=departed.name, reason=str(error))
                        await asyncio.sleep(RETRY_S)
        finally:
            await writer.close()
            await self._log.close()

    async def _connect(self, writer: KafkaWriter) -> None:
        telemetry = [topic for topic in self._names.topics() if topic.name == self._names.telemetry]
        while True:
            try:
                await self._log.create_topics(telemetry)
                await writer.start()
            except LogUnavailable:  # it is starting beside this, or away for the moment
                await asyncio.sleep(RETRY_S)
            else:
                return


def _now_ms() -> int:
    return int(time.time() * 1000)

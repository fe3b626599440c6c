"""Between the supervisor and {p}.scale: reads what is wanted, and says again and again what can be had."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import structlog

from broker.kafka import KafkaLog
from broker.log import Reader, TopicPartition, Writer
from schemas.errors import LogUnavailable
from schemas.names import Names
from schemas.scale import ScaleOffer, ScaleOrder, decode_scale, encode_scale, scale_key

READ_MS = 100
RETRY_S = 0.5
SAY_S = 3.0
log = structlog.get_logger()


class ScaleOrders:
    """Orders that were there before this supervisor are of another stack, and not followed."""

    def __init__(self, kafka: str, prefix: str, *, on_order: Callable[[ScaleOrder], None], offers: Callable[[], Sequence[ScaleOffer]]) -> None:
        self._log, self._names = KafkaLog(kafka), Names(prefix)
        self._on_order, self._offers = on_order, offers
        self._said: list[ScaleOffer] = []
        self._said_s = 0.0
        self._epochs: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled; Kafka may be away meanwhile."""
        topic = TopicPartition(self._names.scale, 0)
        writer, reader = self._log.writer("supervisor-scale"), self._log.reader("supervisor-scale", fetch_wait_ms=READ_MS)
        try:
            await self._connect(writer, reader, topic)
            while True:
                try:
                    await self._say(writer)
                    for records in (await reader.read(timeout_ms=READ_MS, records_max=100)).values():
                        for record in records:
                            self._take(record.value)
                except LogUnavailable as error:
                    log.warning("orders for workers cannot be read", reason=str(error))
                    await asyncio.sleep(RETRY_S)
        finally:
            await reader.close()
            await writer.close()
            await self._log.close()

    async def _connect(self, writer: Writer, reader: Reader, topic: TopicPartition) -> None:
        wanted = [spec for spec in self._names.topics() if spec.name == self._names.scale]
        started = False
        while True:
            try:
                await self._log.create_topics(wanted)
                if not started:
                    await writer.start()
                    await reader.start()
                    started = True
                await reader.assign({topic: "latest"})
            except LogUnavailable:  # it is starting beside this, or away for the moment
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _take(self, value: bytes | None) -> None:
        try:
            order = decode_scale(value or b"")
        except msgspec.DecodeError as error:
            log.warning("record of the scale topic skipped", reason=str(error))
            return
        if not isinstance(order, ScaleOrder):
            return
        if order.epoch < self._epochs.get(order.accelerator, 0):
            log.warning("an order of an earlier leader is ignored", by=order.by, epoch=order.epoch, accelerator=order.accelerator)
            return
        self._epochs[order.accelerator] = order.epoch
        self._on_order(order)

    async def _say(self, writer: Writer) -> None:
        """When something has changed, and every SAY_S seconds."""
        now_s, offers = time.monotonic(), list(self._offers())
        if offers == self._said and now_s - self._said_s < SAY_S:
            return
        stamped = [msgspec.structs.replace(offer, at_ms=int(time.time() * 1000)) for offer in offers]
        await writer.write(self._names.scale, 0, [(scale_key(offer), encode_scale(offer), []) for offer in stamped])
        self._said, self._said_s = offers, now_s

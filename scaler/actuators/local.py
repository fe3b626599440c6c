"""The actuator of `headrace up`: orders go to {p}.scale, where the supervisor of the stack reads them and says what it offers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from broker.log import Log, TopicPartition
from schemas.names import Names
from schemas.scale import ScaleOffer, ScaleOrder, decode_scale, encode_scale, scale_key

READ_MS = 50
FETCH_WAIT_MS = 1_000
"""How long Kafka holds a question to which it has no answer: what is written meanwhile is told at once."""
FRESH_MS = 15_000.0
"""A supervisor repeats its offer each few seconds; one that does not is gone."""
AGAIN_MS = 2_000.0
"""An order that the offers do not show by then is written again."""


class LocalActuator:
    """Where no supervisor offers anything, it does nothing."""

    name = "local"

    def __init__(self, log: Log, names: Names, scaler: str, now_ms: Callable[[], float] = lambda: time.time() * 1000.0) -> None:
        self._names, self._scaler, self._now_ms = names, scaler, now_ms
        self._reader = log.reader(f"{scaler}-scale", fetch_wait_ms=FETCH_WAIT_MS)
        self._writer = log.writer(f"{scaler}-scale")
        self._offers: dict[str, ScaleOffer] = {}
        self._written: dict[str, tuple[ScaleOrder, float]] = {}

    async def start(self) -> None:
        """See Actuator. Raises LogUnavailable."""
        await self._writer.start()
        await self._reader.start()
        await self._reader.assign({TopicPartition(self._names.scale, 0): "earliest"})

    async def offers(self) -> Sequence[ScaleOffer]:
        """See Actuator. Raises LogUnavailable."""
        while read := await self._reader.read(timeout_ms=READ_MS, records_max=500):
            for record in [record for records in read.values() for record in records]:
                try:
                    said = decode_scale(record.value or b"")
                except msgspec.DecodeError as error:
                    structlog.get_logger().warning("record of the scale topic skipped", offset=record.offset, error=str(error))
                    continue
                if isinstance(said, ScaleOffer):
                    self._offers[said.accelerator] = said
        now_ms = self._now_ms()
        return [offer for offer in self._offers.values() if abs(now_ms - offer.at_ms) <= FRESH_MS and offer.least <= offer.most]

    async def apply(self, orders: Mapping[str, ScaleOrder]) -> None:
        """See Actuator. Raises LogUnavailable."""
        now_ms = self._now_ms()
        due = [order for name, order in orders.items() if self._due(name, order, now_ms)]
        if due:
            stamped = [msgspec.structs.replace(order, by=self._scaler) for order in due]
            await self._writer.write(self._names.scale, 0, [(scale_key(order), encode_scale(order), []) for order in stamped])
            self._written |= {order.accelerator: (order, now_ms) for order in due}

    async def close(self) -> None:
        """See Actuator."""
        await self._reader.close()
        await self._writer.close()

    def _due(self, name: str, order: ScaleOrder, now_ms: float) -> bool:
        offer, (last, at_ms) = self._offers.get(name), self._written.get(name, (None, 0.0))
        if offer is None or offer.wanted == order.wanted:
            return False
        return last is None or last.wanted != order.wanted or now_ms - at_ms >= AGAIN_MS

"""What a dispatcher writes until the log has it, and what it writes once and forgets."""

from __future__ import annotations

import asyncio

import structlog

from broker.log import Message, Record, Writer
from broker.messages import dead_letter_message
from schemas.errors import LogUnavailable, TooLarge
from schemas.names import Names

logger = structlog.get_logger()
RETRY_S = 0.2


class Outbox:
    """Says once an outage that the log does not acknowledge: each of what may be thousands of writes would say it."""

    def __init__(self, writer: Writer, names: Names) -> None:
        self._writer, self._names = writer, names
        self._away = False

    async def write(self, topic: str, partition: int, messages: list[Message]) -> None:
        """Until the log has them: written twice is harmless, the first record of a key counts."""
        while True:
            try:
                await self._writer.write(topic, partition, messages)
            except LogUnavailable as error:
                self.unacknowledged(error)
                await asyncio.sleep(RETRY_S)
            else:
                self.acknowledged()
                return

    async def bury(self, record: Record, reason: str) -> None:
        """Keep a record in the dead letters, with the reason."""
        try:
            await self.write(self._names.dead_letters, 0, [dead_letter_message(record, reason)])
        except TooLarge:
            # Topics made by hand may take less here than there; what the reason names can still be found where it came from.
            logger.warning("a dead letter is kept without its bytes", partition=record.partition, offset=record.offset)
            await self.write(self._names.dead_letters, 0, [dead_letter_message(record, f"{reason} (too large to be kept)", whole=False)])

    async def tap(self, partition: int, message: Message) -> None:
        """Once: what the log does not take is lost, and nothing waits for it."""
        try:
            await self._writer.write(self._names.tap_responses, partition, [message])
        except (LogUnavailable, TooLarge) as error:
            logger.info("a shadow's answer was not tapped", error=str(error))

    def unacknowledged(self, error: LogUnavailable) -> None:
        """A write was not."""
        if not self._away:
            self._away = True
            logger.warning("the log does not acknowledge, what was written is written again", error=str(error))

    def acknowledged(self) -> None:
        """A write was."""
        if self._away:
            self._away = False
            logger.info("the log acknowledges again")

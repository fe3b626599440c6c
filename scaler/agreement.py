"""Reads answers and second opinions for the judge of agreement, as long as any endpoint asks for that: where none does, this costs nothing."""

from __future__ import annotations

from broker.log import Log, Reader, Start, TopicPartition
from scaler.policy.agreement import AgreementBook
from schemas.catalog import Catalog
from schemas.learned import AccuracyState
from schemas.names import Names
from schemas.tap import SHADOW_HEADER

FETCH_WAIT_MS = 100
READ_MS = 1
"""The answers that feedback is joined with are waited for; these come by the way."""
RECORDS_MAX = 2_000


class AgreementFeed:
    """Part of AccuracyControl, which opens and closes `reader`."""

    def __init__(self, log: Log, names: Names, name: str) -> None:
        self._log, self._names = log, names
        self.reader: Reader = log.reader(f"{name}-agreement", fetch_wait_ms=FETCH_WAIT_MS)
        self.book: AgreementBook | None = None
        """While this process leads."""
        self._follows = False

    def take_over(self, state: AccuracyState | None, catalog: Catalog) -> None:
        """Go on from what the last leader knew."""
        self.book = AgreementBook(state)
        self.book.observe_catalog(catalog)
        self._follows = False

    async def let_go(self) -> None:
        """Somebody else leads."""
        self.book, self._follows = None, False
        await self.reader.assign({})

    async def turn(self, since_ms: int) -> None:
        """Count what was written. `since_ms`: what is older than that is not looked at, whatever the last leader had counted."""
        book = self.book
        if book is None:
            return
        if book.wanted != self._follows:
            await self._follow(book, since_ms)
        if not self._follows:
            return
        for partition, records in (await self.reader.read(timeout_ms=READ_MS, records_max=RECORDS_MAX)).items():
            name = f"{partition.topic}:{partition.partition}"
            for record in records:
                if record.key is None or record.value is None:
                    continue
                if record.topic == self._names.responses:
                    book.answer((name, record.offset), record.key, record.value)
                elif any(header == SHADOW_HEADER for header, _ in record.headers or ()):
                    book.opinion((name, record.offset), record.key, record.value)

    async def _follow(self, book: AgreementBook, since_ms: int) -> None:
        positions: dict[TopicPartition, Start] = {}
        for topic in (self._names.responses, self._names.tap_responses) if book.wanted else ():
            for number in range(await self._log.partitions(topic)):
                partition = TopicPartition(topic, number)
                counted = book.offsets.get(f"{topic}:{number}")
                positions[partition] = "latest" if counted is None else max(counted, await self.reader.offset_at(partition, since_ms))
        await self.reader.assign(positions)
        if not book.wanted:
            book.offsets.clear()
        self._follows = book.wanted

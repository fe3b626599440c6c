"""One shard in this dispatcher's hands: what of it is live, and how far it is finished."""

from __future__ import annotations

from collections.abc import Sequence

from broker.policy.entry import Entry
from broker.policy.watermark import Watermark
from schemas.stage import StageRecord

REPLAY_MARGIN_MS = 2_000
"""Terminal records are read again from this much before the oldest unfinished request: clocks of two logs may differ."""


class Shard:
    """Live requests by key in the order of their arrival, and the watermark over their offsets."""

    def __init__(self, number: int, watermark: Watermark) -> None:
        self.number = number
        self.watermark = watermark
        self.live: dict[bytes, Entry] = {}
        self.own_answers: set[bytes] = set()
        """Keys whose terminal record this dispatcher wrote and has not read back."""
        self.recovering = True
        self.held_back: list[Entry] = []
        self.replayed: dict[bytes, list[tuple[StageRecord, bytes]]] = {}
        """Stage records that were read again while the shard recovers, by request id."""
        self.next_offset = watermark.low
        """The next offset that has not been begun: everything below is finished or live."""
        self._burying: set[int] = set()
        """Offsets of records without an id that the dead letters do not have yet."""
        self._latest_ms = watermark.since_ms + REPLAY_MARGIN_MS if watermark.since_ms else 0

    def begin(self, entry: Entry) -> bool:
        """False where the offset was begun or finished before."""
        if entry.received_ms > self._latest_ms:
            self._latest_ms = entry.received_ms
        offset = entry.offset
        if offset == self.next_offset:
            self.next_offset = offset + 1
        elif offset < self.next_offset:
            # Handed out again after a rebalance: it is live or finished.
            return False
        else:
            self.begin_to(offset)
        return not self.watermark.is_finished(offset)

    def hold_back(self, entries: Sequence[Entry]) -> None:
        """These wait until the shard has recovered."""
        for entry in entries:
            entry.held_back = True
        self.held_back += entries

    def begin_to(self, offset: int) -> None:
        """Everything up to this offset has been handed out."""
        if offset > self.next_offset:
            self._close_gap(offset)
        if offset >= self.next_offset:
            self.next_offset = offset + 1

    def bury(self, offsets: Sequence[int]) -> None:
        """These records (of the batch that is about to begin) go to the dead letters, and are finished when those have them."""
        self._burying.update(offset for offset in offsets if offset >= self.next_offset and not self.watermark.is_finished(offset))

    def buried(self, offset: int) -> None:
        """The dead letters have this record."""
        self._burying.discard(offset)
        self.watermark.finish(offset)

    def _close_gap(self, offset: int) -> None:
        """Offsets that the log will never hand out (control records, retention) are finished by definition; what is being buried is not."""
        start = self.next_offset
        for waiting in sorted(at for at in self._burying if start <= at < offset) if self._burying else ():
            self.watermark.skip(start, waiting)
            start = waiting + 1
        self.watermark.skip(start, offset)

    def commit(self, bytes_max: int) -> tuple[int, str]:
        """(offset, metadata) that a successor can start from."""
        oldest = next(iter(self.live.values()), None) or (self.held_back[0] if self.held_back else None)
        since_ms = oldest.received_ms if oldest is not None else self._latest_ms
        return self.watermark.low, self.watermark.metadata(max(since_ms - REPLAY_MARGIN_MS, 0), bytes_max)

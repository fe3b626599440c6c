"""Checks what dispatchers commit: whoever starts from it later skips nothing that has no terminal record."""

from __future__ import annotations

from broker.policy.watermark import restore
from scaler.simulator.checking.book import Book


class WatermarkChecks:
    """Looks at every commit, as any of them may be the last one before a crash."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._offsets: dict[int, int] = {}

    def committed(self, at_ms: float, dispatcher: str, shard: int, offset: int, metadata: str) -> None:
        """A dispatcher committed."""
        book = self._book
        unfinished = book.open.get(shard)
        if unfinished:
            first = next(iter(unfinished))
            if first < offset:
                book.violated("watermark", at_ms, f"{dispatcher} committed {offset} of shard {shard}, and {first} has no terminal record")
                return
            if metadata and not metadata.endswith(":"):
                watermark, _ = restore(offset, metadata)
                wrong = next((at for at in unfinished if watermark.is_finished(at)), None)
                if wrong is not None:
                    book.violated("watermark", at_ms, f"{dispatcher} calls {wrong} of shard {shard} finished, and it has no terminal record")
        end = book.ends.get(shard, 0)
        if offset > end:
            book.violated("watermark", at_ms, f"{dispatcher} committed {offset} of shard {shard}, which ends at {end}")

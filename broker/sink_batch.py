"""What the sink makes of records: answers and pending marks to store, in the order of the log, and what it skips. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from broker.log import Record
from broker.store import Answer, Mark
from schemas.errors import Unattributable
from schemas.limits import Limits
from schemas.request import request_id_of
from schemas.terminal import decode_terminal_head

NOT_TERMINAL, NO_KEY, OTHER_KEY = "not_terminal", "no_key", "other_key"


class SinkBatch:
    """Collects records until they are stored; `answers`, `outcomes` and `fresh` run in parallel.

    `ttl_ms`: how long an answer is kept from its first storing on. What is stored again (`refilling`) and pending marks count
    from the log's timestamp, so that neither ever outlives the first.
    """

    def __init__(self, ttl_ms: int, limits: Limits, now_ms: float) -> None:
        self._ttl_ms = ttl_ms
        self._limits = limits
        self._now_ms = now_ms
        self.answers: list[Answer] = []
        self.outcomes: list[str] = []
        self.fresh: list[bool] = []
        self.marks: list[Mark] = []
        self.skipped: list[tuple[str, Record]] = []
        self.newest_ms = 0

    def add_responses(self, records: Sequence[Record], seen_before: int) -> None:
        """Records of {p}.responses, in order; what is not the terminal record of its own key is skipped with the reason.

        Those below the offset `seen_before` are stored again.
        """
        for record in records:
            self._add_response(record, refilling=record.offset < seen_before)

    def add_requests(self, records: Sequence[Record]) -> None:
        """Records of {p}.requests; what has no usable id, or is over the limit, is answered (or kept) by the dispatcher alone."""
        for record in records:
            self._add_request(record)

    def _add_response(self, record: Record, *, refilling: bool) -> None:
        key, value = record.key, record.value
        if key is None:
            self.skipped.append((NO_KEY, record))
            return
        try:
            head = decode_terminal_head(value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.skipped.append((NOT_TERMINAL, record))
            return
        if head.id.encode(errors="replace") != key:
            self.skipped.append((OTHER_KEY, record))
            return
        ttl_ms = self._remaining_ms(record) if refilling else self._ttl_ms
        if ttl_ms > 0 and value is not None:
            self.answers.append(Answer(head.id, value, ttl_ms))
            self.outcomes.append(head.outcome)
            self.fresh.append(not refilling)
            self.newest_ms = max(self.newest_ms, record.timestamp)

    def _add_request(self, record: Record) -> None:
        value = record.value
        if value is not None and len(value) > self._limits.payload_bytes_max:
            return
        try:
            request_id = request_id_of(record.key, value, record.headers, self._limits)
        except Unattributable:
            return
        ttl_ms = self._remaining_ms(record)
        if ttl_ms > 0:
            self.marks.append(Mark(request_id, ttl_ms))

    def _remaining_ms(self, record: Record) -> int:
        # A timestamp from the future must not make anything live longer.
        return min(self._ttl_ms, int(self._ttl_ms - (self._now_ms - record.timestamp)))


def slices(answers: Sequence[Answer], *, records_max: int, bytes_max: int) -> Iterator[slice]:
    """Cuts of at most so many records and, but for single larger ones, so many bytes."""
    start, size = 0, 0
    for index, answer in enumerate(answers):
        if index > start and (index - start >= records_max or size + len(answer.value) > bytes_max):
            yield slice(start, index)
            start, size = index, 0
        size += len(answer.value)
    if start < len(answers):
        yield slice(start, len(answers))

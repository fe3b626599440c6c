"""The response store: the cache of the log that polling reads; the seam, and the store of one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from schemas.errors import StoreUnavailable
from schemas.terminal import Terminal, decode_terminal, decode_terminal_head

ENTRIES_MAX = 1_000_000
BYTES_MAX = 1 << 30


class Answer(NamedTuple):
    """A terminal record to keep for `ttl_ms` (above 0): `value` is the record's bytes, untouched."""

    request_id: str
    value: bytes
    ttl_ms: int


class Mark(NamedTuple):
    """A request that was published and has no answer yet, for `ttl_ms` (above 0) at most."""

    request_id: str
    ttl_ms: int


State = Terminal | Literal["unknown", "pending"]


class Store(Protocol):
    """Answers by request id, pending marks, and per partition of the log the offset up to which the store holds it.

    The first answer kept for an id stays until its time is over. Every method raises StoreUnavailable; all may be repeated.
    """

    async def ping(self) -> None: ...

    async def put_responses(self, answers: Sequence[Answer]) -> list[bool]:
        """Keep those that are the first of their id, and drop their pending marks. True for each that was kept."""
        ...

    async def mark_pending(self, marks: Sequence[Mark]) -> None:
        """Mark the requests that have no answer. A mark beside an answer is harmless: the answer is looked at first."""
        ...

    async def get(self, request_ids: Sequence[str]) -> list[bytes | None]:
        """The bytes of each terminal record, None where there is none (or not one of this id)."""
        ...

    async def status(self, request_id: str) -> State:
        """The terminal record, else whether the request is pending or unknown."""
        ...

    async def watermarks(self, names: Sequence[str]) -> list[int | None]:
        """For each name the offset up to which the store holds the log; None where the store lost it, or never had one."""
        ...

    async def set_watermark(self, name: str, offset: int) -> None: ...

    async def advance_watermarks(self, offsets: Mapping[str, int]) -> dict[str, int | None]:
        """Set those that exist, and return what they were before (None: gone, and not set).

        A caller that finds less than it had set knows that the store has gone back to an earlier state.
        """
        ...

    async def close(self) -> None: ...


def belongs_to(value: bytes, request_id: str) -> bool:
    """Whether the bytes are a terminal record of this id."""
    try:
        return decode_terminal_head(value).id == request_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def state_of(value: bytes | None, *, pending: bool) -> State:
    """What polling says for a stored value that was checked with `belongs_to`, else for the pending mark."""
    if value is None:
        return "pending" if pending else "unknown"
    try:
        return decode_terminal(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreUnavailable(f"a stored response cannot be read: {error}") from None


class MemoryStore:
    """The store of one process, for the embedded mode: the same meaning as Redis, bounded by entries and bytes.

    Over a bound the oldest answers go first, before their time: the bounds are sized so that a poller has long been there.
    """

    def __init__(
        self,
        *,
        entries_max: int = ENTRIES_MAX,
        bytes_max: int = BYTES_MAX,
        now_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._now_ms = now_ms
        # Insertion order is close to the order of expiry: both are swept from the front.
        self._answers: dict[str, tuple[bytes, float]] = {}
        self._pending: dict[str, float] = {}
        self._watermarks: dict[str, int] = {}
        self._bytes = 0

    async def ping(self) -> None:
        return None

    async def put_responses(self, answers: Sequence[Answer]) -> list[bool]:
        now_ms = self._now_ms()
        kept: list[bool] = []
        for request_id, value, ttl_ms in answers:
            self._pending.pop(request_id, None)
            first = self._answer(request_id, now_ms) is None
            if first:
                self._answers[request_id] = (value, now_ms + ttl_ms)
                self._bytes += len(value)
            kept.append(first)
        self._sweep(now_ms)
        return kept

    async def mark_pending(self, marks: Sequence[Mark]) -> None:
        now_ms = self._now_ms()
        for request_id, ttl_ms in marks:
            if self._answer(request_id, now_ms) is None:
                self._pending[request_id] = now_ms + ttl_ms
        self._sweep(now_ms)

    async def get(self, request_ids: Sequence[str]) -> list[bytes | None]:
        now_ms = self._now_ms()
        return [self._answer(request_id, now_ms) for request_id in request_ids]

    async def status(self, request_id: str) -> State:
        now_ms = self._now_ms()
        return state_of(self._answer(request_id, now_ms), pending=self._pending.get(request_id, 0.0) > now_ms)

    async def watermarks(self, names: Sequence[str]) -> list[int | None]:
        return [self._watermarks.get(name) for name in names]

    async def set_watermark(self, name: str, offset: int) -> None:
        self._watermarks[name] = offset

    async def advance_watermarks(self, offsets: Mapping[str, int]) -> dict[str, int | None]:
        before = {name: self._watermarks.get(name) for name in offsets}
        self._watermarks.update((name, offset) for name, offset in offsets.items() if before[name] is not None)
        return before

    async def close(self) -> None:
        return None

    def _answer(self, request_id: str, now_ms: float) -> bytes | None:
        found = self._answers.get(request_id)
        if found is None:
            return None
        if found[1] <= now_ms:
            self._drop(request_id)
            return None
        return found[0]

    def _drop(self, request_id: str) -> None:
        self._bytes -= len(self._answers.pop(request_id)[0])

    def _sweep(self, now_ms: float) -> None:
        while self._answers:
            oldest = next(iter(self._answers))
            over = len(self._answers) > self._entries_max or self._bytes > self._bytes_max
            if not over and self._answers[oldest][1] > now_ms:
                break
            self._drop(oldest)
        while self._pending:
            oldest = next(iter(self._pending))
            if len(self._pending) <= self._entries_max and self._pending[oldest] > now_ms:
                break
            del self._pending[oldest]

"""Checks of orders: attempts are counted and bounded, no attempt is under way twice, nothing is sent for what is finished."""

from __future__ import annotations

from broker.policy.entry import SHADOW_PRIORITY, Send
from scaler.simulator.checking.book import Book, Lease, Request
from scaler.simulator.checking.bounds import Bounds


class LeaseChecks:
    """Remembers the latest sending of each order of a live request."""

    def __init__(self, book: Book, bounds: Bounds) -> None:
        self._book, self._bounds = book, bounds

    def sent(self, at_ms: float, dispatcher: str, send: Send) -> None:
        """An order was written."""
        entry, book = send.entry, self._book
        root = entry.root or entry
        request = book.live.get(root.key)
        if not 1 <= send.attempt <= self._bounds.attempts_max:
            book.violated("attempts", at_ms, f"{entry.key!r} was sent as attempt {send.attempt}")
        if request is None:
            self._after_the_end(at_ms, dispatcher, send)
            return
        leases = request.leases
        if leases is None:
            leases = request.leases = {}
        before = leases.get(entry.key)
        lease = leases[entry.key] = Lease(dispatcher, book.lives.get(dispatcher, 0), send.worker, send.incarnation, send.attempt, at_ms)
        if before is None:
            return
        lease.begun = before.begun
        if before.dispatcher == dispatcher and before.life == lease.life:
            self._again(at_ms, before, lease, entry.key)

    def _again(self, at_ms: float, before: Lease, lease: Lease, key: bytes) -> None:
        """Sent before by the same life of the same dispatcher: another attempt, or the same one that came back unstarted."""
        book = self._book
        if lease.attempt > before.attempt:
            return
        lease.times = before.times + 1
        if before.returned_ms:
            if lease.times > self._bounds.same_attempt_max:
                book.violated("attempts", at_ms, f"{key!r}: attempt {lease.attempt} was sent {lease.times} times")
        elif before.started_ms:
            book.violated("attempts", at_ms, f"{key!r}: attempt {before.attempt} was begun by {before.worker}, and {lease.worker} has it again")
        else:
            book.violated("lease", at_ms, f"{key!r}: attempt {before.attempt} is with {before.worker}, and {lease.worker} gets it too")

    def _after_the_end(self, at_ms: float, dispatcher: str, send: Send) -> None:
        entry, book = send.entry, self._book
        root = entry.root or entry
        ended_ms = book.finished.get(root.key)
        if ended_ms is None:
            if not book.forgotten:
                book.violated("waste", at_ms, f"{dispatcher} sent {entry.key!r}, which nobody has asked for")
        elif at_ms > ended_ms + self._bounds.read_back_ms and entry.priority != SHADOW_PRIORITY:
            if root.key in book.repeated and (book.deaths or len(book.dispatchers) > 1):
                return  # an id that came again, to a dispatcher that need not know the first one
            book.violated("waste", at_ms, f"{dispatcher} sent {entry.key!r}, which was answered {at_ms - ended_ms:.0f} ms before")

    def returned(self, at_ms: float, request: Request, name: bytes, worker: str, incarnation: int) -> None:
        """The worker handed the order back."""
        lease = (request.leases or {}).get(name)
        if lease is not None and lease.worker == worker and lease.incarnation == incarnation:
            lease.returned_ms = at_ms

    def computing(self, at_ms: float, request: Request, name: bytes, worker: str, incarnation: int) -> None:
        """A device began the order."""
        lease = (request.leases or {}).get(name)
        if lease is None:
            self._book.violated("lease", at_ms, f"{worker} computes {name!r}, which nobody has sent")
            return
        lease.begun = True
        if lease.worker == worker and lease.incarnation == incarnation:
            lease.started_ms = at_ms

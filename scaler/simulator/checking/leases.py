"""Checks of orders: attempts are counted and bounded, no attempt is under way twice, nothing is sent for what is finished."""

from __future__ import annotations

from collections.abc import Sequence

from broker.policy.entry import SHADOW_PRIORITY, Send
from broker.policy.graph_request import StageJob
from scaler.simulator.checking.book import Book, Lease, Request, WorkerLife
from scaler.simulator.checking.bounds import Bounds
from schemas.work import INSTANCE_MARK


class LeaseChecks:
    """Remembers the latest sending of each order of a live request."""

    def __init__(self, book: Book, bounds: Bounds) -> None:
        self._book, self._bounds = book, bounds

    def sent(self, at_ms: float, dispatcher: str, sends: Sequence[Send]) -> None:
        """Orders were written."""
        book = self._book
        live, life, attempts_max = book.live, book.lives.get(dispatcher, 0), self._bounds.attempts_max
        for send in sends:
            entry = send.entry
            key, attempt = entry.key, send.attempt
            request = live.get(key if entry.root is None else entry.root.key)
            if not 1 <= attempt <= attempts_max:
                book.violated("attempts", at_ms, f"{key!r} was sent as attempt {attempt}")
            if request is None:
                self._after_the_end(at_ms, dispatcher, send)
                continue
            if entry.root is not None:
                self._allowed(request, send)
            lease = Lease(dispatcher, life, send.worker, send.incarnation, attempt, at_ms)
            leases = request.leases
            if leases is None:
                request.leases = {key: lease}
                continue
            before = leases.get(key)
            leases[key] = lease
            if before is not None:
                lease.begun = before.begun
                if before.dispatcher == dispatcher and before.life == life:
                    self._again(at_ms, before, lease, key)

    def _allowed(self, request: Request, send: Send) -> None:
        """What the worker may go on with by itself."""
        job = send.entry.payload
        fused = job.request.fused if isinstance(job, StageJob) else None
        if fused is not None:
            request.ahead = (request.ahead or set()) | {(ahead.entry.key, send.worker, send.incarnation) for ahead in fused.ahead}

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

    def computing(self, at_ms: float, life: WorkerLife, names: Sequence[str]) -> None:
        """A device began these orders."""
        live, worker, incarnation = self._book.live, life.name, life.incarnation
        for said in names:
            name = said.encode()
            request = live.get(name) or live.get(said.partition(INSTANCE_MARK)[0].encode())
            if request is None:
                continue
            lease = request.leases.get(name) if request.leases else None
            if lease is None and (name, worker, incarnation) in (request.ahead or ()):
                continue
            if lease is None:
                self._book.violated("lease", at_ms, f"{worker} computes {name!r}, which nobody has sent")
                continue
            lease.begun = True
            if lease.worker == worker and lease.incarnation == incarnation:
                lease.started_ms = at_ms

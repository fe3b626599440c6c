"""Checks that what can be done is done: no request is lost with an order, and none is turned away while workers stand idle."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from scaler.simulator.checking.book import Book, Lease, Request, WorkerLife
from scaler.simulator.checking.bounds import Bounds
from scaler.simulator.watching import Ended
from schemas.catalog import Catalog
from schemas.terminal import EXPIRED, REJECTED

SAFE = 3.0
"""Whoever has this many times the 95th percentile left can make it."""


class IdlenessChecks:
    """Looks at requests of one stage that were not completed although they had time."""

    def __init__(self, book: Book, bounds: Bounds, catalog: Catalog, p95_ms: Mapping[str, float]) -> None:
        self._book, self._bounds, self._p95_ms = book, bounds, p95_ms
        self._tasks = {name: endpoint.task for name, endpoint in catalog.endpoints.items() if endpoint.task and not endpoint.quotas}
        self._accuracies = {key: variant.accuracy for key, variant in catalog.variants().items()}

    def ended(self, request: Request, ended: Ended) -> None:
        """The first terminal record of the request says anything but `completed`."""
        if ended.at_ms < self._book.excused_ms() or request.endpoint not in self._tasks:
            return
        if ended.outcome == EXPIRED and request.leases:
            for name, lease in request.leases.items():
                self._lost(request, name, lease, ended.at_ms)
        if ended.outcome in (EXPIRED, REJECTED) and not request.leases:
            self._refused(request, ended)

    def _lost(self, request: Request, name: bytes, lease: Lease, at_ms: float) -> None:
        """An order that came to nothing is sent again, as long as there is time and somebody to compute it."""
        if lease.returned_ms:
            left_ms = request.deadline_ms - lease.returned_ms - self._bounds.resend_ms
            idle = self._free(request, at_ms, lease.returned_ms - self._bounds.resend_ms, left_ms / SAFE)
            if idle is not None:
                self._book.violated("lost", at_ms, f"{name!r} came back from {lease.worker}, and {idle.name}, which was idle, did not get it")
            return
        last_ms = max(lease.sent_ms, lease.started_ms)
        if request.deadline_ms - last_ms > self._bounds.lease_ms and self._free(request, at_ms) is not None:
            self._book.violated(
                "lost", at_ms, f"{name!r} was sent to {lease.worker}, came to nothing, and was not sent again for {at_ms - last_ms:.0f} ms"
            )

    def _refused(self, request: Request, ended: Ended) -> None:
        """A request with time is not turned away while somebody who could compute it does nothing."""
        if request.deadline_ms - request.offered_ms < self._bounds.idle_ms:
            return
        idle = self._free(request, ended.at_ms)
        if idle is not None:
            self._book.violated("idle", ended.at_ms, f"{request.key!r} was {ended.outcome}, and {idle.name} had nothing to do")

    def _free(self, request: Request, at_ms: float, since_ms: float = 0.0, p95_ms: float = inf) -> WorkerLife | None:
        """A worker that could compute the request (within `p95_ms`), and has had nothing to do since then, or for a while."""
        since_ms = since_ms or at_ms - self._bounds.idle_ms
        if self._book.plan is None or self._book.planned_ms > since_ms:
            return None
        prefix = self._tasks[request.endpoint] + "/"
        bound = {binding.worker: binding.variants for binding in self._book.plan.bindings}
        for life in self._book.workers.values():
            if life.alive and life.sent_ms < since_ms and life.computing_ms < since_ms:
                for variant, ready_ms in life.ready_ms.items():
                    fits = variant.startswith(prefix) and self._accuracies.get(variant, 0.0) >= request.floor
                    quick = p95_ms == inf or self._p95_ms.get(variant, inf) <= p95_ms
                    if fits and quick and ready_ms < since_ms and variant in bound.get(life.name, ()):
                        return life
        return None

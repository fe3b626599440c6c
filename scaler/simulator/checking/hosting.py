"""Checks of where requests are computed: on a live worker, in a variant that is ready there, within memory and batch limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.policy.entry import Send
from scaler.simulator.checking.book import Book, WorkerLife
from scaler.simulator.checking.bounds import Bounds
from schemas.catalog import Catalog
from schemas.plan import Plan

DRAINED_MS = 3_000.0
"""A variant that leaves is gone after so long: dispatchers have heard of the plan, and what waited for it is done."""


class HostingChecks:
    """Follows what each worker hosts, and what plans said of it."""

    def __init__(self, book: Book, bounds: Bounds, catalog: Catalog, memory_bytes_max: Mapping[str, int]) -> None:
        """`memory_bytes_max` by worker; absent or 0: no limit."""
        self._book, self._bounds, self._memory_bytes_max = book, bounds, memory_bytes_max
        self._batches = {key: variant.batch_size_max for key, variant in catalog.variants().items()}
        self._limits: dict[str, list[tuple[float, int]]] = {}
        """By worker: when plans that named it were published, and their batch limits, as far back as may still count."""

    def worker(self, at_ms: float, name: str, incarnation: int, *, alive: bool) -> None:
        """A worker started or died."""
        workers = self._book.workers
        life = workers.get(name)
        if alive:
            if life is not None and incarnation <= life.incarnation:
                self._book.violated("epoch", at_ms, f"{name} started as incarnation {incarnation} after {life.incarnation}")
            workers[name] = WorkerLife(name, incarnation, at_ms, ready_ms={}, ever_ready=set())
        elif life is not None and life.incarnation == incarnation:
            life.alive, life.since_ms = False, at_ms
            life.ready_ms = {}

    def hosted(self, at_ms: float, life: WorkerLife, ready: Mapping[str, int], memory_bytes: int) -> None:
        """What the worker hosts now."""
        before = life.ready_ms
        life.ready_ms = {variant: before.get(variant, at_ms) for variant in ready}
        life.ever_ready.update(ready)
        limit = self._memory_bytes_max.get(life.name, 0)
        needed = sum(ready.values())
        if limit and max(memory_bytes, needed) > limit:
            self._book.violated("memory", at_ms, f"{life.name} has {max(memory_bytes, needed)} bytes in use, its limit is {limit}")
        if needed > memory_bytes:
            self._book.violated("memory", at_ms, f"{life.name} says {memory_bytes} bytes, its ready variants have {needed}")

    def planned(self, at_ms: float, plan: Plan) -> None:
        """A plan was published; what a worker does not host any more drains under the limits of the plan before, whatever plans come meanwhile."""
        for binding in plan.bindings:
            limits = self._limits.setdefault(binding.worker, [])
            limits.append((at_ms, binding.batch_size_max))
            while len(limits) > 2 and limits[1][0] < at_ms - DRAINED_MS:
                del limits[0]

    def sent(self, at_ms: float, sends: Sequence[Send]) -> None:
        """Orders go to workers that were ready for them at some time of that life: news of the contrary may be on its way."""
        workers = self._book.workers
        for send in sends:
            life = workers.get(send.worker)
            if life is not None and life.alive and send.incarnation == life.incarnation:
                life.sent_ms = at_ms
                if send.variant in life.ever_ready:
                    continue
            self._sent_wrongly(at_ms, life, send)

    def _sent_wrongly(self, at_ms: float, life: WorkerLife | None, send: Send) -> None:
        if life is None or send.incarnation > life.incarnation:
            self._book.violated("hosting", at_ms, f"{send.entry.key!r} was sent to {send.worker}/{send.incarnation}, which never lived")
        elif send.incarnation < life.incarnation or not life.alive:
            if at_ms > life.since_ms + (self._bounds.restart_news_ms if life.alive else self._bounds.news_ms):
                what = "died" if not life.alive else f"is {life.incarnation}"
                self._book.violated("hosting", at_ms, f"{send.entry.key!r} was sent to {send.worker}/{send.incarnation}, which {what} for long")
        else:
            self._book.violated("hosting", at_ms, f"{send.entry.key!r} was sent to {send.worker}, where {send.variant} never was ready")

    def computing(self, at_ms: float, life: WorkerLife, variant: str, orders: Sequence[str], rows: int) -> None:
        """A batch begins."""
        life.computing_ms = at_ms
        if variant not in life.ready_ms:
            self._book.violated("hosting", at_ms, f"{life.name} computes {len(orders)} orders in {variant}, which is not ready there")
        limits = [limit for _, limit in self._limits.get(life.name, ())]
        limit = min(max(limits, default=rows), self._batches.get(variant, rows))
        if rows > limit and len(orders) > 1:
            self._book.violated("batch", at_ms, f"{life.name} computes {rows} rows together, its limit is {limit}")

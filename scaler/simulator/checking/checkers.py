"""All checkers as one watcher: it keeps the book that they share and hands on what each of them looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.policy.entry import Send
from scaler.simulator.checking.answers import AnswerChecks
from scaler.simulator.checking.book import Book, Request
from scaler.simulator.checking.bounds import Bounds, bounds_of, memory_of, p95_of
from scaler.simulator.checking.hosting import HostingChecks
from scaler.simulator.checking.idleness import IdlenessChecks
from scaler.simulator.checking.joins import JoinChecks
from scaler.simulator.checking.leases import LeaseChecks
from scaler.simulator.checking.watermarks import WatermarkChecks
from scaler.simulator.result import Violation
from scaler.simulator.scenario import Scenario
from scaler.simulator.watching import Ended, Offered
from schemas.catalog import Catalog
from schemas.plan import Plan
from schemas.terminal import COMPLETED
from schemas.work import INSTANCE_MARK


class Checkers:
    """A Watcher. Memory: live requests, and a bounded number of finished ones."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        bounds: Bounds | None = None,
        memory_bytes_max: Mapping[str, int] | None = None,
        p95_ms: Mapping[str, float] | None = None,
    ) -> None:
        """`memory_bytes_max`: by worker, where there is a limit; `p95_ms`: what a request takes at most, by variant, where that is known."""
        bounds = bounds or Bounds()
        book = self._book = Book(bounds.finished_max, bounds.violations_max)
        self._bounds = bounds
        self._answers = AnswerChecks(book, bounds, catalog)
        self._hosting = HostingChecks(book, bounds, catalog, memory_bytes_max or {})
        self._leases = LeaseChecks(book, bounds)
        self._watermarks = WatermarkChecks(book)
        self._idleness = IdlenessChecks(book, bounds, catalog, p95_ms or {})
        self._joins = JoinChecks(book, catalog)

    @staticmethod
    def of(scenario: Scenario) -> Checkers:
        """With the bounds that follow from the scenario."""
        return Checkers(scenario.catalog, bounds=bounds_of(scenario), memory_bytes_max=memory_of(scenario), p95_ms=p95_of(scenario))

    @property
    def violations(self) -> tuple[Violation, ...]:
        """The first of them, in the order of virtual time."""
        return tuple(self._book.violations)

    @property
    def seen(self) -> int:
        """Violations, with those that are not kept."""
        return self._book.seen

    # -- requests

    def offered(self, records: Sequence[Offered]) -> None:
        self._book.offer(records)

    def sent(self, at_ms: float, dispatcher: str, sends: Sequence[Send]) -> None:
        self._leases.sent(at_ms, dispatcher, sends)
        self._hosting.sent(at_ms, sends)

    def returned(self, at_ms: float, worker: str, incarnation: int, orders: Sequence[str]) -> None:
        for name in orders:
            request = self._book.live.get(name.partition(INSTANCE_MARK)[0].encode())
            if request is not None:
                self._leases.returned(at_ms, request, name.encode(), worker, incarnation)

    def computing(self, at_ms: float, worker: str, incarnation: int, variant: str, orders: Sequence[str], rows: int) -> None:
        book = self._book
        life = book.workers.get(worker)
        if life is None or not life.alive or life.incarnation != incarnation:
            book.violated("hosting", at_ms, f"{worker}/{incarnation} computes {len(orders)} orders, and does not live")
            return
        self._hosting.computing(at_ms, life, variant, orders, rows)
        self._leases.computing(at_ms, life, orders)

    def terminal(self, records: Sequence[Ended]) -> None:
        book, live, joined = self._book, self._book.live, self._joins.whole
        ended_by, closed = self._answers.ended, list[Request]()
        for ended in records:
            request = live.pop(ended.key, None)
            if request is None:
                if ended.key not in book.finished and not book.forgotten:
                    book.violated("outcome", ended.at_ms, f"{ended.by} answers {ended.key!r}, which nobody has asked for")
                continue
            ended_by(request, ended)
            if ended.outcome != COMPLETED:
                self._idleness.ended(request, ended)
            elif request.endpoint in joined:
                self._joins.ended(request, ended)
            book.finished[ended.key] = ended.at_ms
            closed.append(request)
        book.close(closed)

    # -- the rest

    def hosted(self, at_ms: float, worker: str, incarnation: int, ready: dict[str, int], memory_bytes: int) -> None:
        life = self._book.workers.get(worker)
        if life is not None and life.incarnation == incarnation:
            self._hosting.hosted(at_ms, life, ready, memory_bytes)

    def committed(self, at_ms: float, dispatcher: str, shard: int, offset: int, metadata: str) -> None:
        self._watermarks.committed(at_ms, dispatcher, shard, offset, metadata)

    def planned(self, at_ms: float, plan: Plan) -> None:
        book = self._book
        if book.plan is not None and plan.epoch <= book.plan.epoch:
            book.violated("epoch", at_ms, f"a plan of epoch {plan.epoch} was published after one of {book.plan.epoch}")
        book.plan, book.planned_ms = plan, at_ms
        self._hosting.planned(at_ms, plan)

    def worker(self, at_ms: float, name: str, incarnation: int, alive: bool) -> None:  # noqa: FBT001 - as in Watcher
        self._hosting.worker(at_ms, name, incarnation, alive=alive)

    def dispatcher(self, at_ms: float, name: str, alive: bool) -> None:  # noqa: FBT001 - as in Watcher
        book, before = self._book, self._book.dispatchers.get(name)
        book.dispatchers[name] = alive
        if not alive:
            book.deaths += 1
            book.lives[name] = book.lives.get(name, 0) + 1
            book.excused_until_ms[name] = at_ms + self._bounds.handover_ms
        elif before is False:
            book.excused_until_ms[name] = at_ms + self._bounds.recovery_ms

    def ended(self, at_ms: float) -> None:
        self._answers.run_ended(at_ms)

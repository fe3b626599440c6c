"""Checks of what a request is answered: one outcome, in time, honest."""

from __future__ import annotations

from scaler.simulator.checking.book import Book, Request
from scaler.simulator.checking.bounds import Bounds
from scaler.simulator.watching import Ended
from schemas.catalog import Catalog
from schemas.terminal import COMPLETED, OUTCOMES, REJECTED

ROUNDING = 1e-9


class AnswerChecks:
    """`completed` keeps its promises, `rejected` had no work done, nobody waits beyond the deadline, everybody has an outcome."""

    def __init__(self, book: Book, bounds: Bounds, catalog: Catalog) -> None:
        self._book, self._bounds = book, bounds
        self._true: object = None
        self._accuracies = {key: variant.accuracy for key, variant in catalog.variants().items()}
        self._single = {name for name, endpoint in catalog.endpoints.items() if endpoint.task}

    def ended(self, request: Request, ended: Ended) -> None:
        """The first terminal record of the request."""
        book, outcome = self._book, ended.outcome
        book.outcomes[outcome] = book.outcomes.get(outcome, 0) + 1
        if outcome == COMPLETED:
            self._completed(request, ended)
        elif outcome == REJECTED:
            if request.leases:
                self._rejected(request, ended)
        elif outcome not in OUTCOMES:
            book.violated("outcome", ended.at_ms, f"{request.key!r} ended as {outcome!r}")
        late_ms = ended.at_ms - self._bounds.expiry_late_ms
        if late_ms > request.deadline_ms and late_ms > book.excused_ms():
            book.violated("expiry", ended.at_ms, f"{request.key!r} was answered {ended.at_ms - request.deadline_ms:.1f} ms after its deadline")

    def _completed(self, request: Request, ended: Ended) -> None:
        book, at_ms, accuracy = self._book, ended.at_ms, ended.accuracy
        if ended.finished_ms > request.deadline_ms:
            book.violated("completed", at_ms, f"{request.key!r} says that it was finished {ended.finished_ms - request.deadline_ms:.1f} ms late")
        if at_ms > request.deadline_ms + self._bounds.completed_late_ms:
            book.violated("completed", at_ms, f"{request.key!r} completed {at_ms - request.deadline_ms:.1f} ms after its deadline")
        if accuracy is None or accuracy < request.floor - ROUNDING:
            book.violated("floor", at_ms, f"{request.key!r} asked for {request.floor} and got {accuracy}")
        elif accuracy > 1.0 + ROUNDING:
            book.violated("floor", at_ms, f"{request.key!r} claims an accuracy of {accuracy}")
        if ended.path is not self._true:
            self._compare(request, ended)
        if request.endpoint in self._single:
            self._computed(request, ended)

    def _compare(self, request: Request, ended: Ended) -> None:
        """What the path says of its variants with what the catalog says; the last path that was true is not looked at again."""
        wrong = [(variant, said) for variant, said in ended.path if said != self._accuracies.get(variant, said)]
        for variant, said in wrong:
            self._book.violated("floor", ended.at_ms, f"{request.key!r}: {variant} has {self._accuracies[variant]}, the path says {said}")
        if not wrong:
            self._true = ended.path

    def _computed(self, request: Request, ended: Ended) -> None:
        """An answer of one stage says what was really computed."""
        path = ended.path
        if len(path) == 1 and path[0][1] != ended.accuracy:
            self._book.violated("floor", ended.at_ms, f"{request.key!r}: {ended.path[0][0]} computed it, it claims {ended.accuracy}")
        for lease in (request.leases or {}).values():
            if lease.begun:
                break
        else:
            self._book.violated("completed", ended.at_ms, f"{request.key!r} completed, and nobody began to compute it")

    def _rejected(self, request: Request, ended: Ended) -> None:
        for lease in (request.leases or {}).values():
            if lease.dispatcher == ended.by and lease.life == self._book.lives.get(ended.by, 0):
                self._book.violated("outcome", ended.at_ms, f"{request.key!r} was rejected by {ended.by}, which had handed it out")
                return

    def run_ended(self, at_ms: float) -> None:
        """Every deadline has passed."""
        book = self._book
        for request in book.live.values():
            book.violated("outcome", at_ms, f"{request.key!r} (deadline {at_ms - request.deadline_ms:.0f} ms ago) has no outcome")
        ended = sum(book.outcomes.values())
        if ended + len(book.live) != book.offered:
            book.violated("conservation", at_ms, f"{book.offered} were offered, {ended} ended and {len(book.live)} did not")

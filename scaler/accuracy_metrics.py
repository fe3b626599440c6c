"""Metrics of what was learned from feedback."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from prometheus_client import CollectorRegistry, Gauge

from scaler.policy.accuracy import AccuracyBook
from schemas.learned import AgreementTally


class AccuracyMetrics:
    """What the leading judge knows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._accuracy = Gauge("headrace_learned_accuracy", "Mean of the posterior", ["variant"], registry=registry)
        self._low = Gauge("headrace_learned_accuracy_low", "Lower end of its 95 % credible interval", ["variant"], registry=registry)
        self._flagged = Gauge("headrace_accuracy_flagged", "1 where a variant is below what it promises", ["variant"], registry=registry)
        self._agreement = Gauge("headrace_agreement", "Mean agreement with the most accurate variant", ["variant"], registry=registry)
        self._feedback = Gauge("headrace_feedback", "Feedback records by what became of them", ["kind"], registry=registry)

    def observe(self, book: AccuracyBook, agreements: Mapping[str, AgreementTally]) -> None:
        """Bring all in line; variants that are gone are gone here, too."""
        for gauge in (self._accuracy, self._low, self._flagged, self._agreement):
            gauge.clear()
        for key, tally in agreements.items():
            if tally.mean is not None:
                self._agreement.labels(key).set(tally.mean)
        for key, tally in book.variants.items():
            if tally.mean is not None and tally.low is not None:
                self._accuracy.labels(key).set(tally.mean)
                self._low.labels(key).set(tally.low)
                self._flagged.labels(key).set(float(tally.flagged))
        for kind, count in msgspec.structs.asdict(book.counts).items():
            self._feedback.labels(kind).set(count)

"""Effective capacity: the highest demand that is served well, found by bisection over short runs with the same chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

import msgspec

from benchmarks.papers.bench import Bench, Changes
from deploy.simulation.report import Row

ATTAINMENT = 0.99
PRECISION = 1.05
"""The bisection ends where good and bad are this close."""
HALVINGS_MAX = 8


class Search(msgspec.Struct):
    """Where one candidate stands."""

    low_rps: float = 0.0
    """Served well."""
    high_rps: float = 0.0
    """Not served well; 0 while nothing failed."""
    halvings: int = 0

    def next_rps(self, start_rps: float) -> float | None:
        """What to try now; None where the answer is known."""
        if not self.low_rps and not self.high_rps:
            return start_rps
        if not self.high_rps:
            return self.low_rps * 2.0
        if not self.low_rps:
            return None if self.halvings >= HALVINGS_MAX else self.high_rps / 2.0
        return None if self.high_rps / self.low_rps <= PRECISION else sqrt(self.low_rps * self.high_rps)

    def told(self, rate_rps: float, *, good: bool) -> None:
        """The outcome of a try."""
        if good:
            self.low_rps = rate_rps
        else:
            self.high_rps = rate_rps
            self.halvings += not self.low_rps


def served_well(row: Row, accuracy_min: float = 0.0) -> bool:
    """99 % in time, and at least this part of the best accuracy."""
    if row.attainment is None or row.attainment.mean < ATTAINMENT or row.broken:
        return False
    return row.accuracy_served is not None and row.accuracy_served.mean >= accuracy_min * row.accuracy_best


def capacities(
    candidates: Mapping[str, Changes],
    start_rps: float,
    run: Callable[[Mapping[str, Changes]], Mapping[str, Row]],
    path: str,
    accuracy_min: float = 0.0,
) -> dict[str, float]:
    """Requests/s by candidate; all candidates search side by side, so that every processor has work. `path`: of the rate in the scenario."""
    searches = {label: Search() for label in candidates}
    while True:
        rates = {label: rate for label, search in searches.items() if (rate := search.next_rps(start_rps)) is not None}
        if not rates:
            return {label: search.low_rps for label, search in searches.items()}
        rows = run({label: {**candidates[label], path: repr(rate)} for label, rate in rates.items()})
        for label, rate in rates.items():
            searches[label].told(rate, good=served_well(rows[label], accuracy_min))


def runner(bench: Bench, name: str, seeds: Sequence[int]) -> Callable[[Mapping[str, Changes]], Mapping[str, Row]]:
    """What `capacities` runs with."""
    return lambda variations: bench.rows(name, variations, seeds)

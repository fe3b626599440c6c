"""Which optimizer may propose, and what becomes of what it returns: one that raises, is late or proposes nonsense is left out for a while."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import msgspec

from scaler.optimizers.checking import faults_of
from scaler.optimizers.optimizer import FALLBACK, FEASIBLE, INFEASIBLE, OPTIMAL, Proposal
from scaler.optimizers.snapshot import Snapshot

RAISED, LATE, NONSENSE, INVALID, DIED = "raised", "late", "nonsense", "invalid", "died"
STATUSES = (OPTIMAL, FEASIBLE, FALLBACK, INFEASIBLE)
BINDINGS_MAX_FACTOR = 2
SHOWN = 5


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one optimizer and those that stand in for it."""

    time_s: float = 1.0
    """What an optimizer is told that it has."""
    grace_s: float = 1.0
    """Beyond that it is ended."""
    failures_max: int = 2
    """In a row, until it is left out."""
    back_off_ms: float = 30_000.0
    back_off_ms_max: float = 600_000.0
    """Doubles with each further failure, up to this."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong with one proposal."""

    kind: str
    """raised, late, nonsense (not a proposal), invalid (a proposal that cannot come into force) or died (its process ended)."""
    reason: str


class _Record(msgspec.Struct):
    failures: int = 0
    outs: int = 0
    until_ms: float = 0.0
    last: Failure | None = None


class Guard:
    """The order of optimizers, the one that was chosen first; the last one is never left out."""

    def __init__(self, names: Sequence[str], settings: GuardSettings) -> None:
        """Raises ValueError without a name."""
        if not names:
            raise ValueError("an optimizer is needed")
        self.settings = settings
        self._names = tuple(dict.fromkeys(names))
        self._records = {name: _Record() for name in self._names}

    def choose(self, now_ms: float) -> str:
        """Whose turn it is: the first that is not left out."""
        return next((name for name in self._names if self._records[name].until_ms <= now_ms), self._names[-1])

    def next_after(self, name: str, now_ms: float) -> str | None:
        """Who may still propose in place of one that has just failed; None: nobody, the plan in force stays."""
        later = self._names[self._names.index(name) + 1 :]
        return next((other for other in later if self._records[other].until_ms <= now_ms or other == self._names[-1]), None)

    def succeeded(self, name: str) -> None:
        """Its proposal was one."""
        record = self._records[name]
        record.failures, record.outs, record.until_ms = 0, 0, 0.0

    def failed(self, name: str, failure: Failure, now_ms: float) -> None:
        """Count it; after a few in a row (at once where it was late or its process died) it is left out, longer each time."""
        record = self._records[name]
        record.failures += 1
        record.last = failure
        if record.failures >= self.settings.failures_max or failure.kind in (LATE, DIED):
            wait_ms = min(self.settings.back_off_ms * 2.0 ** min(record.outs, 16), self.settings.back_off_ms_max)
            record.outs += 1
            record.failures = 0
            record.until_ms = now_ms + wait_ms

    def left_out(self, now_ms: float) -> dict[str, str]:
        """By name: why, and for how long."""
        return {
            name: f"{record.last.kind}: {record.last.reason}; again in {(record.until_ms - now_ms) / 1000.0:.0f} s"
            for name, record in self._records.items()
            if record.until_ms > now_ms and record.last is not None and name != self._names[-1]
        }


def examined(returned: object, snapshot: Snapshot) -> Proposal | Failure:
    """The proposal, if it is one that can come into force; else what is wrong with it. Raises nothing, whatever it is given."""
    if not isinstance(returned, Proposal):
        return Failure(kind=NONSENSE, reason=f"it returned {type(returned).__name__}, not a proposal")
    try:
        # Types are not checked when a struct is made by its constructor.
        proposal = msgspec.convert(msgspec.to_builtins(returned), Proposal)
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError) as error:
        return Failure(kind=NONSENSE, reason=f"its proposal has fields of the wrong kind: {error}")
    if len(proposal.bindings) > BINDINGS_MAX_FACTOR * len(snapshot.workers) + 1:
        return Failure(kind=NONSENSE, reason=f"{len(proposal.bindings)} bindings for {len(snapshot.workers)} workers")
    explanation = proposal.explanation
    if explanation.status not in STATUSES:
        return Failure(kind=NONSENSE, reason=f"its status is {explanation.status!r}; known: {', '.join(STATUSES)}")
    told = (*explanation.served.values(), *explanation.accuracy.values(), *explanation.load.values(), explanation.objective)
    if not all(isfinite(value) for value in told):
        return Failure(kind=NONSENSE, reason="its explanation has figures that are no numbers")
    faults = faults_of(proposal, snapshot)
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        return Failure(kind=INVALID, reason="; ".join(faults[:SHOWN]) + more)
    return proposal

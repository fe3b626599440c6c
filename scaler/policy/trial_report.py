"""What a trial says at its end: both sides' figures, their differences with intervals, and the verdict in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from scaler.policy.trial_arm import Measured
from scaler.policy.trial_statistics import BETTER, NO_DIFFERENCE, PAIRS_MIN, TOO_LITTLE, WORSE, Difference, Word, judged, paired


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides over one interval (in the shadow), or over two periods one after the other (switchback)."""

    at_ms: float
    candidate: Measured
    against: Measured


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer over the whole trial."""

    optimizer: str
    offered: int
    completed: int
    attainment: float
    accuracy_served: float | None
    worth: float
    """Accuracy over all that was offered, misses counting as nothing."""
    loads: int = 0
    failures: int = 0
    """Intervals in which it proposed nothing."""
    last_failure: str = ""


class TrialReport(msgspec.Struct, frozen=True, kw_only=True):
    """`worth` decides the verdict; attainment and accuracy say what it is made of."""

    mode: str
    """shadow, switchback or recorded."""
    candidate: Side
    against: Side
    attainment: Difference | None
    accuracy_served: Difference | None
    """Over pairs in which both answered something."""
    worth: Difference | None
    verdict: Word
    text: str
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()


def report_of(mode: str, names: tuple[str, str], pairs: Sequence[Pair], notes: Sequence[str] = (), seed: int = 1) -> TrialReport:
    """`names`: the candidate and the other. Pairs in which one side was asked nothing tell nothing, and are left out."""
    told = [pair for pair in pairs if pair.candidate.offered and pair.against.offered]
    attainment = _difference(told, lambda side: side.attainment, seed)
    worth = _difference(told, lambda side: side.worth, seed)
    answered = [pair for pair in told if pair.candidate.completed and pair.against.completed]
    accuracy = _difference(answered, lambda side: side.accuracy_served or 0.0, seed)
    candidate, against = names
    word = judged(worth)
    return TrialReport(
        mode=mode,
        candidate=_side(candidate, [pair.candidate for pair in told]),
        against=_side(against, [pair.against for pair in told]),
        attainment=attainment,
        accuracy_served=accuracy,
        worth=worth,
        verdict=word,
        text=_text(names, word, worth, (attainment, accuracy)),
        pairs=tuple(pairs),
        notes=tuple(notes),
    )


def _difference(pairs: Sequence[Pair], figure: Callable[[Measured], float], seed: int) -> Difference | None:
    return paired([figure(pair.candidate) for pair in pairs], [figure(pair.against) for pair in pairs], seed)


def _side(optimizer: str, measured: Sequence[Measured]) -> Side:
    offered, completed = sum(each.offered for each in measured), sum(each.completed for each in measured)
    gained = sum(each.accuracy_sum for each in measured)
    failures = [each.failure for each in measured if each.failure]
    return Side(
        optimizer=optimizer,
        offered=offered,
        completed=completed,
        attainment=completed / offered if offered else 1.0,
        accuracy_served=gained / completed if completed else None,
        worth=gained / offered if offered else 0.0,
        loads=sum(each.loads for each in measured),
        failures=len(failures),
        last_failure=failures[-1] if failures else "",
    )


def _text(names: tuple[str, str], word: Word, worth: Difference | None, parts: tuple[Difference | None, Difference | None]) -> str:
    candidate, against = names
    if worth is None:
        return f"too little data: nothing was asked while {candidate} and {against} were compared"
    if word == TOO_LITTLE:
        return f"too little data: {worth.pairs} comparisons with demand, {PAIRS_MIN} are the least: let the trial run longer"
    shown = f"accuracy over all that was asked {_points(worth)}"
    if word == NO_DIFFERENCE:
        return f"no difference seen between {candidate} and {against}: {shown}"
    made_of = " and ".join(_named(name, part) for name, part in zip(("attainment", "accuracy of what was served"), parts, strict=True) if part)
    return f"{candidate} is {BETTER if word == BETTER else WORSE} than {against}: {shown} ({made_of})"


def _named(name: str, part: Difference) -> str:
    return f"{name} {_points(part)}"


def _points(found: Difference) -> str:
    """`+1.20 points [+0.80, +1.60]`."""
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.2f} points"
    return f"{100 * found.mean:+.2f} points [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"

"""Which variants the workers of one task host: as accurate as its demand, class by class of accuracy asked for, lets them be.

Starts with the most accurate everywhere and steps down where the least accuracy is lost for each row/s that is won.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil, inf

import msgspec

from scaler.optimizers.capacity import Capacity, Operation
from scaler.optimizers.lanes import Post
from scaler.optimizers.picking import operation_within

Counts = dict[tuple[int, str], int]
"""Workers by number of the crew and variant key."""


class Ladder(msgspec.Struct, kw_only=True):
    """The operations of one task on one cluster within its budget."""

    operations: dict[tuple[int, str], Operation]
    """By number of the crew and variant key."""
    accuracies: dict[str, float]

    def rate_at(self, counts: Counts, accuracy: float) -> float:
        """Rows/s of the variants at or above an accuracy."""
        return sum(
            count * self.operations[place].rate_rps for place, count in counts.items() if self.accuracies[place[1]] >= accuracy - 1e-9 and count
        )

    def fastest(self, crew: int, accuracy: float) -> Operation | None:
        """On one crew, at or above an accuracy; the most accurate of equals."""
        found = [operation for (at, key), operation in self.operations.items() if at == crew and self.accuracies[key] >= accuracy - 1e-9]
        return max(found, key=lambda operation: (operation.rate_rps, self.accuracies[operation.variant]), default=None)


def ladder_of(capacity: Capacity, task: str, budget_ms: float, *, all_variants: bool = False) -> Ladder:
    """What of the task's variants is in time where; without `all_variants`, those that a more accurate one beats in rate are left out."""
    operations: dict[tuple[int, str], Operation] = {}
    for at, crew in enumerate(capacity.crews):
        fastest = 0.0
        for variant in capacity.tasks.get(task, ()):
            operation = operation_within(capacity, crew, variant.key, budget_ms)
            if operation is not None and (all_variants or operation.rate_rps > fastest * (1.0 + 1e-9)):
                fastest = max(fastest, operation.rate_rps)
                operations[at, variant.key] = operation
    return Ladder(operations=operations, accuracies={variant.key: variant.accuracy for variant in capacity.tasks.get(task, ())})


def most_accurate_mix(ladder: Ladder, sizes: Mapping[int, int], classes: Mapping[float, float]) -> Counts:
    """Workers by crew and variant. `sizes`: workers by crew; `classes`: rows/s by accuracy asked for, each served by that or better.

    Where the demand cannot be met, the classes that ask for most are served first.
    """
    counts: Counts = {}
    for at, size in sizes.items():
        best = max((key for crew, key in ladder.operations if crew == at), key=lambda key: ladder.accuracies[key], default=None)
        if best is not None and size > 0:
            counts[at, best] = size
    needed: list[tuple[float, float]] = []
    for accuracy in sorted(classes, reverse=True):
        needed.append((accuracy, classes[accuracy] + (needed[-1][1] if needed else 0.0)))
        _step_down(ladder, counts, needed)
    return {place: count for place, count in counts.items() if count}


def _step_down(ladder: Ladder, counts: Counts, needed: list[tuple[float, float]]) -> None:
    """Until the last class of `needed` has its rate, without taking theirs from those before it."""
    accuracy, rate = needed[-1]
    while (missing := rate - ladder.rate_at(counts, accuracy)) > 1e-9 * max(rate, 1.0):
        spare = [(above, ladder.rate_at(counts, above) - least) for above, least in needed[:-1]]
        step = _best_step(ladder, counts, accuracy, spare)
        if step is None:
            return
        place, target, most = step
        gain = ladder.operations[target].rate_rps - ladder.operations[place].rate_rps
        moved = max(min(most, ceil(missing / gain - 1e-9)), 1)
        counts[place] -= moved
        counts[target] = counts.get(target, 0) + moved


def _best_step(
    ladder: Ladder, counts: Counts, accuracy: float, spare: Iterable[tuple[float, float]]
) -> tuple[tuple[int, str], tuple[int, str], int] | None:
    """(from, to, how many at most) of the step that loses least accuracy for each row/s won."""
    best: tuple[tuple[int, str], tuple[int, str], int] | None = None
    least = inf
    held = list(spare)
    for place, count in sorted(counts.items()):
        if not count:
            continue
        above = ladder.accuracies[place[1]]
        for target, operation in ladder.operations.items():
            below = ladder.accuracies[target[1]]
            gain = operation.rate_rps - ladder.operations[place].rate_rps
            if target[0] != place[0] or not accuracy - 1e-9 <= below < above or gain <= 0.0:
                continue
            most = min([count, *(_may_leave(ladder, place, left) for floor, left in held if below < floor - 1e-9 <= above)])
            loss = (above - below) / gain
            if most >= 1 and loss < least:
                least, best = loss, (place, target, most)
    return best


def _may_leave(ladder: Ladder, place: tuple[int, str], spare_rps: float) -> int:
    """How many workers a class above can do without."""
    return max(int(spare_rps / ladder.operations[place].rate_rps + 1e-9), 0)


def posts_of(capacity: Capacity, ladder: Ladder, counts: Counts) -> list[Post]:
    """One post for each crew and variant."""
    return [
        Post(
            crew=capacity.crews[place[0]],
            variants=(place[1],),
            batch_size=ladder.operations[place].batch_size,
            threads=ladder.operations[place].threads,
            count=count,
        )
        for place, count in sorted(counts.items())
        if count
    ]

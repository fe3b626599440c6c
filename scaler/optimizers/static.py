"""Optimizers that choose each task's variant without looking at the load: the baselines that every paper compares with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from scaler.optimizers.assembling import Draft, assemble
from scaler.optimizers.capacity import Capacity, Operation
from scaler.optimizers.lanes import Post
from scaler.optimizers.optimizer import Limits, Proposal
from scaler.optimizers.picking import divide, picks_of, task_demands
from scaler.optimizers.snapshot import Snapshot, Variant


def by_accuracy(variant: Variant, operation: Operation) -> tuple[float, ...]:
    """The most accurate first, the faster of equals."""
    return variant.accuracy, operation.rate_rps


def by_rate(variant: Variant, operation: Operation) -> tuple[float, ...]:
    """The fastest first, the more accurate of equals."""
    return operation.rate_rps, variant.accuracy


def by_inaccuracy(variant: Variant, operation: Operation) -> tuple[float, ...]:
    """The least accurate first, the faster of equals."""
    return -variant.accuracy, operation.rate_rps


class Static:
    """What all of them do: one variant for each task, on workers divided by demand; they differ in which, and until when."""

    name: str
    source: str
    order = staticmethod(by_accuracy)
    """Of the variants that are in time and at or above the floor, the first is the task's."""
    until: float | None = None
    """Workers are given out until capacity is this many times the forecast; None: all of them."""
    keeps = False
    """Present bindings stay as long as they host such variants."""

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """Workers go one by one to the task that is served least."""
        capacity = Capacity(snapshot)
        demands = task_demands(snapshot, capacity)
        picks = picks_of(capacity, demands, self.order)
        posts = kept_posts(snapshot, capacity, picks) if self.keeps else []
        return assemble(Draft(posts=posts or divide(capacity, picks, demands, until=self.until)), snapshot, capacity, limits)


class StaticAccurate(Static):
    """Every task with the most accurate variant that is in time, on all workers, divided by demand.

    What "no accuracy scaling" means in every paper. A variant below the floor that most requests of an endpoint ask for is not used.
    """

    name = "static-accurate"
    source = "Headrace; the yardstick of effective capacity (Loki, HPDC'24, evaluation)"
    order = staticmethod(by_accuracy)


class StaticFast(Static):
    """Every task with the fastest variant at or above the floor that most of its requests ask for, on all workers, divided by demand."""

    name = "static-fast"
    source = "Headrace; the other end of the curve"
    order = staticmethod(by_rate)


class HorizontalOnly(Static):
    """Hardware scaling alone: the most accurate variants, and as many replicas as the forecast needs, up to all workers.

    FA2's and InferLine's place in Themis's comparison, Loki's first step without its second. The papers' systems can rent more machines; here the
    cluster is fixed, so that what does not fit is shed, alike for all tasks.
    """

    name = "horizontal-only"
    source = "Themis (arXiv 2407.14843), baseline FA2; Loki (HPDC'24), resource manager, hardware scaling"
    order = staticmethod(by_accuracy)
    until = 1.0


class ClipperHighAccuracy(Static):
    """Clipper as Proteus compares with it: the most accurate variants, divided once by the demand of that moment, and left so.

    Divided again only where workers or tasks have come or gone. Clipper's adaptive batching (AIMD) is the worker's, not the plan's: the simulator's
    `batching: aimd`.
    """

    name = "clipper-ha"
    source = "Clipper (NSDI'17); as baseline: Proteus (ASPLOS'24), evaluation"
    order = staticmethod(by_accuracy)
    keeps = True


class ClipperHighThroughput(Static):
    """As clipper-ha with the least accurate variants, which have the highest throughput in the paper's families.

    The paper knows no floors; here variants below the floor that most requests ask for would answer almost nobody, and are left out.
    """

    name = "clipper-ht"
    source = "Clipper (NSDI'17); as baseline: Proteus (ASPLOS'24), evaluation"
    order = staticmethod(by_inaccuracy)
    keeps = True


def kept_posts(snapshot: Snapshot, capacity: Capacity, picks: Mapping[str, Mapping[int, Operation]]) -> list[Post]:
    """The present bindings, where every worker hosts nothing but its picks and every task is hosted; else none."""
    counts: Counter[tuple[int, tuple[str, ...]]] = Counter()
    hosted: set[str] = set()
    for at, crew in enumerate(capacity.crews):
        own = {by_crew[at].variant: task for task, by_crew in picks.items() if at in by_crew}
        for worker in crew.workers:
            variants = worker.binding.variants if worker.binding is not None else ()
            changed = any(key not in own for key in variants) or (own and not variants)
            if changed or not capacity.fits(crew, variants):
                return []
            hosted.update(own[key] for key in variants)
            counts[at, variants] += 1
    if not picks or hosted != set(picks):
        return []
    chosen = {(at, operation.variant): operation for by_crew in picks.values() for at, operation in by_crew.items()}
    return [
        Post(
            crew=capacity.crews[at],
            variants=variants,
            batch_size=max(chosen[at, key].batch_size for key in variants),
            threads=max(chosen[at, key].threads for key in variants),
            count=count,
        )
        for (at, variants), count in counts.items()
        if variants
    ]

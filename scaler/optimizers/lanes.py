"""From counts to bindings: which worker of a crew hosts what (whoever hosts it already first), and on which lane it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from scaler.optimizers.capacity import Crew
from scaler.optimizers.snapshot import Snapshot, Worker
from schemas.plan import Binding


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """What `count` workers of a crew are to host."""

    crew: Crew
    variants: tuple[str, ...]
    batch_size: int
    threads: int
    count: int = 1


def give_lanes(workers: Iterable[Worker], snapshot: Snapshot) -> dict[str, int]:
    """A lane for each worker's name, no two alike within a class; a worker without one is missing.

    A worker keeps the lane that it has. New ones take lanes that nobody had first: a lane that was another's may still hold its orders.
    """
    lanes: dict[str, int] = {}
    taken: dict[str, set[int]] = {}
    waiting: list[Worker] = []
    for worker in sorted(workers, key=lambda worker: worker.name):
        held = taken.setdefault(worker.accelerator, set())
        kept = worker.binding
        if kept is not None and kept.accelerator == worker.accelerator and 0 <= kept.lane < snapshot.lanes_per_class and kept.lane not in held:
            held.add(kept.lane)
            lanes[worker.name] = kept.lane
        else:
            waiting.append(worker)
    used = _lanes_in_plan(snapshot)
    for accelerator, held in taken.items():
        left = [lane for lane in range(snapshot.lanes_per_class) if lane not in held]
        left.sort(key=lambda lane: ((accelerator, lane) in used, lane))
        class_waiting = [worker for worker in waiting if worker.accelerator == accelerator]
        lanes.update({worker.name: lane for worker, lane in zip(class_waiting, left, strict=False)})
    return lanes


def bind(posts: Iterable[Post], snapshot: Snapshot) -> tuple[Binding, ...]:
    """One binding for each worker that hosts something, by name; a crew's workers that host a post's variants already take it first.

    More posts than a crew has workers are dropped, the last first.
    """
    placed: list[tuple[Worker, Post]] = []
    crews: dict[int, list[Post]] = {}
    for post in posts:
        if post.count > 0:
            crews.setdefault(id(post.crew), []).append(post)
    for of_crew in crews.values():
        placed += _place(of_crew[0].crew, of_crew)
    lanes = give_lanes([worker for worker, _ in placed], snapshot)
    bindings = [_binding(worker, post, lanes[worker.name]) for worker, post in placed if worker.name in lanes]
    return tuple(sorted(bindings, key=lambda binding: binding.worker))


def _place(crew: Crew, posts: Sequence[Post]) -> list[tuple[Worker, Post]]:
    """Two passes: those who host it, then whoever is free."""
    by_variant: dict[str, list[Worker]] = {}
    for worker in crew.workers:
        for key in _held(worker):
            by_variant.setdefault(key, []).append(worker)
    free = {worker.name: worker for worker in crew.workers}
    placed: list[tuple[Worker, Post]] = []
    left: list[int] = []
    for post in posts:
        wanted = min(post.count, len(free))
        for worker in _holders(by_variant, post, free):
            if wanted == 0:
                break
            del free[worker.name]
            placed.append((worker, post))
            wanted -= 1
        left.append(wanted)
    remaining = iter(list(free.values()))
    for post, wanted in zip(posts, left, strict=True):
        for _ in range(wanted):
            worker = next(remaining, None)
            if worker is None:
                return placed
            placed.append((worker, post))
    return placed


def _holders(by_variant: dict[str, list[Worker]], post: Post, free: dict[str, Worker]) -> list[Worker]:
    """Free workers that hold some of the post's variants, those with the most of them first."""
    counts: dict[str, int] = {}
    for key in post.variants:
        for worker in by_variant.get(key, ()):
            if worker.name in free:
                counts[worker.name] = counts.get(worker.name, 0) + 1
    return [free[name] for name in sorted(counts, key=lambda name: (-counts[name], name))]


def _held(worker: Worker) -> set[str]:
    return {*worker.hosted, *(worker.binding.variants if worker.binding is not None else ())}


def _lanes_in_plan(snapshot: Snapshot) -> set[tuple[str, int]]:
    present = [worker.binding for worker in snapshot.workers if worker.binding is not None]
    return {(binding.accelerator, binding.lane) for binding in (*snapshot.plan.bindings, *present)}


def _binding(worker: Worker, post: Post, lane: int) -> Binding:
    return Binding(
        worker=worker.name,
        accelerator=worker.accelerator,
        lane=lane,
        variants=post.variants,
        batch_size_max=max(post.batch_size, 1),
        threads=min(max(post.threads, 1), max(worker.threads_max, 1)),
    )

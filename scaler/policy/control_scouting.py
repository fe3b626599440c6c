"""Where variants that nobody has measured are tried: an optimizer cannot plan with what it knows nothing of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from scaler.optimizers.snapshot import READY, Snapshot, Worker
from schemas.plan import Binding

BATCH_SIZE_MAX = 32


def scouted(bindings: Sequence[Binding], unmeasured: Iterable[tuple[str, str]], snapshot: Snapshot, at_once: int) -> tuple[Binding, ...]:
    """The bindings with unmeasured (variant key, worker type) pairs added, on one worker of each type; all workers of a type that has nothing else.

    `at_once`: variants that a worker which serves may get beside its own; the worker itself refuses what does not fit.
    """
    by_type: dict[str, list[str]] = {}
    for key, type_ in unmeasured:
        by_type.setdefault(type_, []).append(key)
    bound = {binding.worker: binding for binding in bindings}
    for type_, keys in sorted(by_type.items()):
        crew = [worker for worker in snapshot.workers if worker.type == type_ and worker.state == READY]
        idle = [worker for worker in crew if worker.name not in bound]
        serving = [bound[worker.name] for worker in crew if worker.name in bound]
        for worker in idle[:1] if serving else idle:
            wanted = tuple(key for key in keys if key not in worker.refused)
            if wanted:
                bound[worker.name] = _binding(worker, wanted)
        if serving and not idle:
            # Whoever tries some already goes on with them: moving them would load twice.
            trying = [binding for binding in serving if set(keys) & set(binding.variants)] or _trying(crew, set(keys), bound)
            host = trying[0] if trying else min(serving, key=lambda binding: (len(binding.variants), binding.worker))
            refused = next(worker.refused for worker in crew if worker.name == host.worker)
            wanted = tuple(key for key in keys if key not in refused and key not in host.variants)[:at_once]
            bound[host.worker] = msgspec.structs.replace(host, variants=(*host.variants, *wanted))
    return tuple(bound[name] for name in sorted(bound))


def _trying(crew: Sequence[Worker], keys: set[str], bound: dict[str, Binding]) -> list[Binding]:
    """Bindings of workers that have some of these in the present plan."""
    return [bound[worker.name] for worker in crew if worker.binding is not None and keys & set(worker.binding.variants) and worker.name in bound]


def _binding(worker: Worker, keys: tuple[str, ...]) -> Binding:
    return Binding(
        worker=worker.name, accelerator=worker.accelerator, lane=0, variants=keys, batch_size_max=BATCH_SIZE_MAX, threads=worker.threads_max
    )

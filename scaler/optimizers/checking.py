"""Decides whether a proposal may come into force: everything that must hold of any plan, whoever made it."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from scaler.optimizers.optimizer import Proposal
from scaler.optimizers.snapshot import READY, Snapshot, Variant, Worker
from schemas.plan import Binding

SHARES_ROUNDING = 1e-6


def faults_of(proposal: Proposal, snapshot: Snapshot) -> list[str]:
    """One sentence for each fault; empty where the proposal may come into force."""
    faults: list[str] = []
    workers = {worker.name: worker for worker in snapshot.workers}
    variants = {variant.key: variant for variant in snapshot.variants}
    for binding in proposal.bindings:
        worker = workers.get(binding.worker)
        if worker is None:
            faults.append(f"worker {binding.worker!r} is unknown")
            continue
        faults += _of_worker(binding, worker)
        faults += _of_lane(binding, snapshot)
        faults += _of_variants(binding, worker, variants)
    faults += _shared(proposal)
    faults += _of_shares(proposal, snapshot, variants)
    faults += _of_budgets(proposal, snapshot)
    return faults


def _of_worker(binding: Binding, worker: Worker) -> Iterator[str]:
    if worker.state != READY:
        yield f"worker {worker.name!r} is {worker.state}"
    if binding.accelerator != worker.accelerator:
        yield f"worker {worker.name!r} is of class {worker.accelerator}, not {binding.accelerator}"
    if not 1 <= binding.threads <= max(worker.threads_max, 1):
        yield f"worker {worker.name!r} has {worker.threads_max} threads, not {binding.threads}"
    if binding.batch_size_max < 1:
        yield f"worker {worker.name!r} gets batches of {binding.batch_size_max}"
    if binding.clock_mhz is not None and not (isfinite(binding.clock_mhz) and binding.clock_mhz > 0.0):
        yield f"worker {worker.name!r} gets a clock of {binding.clock_mhz} MHz"


def _of_lane(binding: Binding, snapshot: Snapshot) -> Iterator[str]:
    if not 0 <= binding.lane < snapshot.lanes_per_class:
        yield f"worker {binding.worker!r} gets lane {binding.lane} of {snapshot.lanes_per_class}"


def _of_variants(binding: Binding, worker: Worker, variants: dict[str, Variant]) -> Iterator[str]:
    if len(set(binding.variants)) < len(binding.variants):
        yield f"worker {worker.name!r} gets a variant twice"
    memory_bytes = 0
    for key in dict.fromkeys(binding.variants):
        variant = variants.get(key)
        if variant is None:
            yield f"worker {worker.name!r} gets {key!r}, which is unknown"
        elif worker.type not in variant.costs:
            yield f"worker {worker.name!r} cannot host {key!r}: it has no costs on type {worker.type!r}"
        elif key in worker.refused:
            yield f"worker {worker.name!r} refused {key!r}: {worker.refused[key]}"
        else:
            memory_bytes += max(variant.costs[worker.type].memory_bytes, 0)
    if worker.memory_bytes_max and memory_bytes > worker.memory_bytes_max:
        yield f"worker {worker.name!r} has {worker.memory_bytes_max} bytes for variants of {memory_bytes}"


def _shared(proposal: Proposal) -> Iterator[str]:
    names: set[str] = set()
    lanes: dict[tuple[str, int], str] = {}
    for binding in proposal.bindings:
        if binding.worker in names:
            yield f"worker {binding.worker!r} has two bindings"
        names.add(binding.worker)
        other = lanes.setdefault((binding.accelerator, binding.lane), binding.worker)
        if other != binding.worker:
            yield f"workers {other!r} and {binding.worker!r} share lane {binding.lane} of {binding.accelerator}"


def _of_shares(proposal: Proposal, snapshot: Snapshot, variants: dict[str, Variant]) -> Iterator[str]:
    tasks = {variant.task for variant in snapshot.variants} | {stage.task for endpoint in snapshot.endpoints for stage in endpoint.stages}
    for task, shares in proposal.shares.items():
        if task not in tasks:
            yield f"shares for task {task!r}, which is unknown"
        for key, share in shares.items():
            if key not in variants or variants[key].task != task:
                yield f"task {task!r} shares with {key!r}, which is not its variant"
            if not (isfinite(share) and share >= 0.0):
                yield f"the share of {key!r} is {share}"
        if sum(share for share in shares.values() if isfinite(share)) > 1.0 + SHARES_ROUNDING:
            yield f"the shares of task {task!r} are more than 1 together"


def _of_budgets(proposal: Proposal, snapshot: Snapshot) -> Iterator[str]:
    endpoints = {endpoint.endpoint: {stage.name for stage in endpoint.stages} for endpoint in snapshot.endpoints}
    for endpoint, budgets in proposal.budgets.items():
        if endpoint not in endpoints:
            yield f"budgets for endpoint {endpoint!r}, which is unknown"
            continue
        for stage, budget_ms in budgets.items():
            if stage not in endpoints[endpoint]:
                yield f"a budget for stage {stage!r} of {endpoint!r}, which is unknown"
            if not (isfinite(budget_ms) and budget_ms >= 0.0):
                yield f"the budget of stage {stage!r} of {endpoint!r} is {budget_ms} ms"

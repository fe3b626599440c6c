"""The static plan: every worker hosts what its class can run, most accurate first, as far as its memory goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from schemas.catalog import Catalog, VariantSpec
from schemas.plan import Binding, Plan
from schemas.telemetry import WorkerReport

BATCH_SIZE_MAX = 32
MEMORY_PART = 0.9
"""Part of a device's memory that variants may take; the rest is for what runs beside them."""


def static_bindings(
    workers: Iterable[WorkerReport], catalog: Catalog, previous: Plan, lanes_per_class: int, *, keep_unheard: bool
) -> tuple[Binding, ...]:
    """A binding for each worker that finds a lane; workers keep the lane that they have, in the order of their names else.

    A worker beyond the last lane of its class gets none: there would be two workers on one lane.
    `keep_unheard`: bindings of workers that are not among `workers` stay as they are.
    """
    reports = sorted(workers, key=lambda report: report.worker)
    known = {report.worker for report in reports}
    unheard = tuple(binding for binding in previous.bindings if keep_unheard and binding.worker not in known)
    lanes = _lanes(reports, previous, lanes_per_class, {(binding.accelerator, binding.lane) for binding in unheard})
    variants = catalog.variants()
    candidates = {
        accelerator: _ordered(variants, accelerator) for accelerator in {report.accelerator for report in reports if report.worker in lanes}
    }
    bound = tuple(_binding(report, lanes[report.worker], candidates[report.accelerator]) for report in reports if report.worker in lanes)
    return tuple(sorted(bound + unheard, key=lambda binding: binding.worker))


def _lanes(reports: list[WorkerReport], previous: Plan, lanes_per_class: int, taken: set[tuple[str, int]]) -> dict[str, int]:
    lanes: dict[str, int] = {}
    present = {binding.worker: binding for binding in previous.bindings}
    for report in reports:
        kept = present.get(report.worker)
        if kept is not None and kept.accelerator == report.accelerator and kept.lane < lanes_per_class:
            place = (kept.accelerator, kept.lane)
            if place not in taken:
                taken.add(place)
                lanes[report.worker] = kept.lane
    open_lanes = {
        accelerator: iter([lane for lane in range(lanes_per_class) if (accelerator, lane) not in taken])
        for accelerator in {report.accelerator for report in reports}
    }
    for report in reports:
        if report.worker in lanes:
            continue
        free = next(open_lanes[report.accelerator], None)
        if free is not None:
            taken.add((report.accelerator, free))
            lanes[report.worker] = free
    return lanes


def _ordered(variants: Mapping[str, VariantSpec], accelerator: str) -> dict[str, VariantSpec]:
    """What this class can run, most accurate first."""
    able = [key for key, spec in variants.items() if accelerator in spec.accelerators]
    return {key: variants[key] for key in sorted(able, key=lambda key: (-variants[key].accuracy, key))}


def _binding(report: WorkerReport, lane: int, candidates: Mapping[str, VariantSpec]) -> Binding:
    hosted = _fitting(candidates, report)
    return Binding(
        worker=report.worker,
        accelerator=report.accelerator,
        lane=lane,
        variants=tuple(hosted),
        batch_size_max=max([min(candidates[key].batch_size_max, BATCH_SIZE_MAX) for key in hosted], default=BATCH_SIZE_MAX),
        threads=max(report.threads, 1),
    )


def _fitting(candidates: Mapping[str, VariantSpec], report: WorkerReport) -> list[str]:
    """In their order; one whose memory is not known yet is tried (the worker refuses what does not fit)."""
    ordered = list(candidates)
    if not report.memory_bytes_max:
        return ordered
    left = report.memory_bytes_max * MEMORY_PART
    fitting: list[str] = []
    for key in ordered:
        hosted = report.variants.get(key)
        needed = hosted.memory_bytes if hosted is not None else 0
        if needed <= left:
            left -= needed
            fitting.append(key)
    return fitting

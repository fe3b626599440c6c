"""What each variant costs on each type of worker: from telemetry, from profiles given, or else by comparison with variants that are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import isfinite
from statistics import median

import msgspec

from scaler.optimizers.snapshot import Cost, Variant
from scaler.policy.control_settings import ControlSettings
from schemas.catalog import Catalog
from schemas.effective import known as known_accuracy
from schemas.effective import planned_accuracy
from schemas.profile import Latency
from schemas.telemetry import HostedVariant, WorkerReport

SAMPLES_MAX = 9
"""Workers of a type whose word is kept for each variant: the median of them is believed."""
STALE_MS = 10_000.0
"""A worker that has said nothing of a variant for so long gives its place to another one; also between two looks for such a worker."""
TYPES_MAX = 256
PLACES_MAX = 16_384
"""Combinations of variant, type and threads."""
LATENCY_MS_MIN = 1e-4
DIFFERS = 1.15
"""Telemetry that is off a given profile by more than this factor replaces it."""

Latencies = dict[int, Latency]


class _Sample(msgspec.Struct):
    heard: object
    """The mapping as it was reported: the same again needs no second look."""
    heard_ms: float
    latency: Latencies
    load_ms: float
    memory_bytes: int


class _Place(msgspec.Struct):
    """Who is heard of one variant on one type with so many threads; others are not even looked at, so that a thousand workers cost little."""

    samples: dict[str, _Sample] = {}
    """By worker."""
    looked_ms: float = float("-inf")

    def full(self, now_ms: float) -> bool:
        """Whether there is no room for another worker; makes room where one has fallen silent."""
        if len(self.samples) < SAMPLES_MAX:
            return False
        if now_ms - self.looked_ms < STALE_MS:
            return True
        self.looked_ms = now_ms
        oldest = min(self.samples, key=lambda worker: self.samples[worker].heard_ms)
        if now_ms - self.samples[oldest].heard_ms < STALE_MS:
            return True
        del self.samples[oldest]
        return False


class ObservedCosts:
    """A fold over worker reports. What was learned of a variant stays when nobody hosts it any more."""

    def __init__(self, settings: ControlSettings, given: Iterable[Variant], lies: Counter[str]) -> None:
        self._settings, self.lies = settings, lies
        self._given = {(variant.key, type_): cost for variant in given for type_, cost in variant.costs.items()}
        self._places: dict[tuple[str, str, int], _Place] = {}
        """By variant key, worker type and threads."""
        self._types: dict[str, str] = {}
        """Accelerator class by worker type."""

    def observe(self, report: WorkerReport, type_: str, threads: int, now_ms: float) -> None:
        """Learn from a worker that runs its variants with so many threads."""
        if type_ not in self._types and len(self._types) >= TYPES_MAX:
            self.lies["more types of workers than can be"] += 1
            return
        self._types[type_] = report.accelerator
        for key, hosted in report.variants.items():
            if not hosted.latency:
                continue
            at = (key, type_, threads)
            place = self._places.get(at)
            if place is None:
                if len(self._places) >= PLACES_MAX:
                    self.lies["more variants than can be"] += 1
                    return
                place = _Place()
            known = place.samples.get(report.worker)
            if known is not None and known.heard == hosted.latency:
                known.heard_ms = now_ms
            elif known is not None or not place.full(now_ms):
                sample = self._sample(hosted, now_ms)
                if sample is not None:
                    place.samples[report.worker] = sample
                    self._places[at] = place

    def _sample(self, hosted: HostedVariant, now_ms: float) -> _Sample | None:
        """What can be believed of it; None: nothing."""
        believed = self._believed(hosted.latency)
        if not believed:
            return None
        load_ms = hosted.load_ms if isfinite(hosted.load_ms) and 0.0 <= hosted.load_ms <= self._settings.latency_ms_max else 0.0
        memory = hosted.memory_bytes if 0 <= hosted.memory_bytes <= self._settings.memory_bytes_max else 0
        return _Sample(hosted.latency, now_ms, believed, load_ms, memory)

    def forget(self, keys: Iterable[str]) -> None:
        """These variants have other files now: nothing that was learned holds."""
        gone = set(keys)
        self._places = {at: place for at, place in self._places.items() if at[0] not in gone}
        self._given = {place: cost for place, cost in self._given.items() if place[0] not in gone}

    def variants(self, catalog: Catalog, types: dict[str, str]) -> tuple[Variant, ...]:
        """The catalog's variants with their costs on these types (accelerator class by type); one without any cost cannot be planned."""
        known = self.known()
        found: list[Variant] = []
        for key, spec in sorted(catalog.variants().items()):
            costs: dict[str, Cost] = {}
            for type_, accelerator in types.items():
                if accelerator in spec.accelerators:
                    cost = known.get((key, type_)) or self._compared(key, type_, known)
                    if cost is not None:
                        costs[type_] = cost
            if costs:
                task = key.partition("/")[0]
                low = learned.low if (learned := known_accuracy(key, spec, catalog.learned)) is not None else None
                accuracy = planned_accuracy(key, catalog, spec)
                found.append(
                    Variant(key=key, task=task, accuracy=accuracy, accuracy_low=low, batch_size_max=max(spec.batch_size_max, 1), costs=costs)
                )
        return tuple(found)

    def unmeasured(self, catalog: Catalog, types: dict[str, str]) -> Iterator[tuple[str, str]]:
        """(variant key, type) pairs that the catalog allows and nobody has measured."""
        measured = {(key, type_) for key, type_, _ in self._places} | self._given.keys()
        for key, spec in sorted(catalog.variants().items()):
            for type_, accelerator in types.items():
                if accelerator in spec.accelerators and (key, type_) not in measured:
                    yield key, type_

    def known(self) -> dict[tuple[str, str], Cost]:
        """Given and learned, by variant key and type."""
        by_threads: dict[tuple[str, str], dict[int, Latencies]] = {}
        loads: dict[tuple[str, str], list[float]] = {}
        memories: dict[tuple[str, str], list[int]] = {}
        for (key, type_, threads), heard in self._places.items():
            place, samples = (key, type_), heard.samples
            by_threads.setdefault(place, {})[threads] = _median([sample.latency for sample in samples.values()])
            loads.setdefault(place, []).extend(sample.load_ms for sample in samples.values() if sample.load_ms > 0.0)
            memories.setdefault(place, []).extend(sample.memory_bytes for sample in samples.values() if sample.memory_bytes > 0)
        found: dict[tuple[str, str], Cost] = dict(self._given)
        for place, latency in by_threads.items():
            given = self._given.get(place)
            learned = Cost(
                latency=latency,
                load_ms=median(loads[place]) if loads[place] else 0.0,
                memory_bytes=int(median(memories[place])) if memories[place] else 0,
                learned=given is None,
            )
            found[place] = learned if given is None else _merged(given, learned)
        return found

    def _compared(self, key: str, type_: str, known: dict[tuple[str, str], Cost]) -> Cost | None:
        """The variant as another type of the same class has it, at the ratio that other variants have between the two; None: not known anywhere."""
        accelerator = self._types.get(type_, "")
        for (other_key, other_type), cost in known.items():
            if other_key != key or self._types.get(other_type) != accelerator:
                continue
            ratios = [
                _row_ms(known[shared, type_]) / _row_ms(known[shared, other_type])
                for shared, at in known
                if at == other_type and (shared, type_) in known
            ]
            ratio = median(ratios) if ratios else 1.0
            latency = {
                threads: {size: Latency(each.p50_ms * ratio, each.p95_ms * ratio) for size, each in sizes.items()}
                for threads, sizes in cost.latency.items()
            }
            return msgspec.structs.replace(cost, latency=latency, learned=False)
        return None

    def _believed(self, reported: Latencies) -> Latencies:
        """Without what cannot be; a larger batch is never faster."""
        believed: Latencies = {}
        p50_ms = p95_ms = LATENCY_MS_MIN
        for size in sorted(reported):
            said = reported[size]
            if size < 1 or not (self._possible(said.p50_ms) and self._possible(said.p95_ms)):
                self.lies["impossible latency"] += 1
                continue
            p50_ms, p95_ms = max(said.p50_ms, p50_ms), max(said.p95_ms, said.p50_ms, p95_ms)
            believed[size] = Latency(p50_ms, p95_ms, max(said.samples, 0))
        return believed

    def _possible(self, latency_ms: float) -> bool:
        return isfinite(latency_ms) and 0.0 < latency_ms <= self._settings.latency_ms_max


def _median(samples: list[Latencies]) -> Latencies:
    if len(samples) == 1:
        return samples[0]
    sizes = sorted({size for sample in samples for size in sample})
    found: Latencies = {}
    p50_ms = p95_ms = 0.0
    for size in sizes:
        said = [sample[size] for sample in samples if size in sample]
        p50_ms = max(median(each.p50_ms for each in said), p50_ms)
        p95_ms = max(median(each.p95_ms for each in said), p50_ms, p95_ms)
        found[size] = Latency(p50_ms, p95_ms, sum(each.samples for each in said))
    return found


def _merged(given: Cost, learned: Cost) -> Cost:
    """The given profile, but for what telemetry says differently enough."""
    latency = dict(given.latency)
    changed = False
    for threads, sizes in learned.latency.items():
        before = given.latency.get(threads)
        if before is None or _differs(before, sizes):
            latency[threads] = (before or {}) | sizes
            changed = True
    return Cost(latency=latency, load_ms=learned.load_ms or given.load_ms, memory_bytes=learned.memory_bytes or given.memory_bytes, learned=changed)


def _differs(before: Latencies, now: Latencies) -> bool:
    shared = [(before[size].p95_ms, now[size].p95_ms) for size in before.keys() & now.keys()]
    return not shared or any(max(a, b) > DIFFERS * max(min(a, b), LATENCY_MS_MIN) for a, b in shared)


def _row_ms(cost: Cost) -> float:
    return min(each.p50_ms / size for sizes in cost.latency.values() for size, each in sizes.items())

"""Where the time went while an offer was played, and what of a live capacity's distance to the simulated one each part explains."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

import msgspec
import psutil

from schemas.profile import Latency, latency_at
from schemas.terminal import TerminalHead

KAFKA, LOAD, OTHERS = "Kafka", "load generator", "processes that are not the benchmark's"
Profiles = Mapping[str, Mapping[int, Latency]]
"""By variant's name."""


class Used(NamedTuple):
    """Processor seconds until now."""

    at_s: float
    by_part: dict[str, float]
    machine_s: float
    """Of everybody, the idle time left out."""


class Parts(msgspec.Struct, frozen=True):
    """Of one offer. Milliseconds are those of one answer that was computed."""

    answers: int
    """That were computed, in time or not."""
    rate_rps: float
    computed_ms: float
    """On the device, its part of the batch."""
    profiled_ms: float
    """The same by the profiles, for the same variants in batches of the same size."""
    busy: float
    """Part of the workers' time in which they computed."""
    processor_ms: dict[str, float]
    """Processor time by part."""
    idle: float
    """Part of the processor's time that nobody used."""

    @property
    def stretch(self) -> float:
        """How many times longer than profiled a batch takes."""
        return self.computed_ms / self.profiled_ms if self.profiled_ms else 1.0


class Simulated(msgspec.Struct, frozen=True):
    """The simulator's side."""

    rate_rps: float
    busy: float


def used(pids: Mapping[str, int], kafka: int | None) -> Used:
    """Now, of the benchmark's own processes by name, Kafka (where it is ours), this one and everybody."""
    by_part: dict[str, float] = {}
    for part, pid in {**pids, **({KAFKA: kafka} if kafka is not None else {}), LOAD: psutil.Process().pid}.items():
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            by_part[part] = times.user + times.system
    machine = psutil.cpu_times()
    return Used(time.monotonic(), by_part, sum(machine[:3]) + sum(machine[5:7]))


def parts_of(terminals: Iterable[TerminalHead], profiles: Profiles, before: Used, after: Used, workers: int) -> Parts | None:
    """None where nothing was computed."""
    steps = [terminal.path[-1] for terminal in terminals if terminal.path]
    if not steps:
        return None
    seconds, count = after.at_s - before.at_s, len(steps)
    computed_ms = sum(step.computed_ms / max(step.batch_size, 1) for step in steps)
    profiled_ms = 0.0
    for (variant, rows), each in Counter((step.variant.rpartition("/")[2], max(step.batch_size, 1)) for step in steps).items():
        batches = profiles.get(variant)
        profiled_ms += each * latency_at(dict(batches), rows).p50_ms / rows if batches else 0.0
    spent = {part: total_s - before.by_part.get(part, 0.0) for part, total_s in after.by_part.items()}
    machine_s = after.machine_s - before.machine_s
    spent[OTHERS] = max(machine_s - sum(spent.values()), 0.0)
    cores = psutil.cpu_count() or 1
    return Parts(
        answers=count,
        rate_rps=count / seconds,
        computed_ms=computed_ms / count,
        profiled_ms=profiled_ms / count,
        busy=computed_ms / 1e3 / (workers * seconds),
        processor_ms={part: each_s * 1e3 / count for part, each_s in spent.items()},
        idle=max(1.0 - machine_s / (cores * seconds), 0.0),
    )


def reasons(live: Parts, simulated: Simulated) -> tuple[str, ...]:
    """What a worker's answers a second are made of, live over simulated: how much of its time it computes, over what an answer costs it.

    answers/s = workers x busy / computing time of an answer; and computing time = profiled time x stretch.
    """
    workers = live.rate_rps * live.computed_ms / 1e3 / live.busy if live.busy else 1.0
    expected_ms = 1e3 * workers * simulated.busy / simulated.rate_rps if simulated.rate_rps else 0.0
    costs = sorted(live.processor_ms.items(), key=lambda cost: -cost[1])
    found = [
        f"a batch takes {live.stretch:.2f} x its profile",
        f"workers compute for {live.busy:.0%} of the time, simulated ones for {simulated.busy:.0%}",
    ]
    if expected_ms:
        found.append(f"by the profiles an answer's variant and batch take {live.profiled_ms:.1f} ms, simulated ones {expected_ms:.1f} ms")
    shown = ", ".join(f"{part} {spent_ms:.1f}" for part, spent_ms in costs if spent_ms >= 0.05)
    found.append(f"milliseconds of processor time for an answer: {shown}; {live.idle:.0%} of the processor idle")
    return tuple(found)

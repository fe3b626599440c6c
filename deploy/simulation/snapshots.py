"""Replays recorded snapshots: every optimizer proposes for each of them again, and goes on from its own plan over what was asked until the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from scaler.optimizers.snapshot import Snapshot
from scaler.policy.guarded import GuardSettings
from scaler.policy.trial_arm import Measured
from scaler.policy.trial_load import IntervalDemand, between
from scaler.policy.trial_statistics import Difference, Word, judged, paired
from scaler.simulator.intervals import Interval, interval
from scaler.snapshot_recording import Recorded, read_snapshots
from scaler.trial_comparing import TrialComparison
from schemas.catalog import Catalog
from schemas.errors import ConfigurationError

INTERVALS_MAX = 6.0
"""Nobody planned for longer (no scaler was there): what was asked then is rolled forward for so many planning intervals, and no longer."""
OnSnapshot = Callable[[float, str], None]
"""Is told the part that is done, and what comes now."""


class ReplayRow(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer over all snapshots; intervals are over snapshots."""

    optimizer: str
    offered: int
    attainment: Interval | None
    accuracy_served: Interval | None
    worth: Interval | None
    """Accuracy over all that was asked, misses counting as nothing."""
    planned_served: Interval | None
    """Part of the forecast that its plans can serve."""
    planned_accuracy: Interval | None
    planned_load: dict[str, float]
    """By worker type: mean."""
    loads: int
    failures: int
    last_failure: str
    against_first: Difference | None
    """Of `worth`, to the first optimizer."""
    verdict: Word | None
    """Against the first optimizer; None for that one."""


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a recording."""

    file: str
    snapshots: int
    compared: int
    """Intervals that count: the first one is everybody's way to its own plan, and quiet ones tell nothing."""
    rows: tuple[ReplayRow, ...]
    measured: dict[str, tuple[Measured, ...]]
    """By optimizer, interval by interval."""


async def replay_snapshots(
    path: Path, optimizers: Sequence[str], *, seed: int, guard: GuardSettings | None = None, on_snapshot: OnSnapshot | None = None
) -> ReplayReport:
    """Raises ConfigurationError for what is no recording, or has too few snapshots; TrialImpossible for an optimizer that never proposes."""
    comparison = TrialComparison(optimizers, guard or GuardSettings(), seed=seed)
    tell = on_snapshot or _nobody
    measured: dict[str, list[Measured]] = {name: [] for name in comparison.optimizers}
    size = max(_size(path), 1)
    count, done = 0, 0
    before: Recorded | None = None
    try:
        for recorded in read_snapshots(path):
            count += 1
            done += len(msgspec.msgpack.encode(recorded.taken))
            tell(min(done / size, 1.0), f"snapshot {count}")
            if before is not None:
                await _step(comparison, before, recorded.taken.snapshot, measured, path)
            before = recorded
    finally:
        await comparison.close()
    if count < 3:
        raise ConfigurationError(f"{path}: has {count} snapshots; 3 are the least: two intervals, of which the first does not count")
    kept = {name: each[1:] for name, each in measured.items()}
    return ReplayReport(
        file=str(path),
        snapshots=count,
        compared=len(kept[comparison.optimizers[0]]),
        rows=tuple(_row(name, kept, comparison.optimizers[0], seed) for name in comparison.optimizers),
        measured={name: tuple(each) for name, each in kept.items()},
    )


async def _step(comparison: TrialComparison, before: Recorded, following: Snapshot, measured: dict[str, list[Measured]], path: Path) -> None:
    if before.catalog is None:
        raise ConfigurationError(f"{path}: has no catalog before its first snapshot, so nothing can be rolled forward")
    await comparison.propose(before.taken.snapshot)
    demand = _demand(before.taken.snapshot, following, before.catalog)
    if demand.requests > 0.0:
        for name, each in (await comparison.roll(demand, before.catalog)).items():
            measured[name].append(each)


def _demand(snapshot: Snapshot, following: Snapshot, catalog: Catalog) -> IntervalDemand:
    found = between(snapshot, following)
    known = {endpoint.endpoint for endpoint in snapshot.endpoints if endpoint.stages} & catalog.endpoints.keys()
    rates = {endpoint: floors for endpoint, floors in found.rates.items() if endpoint in known}
    duration_s = min(found.duration_s, INTERVALS_MAX * snapshot.interval_ms / 1e3)
    return IntervalDemand(duration_s=duration_s, rates=rates)


def _row(name: str, measured: dict[str, list[Measured]], first: str, seed: int) -> ReplayRow:
    own = measured[name]
    planned = [each.planned for each in own if each.planned is not None]
    types = sorted({kind for each in planned for kind in each.load})
    failures = [each.failure for each in own if each.failure]
    against = paired([each.worth for each in own], [each.worth for each in measured[first]], seed) if name != first else None
    return ReplayRow(
        optimizer=name,
        offered=sum(each.offered for each in own),
        attainment=_interval([each.attainment for each in own]),
        accuracy_served=_interval([each.accuracy_served for each in own if each.accuracy_served is not None]),
        worth=_interval([each.worth for each in own]),
        planned_served=_interval([each.served for each in planned]),
        planned_accuracy=_interval([each.accuracy for each in planned if each.accuracy is not None]),
        planned_load={kind: sum(each.load.get(kind, 0.0) for each in planned) / len(planned) for kind in types},
        loads=sum(each.loads for each in own),
        failures=len(failures),
        last_failure=failures[-1] if failures else "",
        against_first=against,
        verdict=judged(against) if name != first else None,
    )


def _interval(values: Sequence[float]) -> Interval | None:
    return interval(values) if values else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error


def _nobody(_part: float, _what: str) -> None:
    """Nobody wants to know."""

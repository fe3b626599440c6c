"""How a worker leaves: who goes first, when the others have taken over, and when it is drained. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from scaler.optimizers.snapshot import READY, Snapshot, Worker
from scaler.policy.actuating_settings import ActuatingSettings


class Leaving(msgspec.Struct):
    """One worker that is to end."""

    since_ms: float
    seen: bool = False
    """Planners were shown the cluster without it."""
    planned: bool = False
    """... and that was decided about."""
    unbound_ms: float | None = None

    def stuck(self, settings: ActuatingSettings, now_ms: float) -> bool:
        """No plan takes its work over (plans are pinned, or the others cannot host it)."""
        return self.unbound_ms is None and now_ms - self.since_ms > settings.leave_ms_max


def victims(ready: Sequence[Worker], count: int) -> list[Worker]:
    """Whose end costs least: those without a binding, then those that host least, then the last by name."""
    by_name = sorted(ready, key=lambda worker: (len(worker.name), worker.name), reverse=True)
    return sorted(by_name, key=lambda worker: (worker.binding is not None, len(worker.hosted)))[: max(count, 0)]


def taken_over(leaving: Leaving, all_leaving: Collection[str], snapshot: Snapshot) -> bool:
    """Whether a plan was made without it since, and everybody who stays hosts what that plan says (or never will)."""
    if not leaving.planned:
        return False
    staying = [worker for worker in snapshot.workers if worker.state == READY and worker.name not in all_leaving and worker.binding is not None]
    return all(key in worker.hosted or key in worker.refused for worker in staying if worker.binding is not None for key in worker.binding.variants)


def drained(leaving: Leaving, worker: Worker | None, settings: ActuatingSettings, now_ms: float) -> bool:
    """Whether it may end: unbound for long enough, and hosting nothing."""
    if leaving.unbound_ms is None:
        return False
    since_ms = now_ms - leaving.unbound_ms
    return since_ms >= settings.drain_ms_max or (since_ms >= settings.drain_ms and (worker is None or not worker.hosted))

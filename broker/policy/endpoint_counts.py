"""What was asked of each endpoint since the start and how it went: the demand that the scaler plans for, as dispatchers tell it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable, Sequence
from itertools import islice

import msgspec

from broker.policy.entry import ANSWERED, Entry
from broker.policy.graph_request import rows_of
from broker.policy.settings import DispatcherSettings
from graphs.commands import Command, RunStage
from schemas.stage import StageRecord
from schemas.telemetry import EndpointCounts, StageCounts
from schemas.terminal import COMPLETED

FLOORS_MAX = 32
"""Floors of one endpoint that are told apart; a further one counts as the nearest known above it, or the highest."""
TIMEOUTS_KEPT = 256
TIMEOUT_PART = 0.05
WAITING_SAMPLE = 4_096
UNMET = ("overloaded", "infeasible_deadline")
"""Refusals that say that capacity was short: these requests are demand, others are mistakes."""


class _Endpoint(msgspec.Struct):
    arrived: dict[float, int] = {}
    rows: int = 0
    ended: int = 0
    missed: int = 0
    timeouts_ms: deque[int] = msgspec.field(default_factory=lambda: deque[int](maxlen=TIMEOUTS_KEPT))
    stages: dict[str, _Stage] = {}


class _Stage(msgspec.Struct):
    rows: int = 0
    done: dict[str, int] = {}
    led_to: dict[str, dict[str, int]] = {}


class EndpointCounters:
    """Counts only grow; differences are the reader's work, so that a lost report loses nothing."""

    def __init__(self, settings: DispatcherSettings) -> None:
        self._settings = settings
        self._endpoints: dict[str, _Endpoint] = {}

    def arrived(self, entry: Entry, refusal: tuple[str, str] | None, known: Container[str]) -> None:
        """A request was taken on or refused; its floor and deadline are known, where its endpoint is."""
        floor, endpoint = entry.floor, entry.endpoint
        if floor is None or endpoint not in known or (refusal is not None and refusal[0] not in UNMET):
            return
        counts = self._endpoints.get(endpoint) or self._of(endpoint)
        arrived = counts.arrived
        before = arrived.get(floor)
        if before is None:
            floor = self._bounded(counts, floor)
            before = arrived.get(floor, 0)
        arrived[floor] = before + 1
        counts.rows += entry.rows
        counts.timeouts_ms.append(entry.deadline_ms - entry.received_ms)
        entry.counted = True

    def concluded(self, entry: Entry, outcome: str) -> None:
        """The dispatcher writes the terminal record."""
        if entry.counted and outcome != COMPLETED:
            self._of(entry.endpoint).missed += 1

    def ended(self, entry: Entry, now_ms: float, *, missed: bool = False) -> None:
        """A terminal record was read back; `missed`: it does not say `completed`, or comes too late for that."""
        if not entry.counted:
            return
        counts = self._endpoints.get(entry.endpoint) or self._of(entry.endpoint)
        counts.ended += 1
        if entry.state is not ANSWERED and (missed or now_ms - self._settings.hop_ms > entry.deadline_ms):
            counts.missed += 1

    def stage_started(self, entry: Entry) -> None:
        """Rows of a stage wait from now on."""
        stage, _, _ = entry.instance.partition("#")
        self._stage(entry.endpoint, stage).rows += entry.rows

    def stage_done(self, root: Entry, record: StageRecord, rows: int, found: Sequence[Command]) -> None:
        """Rows of a stage were answered, and `found` follows."""
        if record.error_code:
            return
        stage = self._stage(root.endpoint, record.instance.partition("#")[0])
        stage.done[record.variant] = stage.done.get(record.variant, 0) + rows
        for command in found:
            if isinstance(command, RunStage) and not command.shadow:
                led_to = stage.led_to.setdefault(record.variant, {})
                led_to[command.stage.path] = led_to.get(command.stage.path, 0) + rows_of(command, root)

    def published(self, waiting: Iterable[Entry], waiting_count: int, known: Container[str]) -> dict[str, EndpointCounts]:
        """For the report; of a long queue a part stands for all. Endpoints that are not known any more are forgotten."""
        for name in [name for name in self._endpoints if name not in known]:
            del self._endpoints[name]
        sample = list(islice(waiting, WAITING_SAMPLE))
        factor = max(waiting_count / len(sample), 1.0) if sample else 0.0
        queued = Counter(entry.endpoint for entry in sample)
        return {name: _told(counts, int(queued[name] * factor)) for name, counts in self._endpoints.items()}

    def _of(self, endpoint: str) -> _Endpoint:
        counts = self._endpoints.get(endpoint)
        if counts is None:
            counts = self._endpoints[endpoint] = _Endpoint()
        return counts

    def _stage(self, endpoint: str, path: str) -> _Stage:
        stages = self._of(endpoint).stages
        if path not in stages:
            stages[path] = _Stage()
        return stages[path]

    def _bounded(self, counts: _Endpoint, floor: float) -> float:
        if len(counts.arrived) < FLOORS_MAX:
            return floor
        return min((known for known in counts.arrived if known >= floor), default=max(counts.arrived))


def _told(counts: _Endpoint, waiting: int) -> EndpointCounts:
    timeouts = sorted(counts.timeouts_ms)
    return EndpointCounts(
        arrived={repr(floor): count for floor, count in counts.arrived.items()},
        rows=counts.rows,
        ended=counts.ended,
        missed=counts.missed,
        waiting=waiting,
        timeout_ms=float(timeouts[int(len(timeouts) * TIMEOUT_PART)]) if timeouts else 0.0,
        stages={
            path: StageCounts(rows=stage.rows, done=dict(stage.done), led_to={key: dict(led) for key, led in stage.led_to.items()})
            for path, stage in counts.stages.items()
        },
    )

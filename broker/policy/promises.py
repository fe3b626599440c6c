"""Where the work of a request on a graph will be done: what is promised with it stands in the pools of its stages, until they are placed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from broker.policy.admission import Refusal
from broker.policy.entry import Entry
from broker.policy.fleet import Fleet
from broker.policy.graph_request import GraphRequest, job_of
from broker.policy.pool import Pool
from broker.policy.settings import DispatcherSettings

FADE = 0.98
"""What a request turned out to need counts so much when the next one has ended: fifty of them are remembered."""
KNOWN_MAX = 4_096


def refused_by(pool: Pool, task: str, entry: Entry, work_ms: float, settings: DispatcherSettings, now_ms: float) -> Refusal | None:
    """None where a later stage's pool has room for this much more before the request's deadline, beside what it has promised already."""
    usable_ms = (entry.deadline_ms - now_ms) * settings.slack - settings.hop_ms
    capacity = pool.capacity(task, 0)
    if capacity <= 0.0 or pool.waiting.work_ms + pool.busy_ms + work_ms <= capacity * usable_ms:
        return None  # nobody hosts it now: it may be hosted in time
    laxity = pool.laxity(entry.priority, task, 0, now_ms)
    room_ms = laxity.room_ms(entry.deadline_ms)
    if room_ms >= work_ms:
        return None
    later_ms = max((work_ms - room_ms) / capacity, 1.0)
    return "overloaded", f"{laxity.in_the_way_ms:.0f} ms of work are in the way of {task!r}; a deadline {later_ms:.0f} ms later might be met"


class _Needed(msgspec.Struct):
    """Fading sums."""

    planned_ms: float = 0.0
    placed_ms: float = 0.0


class Promises:
    """Keeps the pools' `promised_ms`, and learns how much of what is planned for requests they turn out to need.

    A request is planned with the upper quantile of its fan-outs, and with all branches of its switches: it must be in time whatever comes. Of many
    together the mean is what they need, or pools would be taken for full that are half empty.
    """

    def __init__(self, fleet: Fleet, requests: Mapping[bytes, GraphRequest]) -> None:
        """`requests`: all that run."""
        self._fleet, self._requests = fleet, requests
        self._layouts = -1
        self._needed: dict[tuple[str, str], _Needed] = {}
        """By endpoint and task."""

    def expected_ms(self, endpoint: str, planned_ms: Mapping[str, float]) -> dict[str, float]:
        """What a request that was planned with this much work by task will need, judging by those before it."""
        return {task: each_ms * self._part(endpoint, task) for task, each_ms in planned_ms.items()}

    def _part(self, endpoint: str, task: str) -> float:
        needed = self._needed.get((endpoint, task))
        return needed.placed_ms / needed.planned_ms if needed is not None and needed.planned_ms > 0.0 else 1.0

    def promise(self, request: GraphRequest, planned_ms: Mapping[str, float]) -> None:
        """The whole path's work is its pools' from now on."""
        self._look()
        request.planned_ms = planned_ms
        request.promised_ms = self.expected_ms(request.endpoint, planned_ms)
        for task, each_ms in request.promised_ms.items():
            self._promised(task, each_ms)

    def place(self, request: GraphRequest, stage: Entry) -> None:
        """A stage stands in its pool's queue: that much is promised no more."""
        self._look()
        task, work_ms = stage.task, stage.work_ms
        if job_of(stage).command.final:
            request.whole = True
        request.placed_ms[task] = request.placed_ms.get(task, 0.0) + work_ms
        left_ms = request.promised_ms.get(task, 0.0)
        if left_ms:
            change_ms = min(work_ms, left_ms)
            request.promised_ms[task] = left_ms - change_ms
            self._take_back(task, change_ms)

    def forget(self, request: GraphRequest) -> None:
        """Nothing more of it will come."""
        self._look()
        for task, left_ms in request.promised_ms.items():
            self._take_back(task, left_ms)
        request.promised_ms = {}
        if request.whole:
            self._learn(request)

    def _learn(self, request: GraphRequest) -> None:
        request.whole = False  # once
        if len(self._needed) >= KNOWN_MAX:
            self._needed.clear()
        for task, planned_ms in request.planned_ms.items():
            needed = self._needed.setdefault((request.endpoint, task), _Needed())
            needed.planned_ms = FADE * needed.planned_ms + planned_ms
            needed.placed_ms = FADE * needed.placed_ms + request.placed_ms.get(task, 0.0)

    def _take_back(self, task: str, work_ms: float) -> None:
        if work_ms and task in self._fleet.ladders:
            self._promised(task, -work_ms)

    def _promised(self, task: str, change_ms: float) -> None:
        promised_ms = self._fleet.pool(task).promised_ms
        promised_ms[task] = promised_ms.get(task, 0.0) + change_ms

    def _look(self) -> None:
        if self._layouts == self._fleet.layouts:
            return
        # The pools are new.
        self._layouts = self._fleet.layouts
        for request in self._requests.values():
            for task, left_ms in request.promised_ms.items():
                self._take_back(task, -left_ms)

"""Brings the loads' requests into the log, a slice of time after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaler.simulator.agenda import START_MS
from scaler.simulator.chance import ARRIVALS, generator
from scaler.simulator.records import Request
from scaler.simulator.scenario import Load, Scenario
from scaler.simulator.watching import Offered
from scaler.simulator.workloads.arrivals import arrival_chunks
from scaler.simulator.workloads.mix import mix
from scaler.simulator.world import World

ValueT = TypeVar("ValueT")
Numbers = NDArray[np.float64]
SLICE_MS = 50.0
DUPLICATE_MS = 20.0
"""A client that was not sure sends again within this time."""


class _Drawn(NamedTuple):
    """What comes of one load in a slice: times of the run, and what is asked for."""

    at_ms: Numbers
    endpoint: str
    floors: list[float]
    timeouts_ms: list[int]
    tenants: list[str]
    rows: int


class _Stream:
    """The arrivals of one load, cut into slices."""

    def __init__(self, load: Load, number: int, scenario: Scenario, seed: int, stamps_ms: Numbers | None) -> None:
        self.load = load
        self.draws = generator(seed, ARRIVALS, number, 1)
        self._pieces: Iterator[Numbers] = arrival_chunks(load.arrivals, scenario.duration_s, generator(seed, ARRIVALS, number, 0), stamps_ms)
        self._piece: Numbers = np.empty(0)
        self._at = 0

    def until(self, end_ms: float) -> Numbers:
        """What comes before this time, and was not handed out before."""
        parts: list[Numbers] = []
        while True:
            end = int(np.searchsorted(self._piece, end_ms, side="left"))
            if end > self._at:
                parts.append(self._piece[self._at : end])
            self._at = end
            if end < len(self._piece):
                break
            piece = next(self._pieces, None)
            if piece is None:
                self._piece, self._at = np.empty(0), 0
                break
            self._piece, self._at = piece, 0
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0), *parts])


class Arriving:
    """All loads together. Keys count the requests; the shard of each is chance, as a hash would have it."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        traces: Mapping[str, Numbers],
        world: World,
    ) -> None:
        self._streams = [_Stream(load, number, scenario, seed, traces.get(load.arrivals.file)) for number, load in enumerate(scenario.loads)]
        self._shards = generator(seed, ARRIVALS, len(self._streams))
        self._again = generator(seed, ARRIVALS, len(self._streams), 1)
        self._world, self._requests, self._tally, self._watchers = world, world.requests, world.tally, world.watchers
        self._duration_ms = scenario.duration_s * 1e3
        self._count = 0
        self._slice_ms = 0.0
        self._untold: deque[Offered] = deque()
        self.duplicated_part = 0.0
        """Requests that come twice, while a fault lasts."""
        self.last_deadline_ms = START_MS + self._duration_ms

    def begin(self) -> None:
        """Bring a slice in at the beginning of its time, over and over."""
        self._world.agenda.schedule(START_MS, self._slice)

    def _slice(self, _: None) -> None:
        start_ms = self._slice_ms
        end_ms = self._slice_ms = min(start_ms + SLICE_MS, self._duration_ms)
        drawn = [found for stream in self._streams if (found := self._drawn(stream, end_ms)) is not None]
        if drawn:
            self._bring(drawn, end_ms)
        if end_ms < self._duration_ms:
            self._world.agenda.schedule(START_MS + end_ms, self._slice)

    def _drawn(self, stream: _Stream, end_ms: float) -> _Drawn | None:
        at_ms = stream.until(end_ms)
        load = stream.load
        if not len(at_ms):
            return None
        asked = mix(load, len(at_ms), stream.draws)
        self._tally.offered(load.endpoint, at_ms)
        self.last_deadline_ms = max(self.last_deadline_ms, START_MS + float(at_ms[-1]) + float(_timeout_ms(asked.timeouts_ms.max())))
        floors = _picked([float(choice.value) for choice in load.floors], asked.floor_at)
        timeouts_ms = _picked([_timeout_ms(choice.value) for choice in load.timeouts_ms], asked.timeout_at)
        return _Drawn(at_ms, load.endpoint, floors, timeouts_ms, _picked(asked.names, asked.tenants), load.rows)

    def _bring(self, drawn: list[_Drawn], end_ms: float) -> None:
        at_ms, order = drawn[0].at_ms, list[int]()
        if len(drawn) > 1:
            at_ms, order = _in_order(np.concatenate([part.at_ms for part in drawn]))
        # Keys count the requests in the order of their times, whatever their load.
        first, self._count = self._count, self._count + len(at_ms)
        keys = [b"%d" % number for number in range(first, self._count)]
        requests = _requests(keys, at_ms, drawn, order)
        self._tally.open(keys, at_ms.tolist())
        if self.duplicated_part:
            again = np.flatnonzero(self._again.random(len(keys)) < self.duplicated_part)
            late_ms = np.minimum(at_ms[again] + self._again.random(len(again)) * DUPLICATE_MS, end_ms)
            requests += [_again(requests[at], late) for at, late in zip(again.tolist(), late_ms.tolist(), strict=True)]
            at_ms, order = _in_order(np.concatenate([at_ms, late_ms]))
            requests = [requests[at] for at in order]
        self._write(requests, at_ms + START_MS)

    def _write(self, requests: list[Request], at_ms: Numbers) -> None:
        shards = self._shards.integers(0, len(self._requests), len(requests))
        visible_ms = at_ms + self._world.hops.many_ms(len(requests))
        told: list[Offered] = []
        for number, partition in enumerate(self._requests):
            own = np.flatnonzero(shards == number)
            if not len(own):
                continue
            own_requests = [requests[at] for at in own.tolist()]
            if self._watchers:
                start = partition.end
                own_ms = at_ms[own].tolist()
                told += [(at, request, number, start + index) for index, (at, request) in enumerate(zip(own_ms, own_requests, strict=True))]
            own_visible_ms = np.maximum.accumulate(np.maximum(visible_ms[own], partition.latest_ms)).tolist()
            partition.extend(own_requests, own_visible_ms)
            owner = self._world.owners[number]
            if owner is not None:
                owner.wake(own_visible_ms[0])
        if told:
            told.sort(key=_time_of)
            self._untold.extend(told)

    def tell(self, now_ms: float) -> None:
        """Let watchers know of what has come by now."""
        untold, told = self._untold, list[Offered]()
        while untold and untold[0][0] <= now_ms:
            told.append(untold.popleft())
        if told:
            for watcher in self._watchers:
                watcher.offered(told)


def _time_of(row: tuple[float, *tuple[object, ...]]) -> float:
    return row[0]


def _in_order(at_ms: Numbers) -> tuple[Numbers, list[int]]:
    """Sorted times, and the place that each had."""
    order = np.argsort(at_ms, kind="stable")
    return at_ms[order], order.tolist()


def _picked(values: Sequence[ValueT], at: NDArray[np.intp]) -> list[ValueT]:
    """One for each request: all requests share the few values that there are."""
    return [values[0]] * len(at) if len(values) == 1 else [values[place] for place in at.tolist()]


def _timeout_ms(value: float) -> int:
    return int(max(value, 1.0))


def _requests(keys: Iterable[bytes], at_ms: Numbers, drawn: list[_Drawn], order: list[int]) -> list[Request]:
    """The records, at these times; `order`: places in what was drawn, one load after the other, where there are several."""
    received_ms: list[int] = (at_ms + START_MS).astype(np.int64).tolist()
    if len(drawn) == 1:
        (one,) = drawn
        return list(map(Request, keys, received_ms, repeat(one.endpoint), one.floors, one.timeouts_ms, one.tenants, repeat(one.rows)))
    asked = [
        row for part in drawn for row in zip(repeat(part.endpoint), part.floors, part.timeouts_ms, part.tenants, repeat(part.rows), strict=False)
    ]
    return [Request(key, received, *asked[at]) for key, received, at in zip(keys, received_ms, order, strict=True)]


def _again(request: Request, at_ms: float) -> Request:
    return msgspec.structs.replace(request, received_ms=int(START_MS + at_ms))

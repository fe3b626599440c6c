"""From parts of a crew to its workers: who spends how much of its time on which variant, whoever hosts it already first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from scaler.optimizers.capacity import Capacity, Crew
from scaler.optimizers.snapshot import Worker

SCRAP = 0.02
"""A smaller part of a worker is not worth a load."""


def held_by(worker: Worker) -> frozenset[str]:
    """What the worker has, or is loading: keeping it costs nothing more."""
    return frozenset(worker.hosted) | frozenset(worker.binding.variants if worker.binding is not None else ())


class Seat:
    """One worker while its crew is packed."""

    __slots__ = ("busy", "held", "left", "memory_left", "worker")

    def __init__(self, worker: Worker, memory_bytes: int, held: frozenset[str]) -> None:
        self.worker = worker
        self.held = held
        self.left = 1.0
        self.memory_left = memory_bytes
        self.busy: dict[str, float] = {}
        """Time by variant, in the order in which they came."""


class Packing:
    """Packs one crew. Greedy in two passes: time goes to those that host a variant, then to whoever has most time left."""

    def __init__(self, crew: Crew, capacity: Capacity, like: Sequence[Sequence[str]] = ()) -> None:
        """`like`: an earlier hosting of the crew, to start from instead of what its workers have."""
        self._crew, self._capacity = crew, capacity
        held = [frozenset(hosted) for hosted in like] or [held_by(worker) for worker in crew.workers]
        self.seats = [Seat(worker, crew.memory_bytes_max, each) for worker, each in zip(crew.workers, held, strict=True)]
        self._memory = {key: capacity.memory_bytes(crew, (key,)) for key in capacity.variants if crew.type in capacity.variants[key].costs}

    def pin(self) -> None:
        """What workers have, they keep, as far as it is allowed and memory goes."""
        for seat in self.seats:
            ready = frozenset(seat.worker.hosted)
            for key in sorted(seat.held, key=lambda key: (key not in ready, key)):
                self._host_idle(seat, key)

    def pack(self, wanted: Mapping[str, float]) -> float:
        """Give every variant so many workers' time; returns the time that found no place."""
        missing = self._place_all(wanted)
        for key in sorted(missing, key=lambda key: (-missing[key], key)):
            self._squeeze(key, missing[key])
        if missing:
            # With more places to choose from, the program finds a way around what is in short supply.
            self.stretch(wanted)
        return sum(missing.values())

    def add(self, wanted: Mapping[str, float]) -> None:
        """As `pack`, but nobody gives way for what finds no place."""
        self._place_all(wanted)

    def stretch(self, wanted: Mapping[str, float]) -> None:
        """Give all the time that is left, in these parts."""
        total, left = sum(wanted.values()), sum(max(seat.left, 0.0) for seat in self.seats)
        if total > 0.0 and left > SCRAP:
            self._place_all({key: time * left / total for key, time in wanted.items()})

    def _place_all(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """Returns what found no place."""
        left = {key: time for key, time in wanted.items() if time > 1e-9}
        holders: dict[str, list[Seat]] = {key: [] for key in left}
        for seat in self.seats:
            for key in seat.held | seat.busy.keys():
                if key in holders:
                    holders[key].append(seat)
        # The scarcest first: it has the fewest places to go.
        for key in sorted(left, key=lambda key: (len(holders[key]) - left[key], key)):
            left[key] -= self._keep(key, left[key], sorted(holders[key], key=_least_wanted))
        for key in sorted(left, key=lambda key: (-left[key], key)):
            left[key] -= self._fill(key, left[key])
        return {key: time for key, time in left.items() if time > 1e-6}

    def _squeeze(self, key: str, time: float) -> None:
        """A place for what found none, in workers without time left: the program divides their time anew. Where there is no memory either, a variant
        with many hosts makes room."""
        able = [seat for seat in self.seats if key not in seat.busy and self._room(seat, key)]
        wanted = max(round(time), 1)
        for seat in sorted(able, key=lambda seat: (key not in seat.held, len(seat.busy), seat.worker.name))[:wanted]:
            self._give(seat, key, 0.0)
        for _ in range(wanted - len(able)):
            if not self._displace(key):
                break

    def _displace(self, key: str) -> bool:
        """Host it in place of the variant of whose hosts one more or less matters least; False where that would be no gain."""
        hosts: dict[str, int] = {}
        for seat in self.seats:
            for other in seat.busy:
                hosts[other] = hosts.get(other, 0) + 1
        best: tuple[float, str, Seat, str] | None = None
        for seat in self.seats:
            for other, time in seat.busy.items():
                if hosts[other] > hosts.get(key, 0) + 1 and key not in seat.busy and self._memory[key] <= seat.memory_left + self._memory[other]:
                    rank = (max(time, SCRAP) / hosts[other], seat.worker.name, seat, other)
                    best = rank if best is None or rank[:2] < best[:2] else best
        if best is None:
            return False
        seat, other = best[2], best[3]
        seat.left += seat.busy.pop(other)
        seat.memory_left += self._memory[other]
        self._give(seat, key, 0.0)
        return True

    def place(self, seat: Seat, times: Mapping[str, float]) -> None:
        """Give one worker what was decided elsewhere, as far as its memory goes."""
        for key, time in times.items():
            if self._room(seat, key):
                self._give(seat, key, min(time, max(seat.left, 0.0)))

    def widen(self, spares: Mapping[str, Sequence[str]], kin: Mapping[str, Sequence[str]], variants_max: int) -> None:
        """Where memory allows, workers keep what they have, and host more variants: of their own tasks, and of those that `kin` names for each
        (by task, most wanted first), up to so many in all."""
        for number, seat in enumerate(self.seats):
            for key in sorted(seat.worker.hosted):
                self._host_idle(seat, key)
            own = dict.fromkeys(self._capacity.variants[key].task for key in sorted(seat.busy, key=lambda key, busy=seat.busy: (-busy[key], key)))
            every = list(dict.fromkeys(task for mine in own for task in kin.get(mine, ()) if task not in own and task in spares))
            # Each worker begins elsewhere, so that tasks for which memory does not go everywhere are hosted alike often.
            at = number % max(len(every), 1)
            others = [*every[at:], *every[:at]]
            for key in (*(key for task in own for key in spares.get(task, ())), *_by_rank(spares, others)):
                if len(seat.busy) >= variants_max:
                    break
                self._host_idle(seat, key)

    def _host_idle(self, seat: Seat, key: str) -> bool:
        if key in seat.busy or key not in self._memory or not self._capacity.can_host(self._crew, key) or not self._room(seat, key):
            return False
        self._give(seat, key, 0.0)
        return True

    def _keep(self, key: str, time: float, seats: Sequence[Seat]) -> float:
        """Time for those that host it already, one after the other, so that the rest of them stays free for variants that nobody hosts yet."""
        given = 0.0
        for seat in seats:
            if given >= time - 1e-9:
                break
            if seat.left > 1e-9 and self._room(seat, key):
                part = min(time - given, seat.left)
                self._give(seat, key, part)
                given += part
        return given

    def _fill(self, key: str, time: float) -> float:
        """Those with most time left, wholly; what remains goes to the one that it fits tightest."""
        able = sorted((seat for seat in self.seats if seat.left > 1e-6 and self._room(seat, key)), key=lambda seat: -seat.left)
        given, at = 0.0, 0
        while at < len(able) and time - given >= able[at].left:
            seat = able[at]
            if seat.left < SCRAP and time > SCRAP:
                return given
            given += seat.left
            self._give(seat, key, seat.left)
            at += 1
        missing = time - given
        if at < len(able) and missing > 1e-6:
            enough = [seat for seat in able[at:] if seat.left >= missing]
            seat = min(enough, key=lambda seat: (seat.left, seat.worker.name))
            self._give(seat, key, missing)
            given = time
        return given

    def _room(self, seat: Seat, key: str) -> bool:
        return key in seat.busy or not self._crew.memory_bytes_max or self._memory[key] <= seat.memory_left

    def _give(self, seat: Seat, key: str, time: float) -> None:
        if key not in seat.busy:
            seat.busy[key] = 0.0
            seat.memory_left -= self._memory[key]
        seat.busy[key] += time
        seat.left -= time


def _by_rank(spares: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> Iterator[str]:
    """The first of each task, then the second of each."""
    for rank in range(max((len(spares[task]) for task in tasks), default=0)):
        yield from (spares[task][rank] for task in tasks if rank < len(spares[task]))


def _least_wanted(seat: Seat) -> tuple[bool, int, float, str]:
    """Workers that have begun before fresh ones, those that hold little else before those that hold much."""
    return not seat.busy, len(seat.held), seat.left, seat.worker.name

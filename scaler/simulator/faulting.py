"""Makes go wrong what a scenario says, when it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from scaler.simulator.agenda import START_MS
from scaler.simulator.arriving import Arriving
from scaler.simulator.chance import FAULTS, generator
from scaler.simulator.dispatching import SimulatedDispatcher
from scaler.simulator.errors import InvalidScenario
from scaler.simulator.membership import Membership
from scaler.simulator.planning import Planning
from scaler.simulator.scenario import Fault
from scaler.simulator.working import SimulatedWorker
from scaler.simulator.world import World

SILENT_PART = 0.25
"""Deaths of workers that no supervisor tells of: their silence does."""
Act = Callable[[], None]
PartT = TypeVar("PartT", SimulatedWorker, SimulatedDispatcher)


class Faults:
    """Each fault has a beginning and an end; both are events."""

    def __init__(
        self, world: World, seed: int, workers: Sequence[SimulatedWorker], dispatchers: Sequence[SimulatedDispatcher],
        membership: Membership, planning: Planning, arriving: Arriving,
    ) -> None:  # fmt: skip
        self._world, self._workers, self._dispatchers = world, workers, dispatchers
        self._membership, self._planning, self._arriving = membership, planning, arriving
        self._kinds: dict[str, Callable[[Fault, np.random.Generator], tuple[Act, Act]]] = {
            "worker": self._worker,
            "dispatcher": self._dispatcher,
            "planner": self._planner,
            "slow": self._slow,
            "skew": self._skew,
            "duplicates": self._duplicates,
            "delays": self._delays,
            "load": self._load,
        }
        self._down: dict[str, int] = {}
        """How many faults keep a process down now."""
        for number, fault in enumerate(world.scenario.faults):
            if fault.kind not in self._kinds:
                raise InvalidScenario(f"faults: no kind {fault.kind!r}; there are {', '.join(self._kinds)}")
            begin, end = self._kinds[fault.kind](fault, generator(seed, FAULTS, 0, number))
            at_ms = START_MS + fault.at_s * 1e3
            world.agenda.schedule(at_ms, _do, begin)
            world.agenda.schedule(at_ms + fault.lasts_s * 1e3, _do, end)

    def _picked(self, parts: Sequence[PartT], fault: Fault, draws: np.random.Generator) -> PartT:
        if not fault.target:
            return parts[int(draws.integers(len(parts)))]
        found = next((part for part in parts if part.name == fault.target), None)
        if found is None:
            known = ", ".join(part.name for part in parts[:10])
            raise InvalidScenario(f"faults: {fault.kind} {fault.target!r} is not there; there are {known}")
        return found

    def _goes_down(self, name: str) -> bool:
        self._down[name] = self._down.get(name, 0) + 1
        return self._down[name] == 1

    def _comes_up(self, name: str) -> bool:
        self._down[name] -= 1
        return self._down[name] == 0

    def _worker(self, fault: Fault, draws: np.random.Generator) -> tuple[Act, Act]:
        worker = self._picked(self._workers, fault, draws)
        noticed = bool(draws.random() >= SILENT_PART)

        def begin() -> None:
            if self._goes_down(worker.name):
                worker.die(noticed=noticed)

        def end() -> None:
            if self._comes_up(worker.name):
                worker.start()

        return begin, end

    def _dispatcher(self, fault: Fault, draws: np.random.Generator) -> tuple[Act, Act]:
        dispatcher = self._picked(self._dispatchers, fault, draws)

        def begin() -> None:
            if self._goes_down(dispatcher.name):
                self._membership.die(dispatcher)

        def end() -> None:
            if self._comes_up(dispatcher.name):
                self._membership.come_back(dispatcher)

        return begin, end

    def _planner(self, _fault: Fault, _draws: np.random.Generator) -> tuple[Act, Act]:
        def begin() -> None:
            if self._goes_down("planner"):
                self._planning.die()

        def end() -> None:
            if self._comes_up("planner"):
                self._planning.start()

        return begin, end

    def _slow(self, fault: Fault, draws: np.random.Generator) -> tuple[Act, Act]:
        worker = self._picked(self._workers, fault, draws)

        def begin() -> None:
            worker.slower *= fault.factor

        def end() -> None:
            worker.slower /= fault.factor

        return begin, end

    def _skew(self, fault: Fault, draws: np.random.Generator) -> tuple[Act, Act]:
        worker = self._picked(self._workers, fault, draws)

        def begin() -> None:
            worker.skew_ms += fault.skew_ms

        def end() -> None:
            worker.skew_ms -= fault.skew_ms

        return begin, end

    def _duplicates(self, fault: Fault, _draws: np.random.Generator) -> tuple[Act, Act]:
        def begin() -> None:
            self._world.duplicated_part = self._arriving.duplicated_part = fault.part

        def end() -> None:
            self._world.duplicated_part = self._arriving.duplicated_part = 0.0

        return begin, end

    def _delays(self, fault: Fault, _draws: np.random.Generator) -> tuple[Act, Act]:
        def begin() -> None:
            self._world.hops.slow_part, self._world.hops.slower = fault.part, fault.factor

        def end() -> None:
            self._world.hops.slow_part, self._world.hops.slower = 0.0, 1.0

        return begin, end

    def _load(self, fault: Fault, draws: np.random.Generator) -> tuple[Act, Act]:
        keys = sorted(self._world.specs)
        variant = fault.target or keys[int(draws.integers(len(keys)))]
        if variant not in self._world.specs:
            raise InvalidScenario(f"faults: variant {fault.target!r} is not there; there are {', '.join(keys[:10])}")

        def begin() -> None:
            for worker in self._workers:
                worker.unloadable |= {variant}

        def end() -> None:
            for worker in self._workers:
                worker.unloadable -= {variant}

        return begin, end


def _do(act: Act) -> None:
    act()

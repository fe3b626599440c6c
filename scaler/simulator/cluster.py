"""Builds the simulated cluster of a scenario, and runs it from before the first request until after the last deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.policy.settings import DispatcherSettings
from scaler.simulator.agenda import START_MS
from scaler.simulator.arriving import Arriving
from scaler.simulator.baselines.batchings import batching
from scaler.simulator.chance import COMPUTING, generator, normals
from scaler.simulator.costs import Costs
from scaler.simulator.dispatching import SimulatedDispatcher
from scaler.simulator.errors import InvalidScenario
from scaler.simulator.faulting import Faults
from scaler.simulator.graphing import Graphing, best_accuracies
from scaler.simulator.membership import Membership
from scaler.simulator.planning import Planning
from scaler.simulator.result import Result
from scaler.simulator.scenario import Scenario
from scaler.simulator.stages import Stages
from scaler.simulator.tally import Tally
from scaler.simulator.watching import Watcher
from scaler.simulator.working import SimulatedWorker
from scaler.simulator.world import World
from schemas.limits import Limits

REPORT_MS = 1_000.0
LEAD_IN_MS, LEAD_IN_MS_MAX = 5_000.0, 120_000.0
EARLY, LATE = "early", "late"
EARLY_ROWS_MAX = 1 << 24
EARLY_WINDOW_MS = 1e9
EARLY_LEASE_FACTOR = 20.0
"""A lane holds all that was ever sent to it: what waits there is not lost."""
AFTER_MS = 3_000.0
"""The run goes on for so long after the last deadline and the end of the last fault."""


class Cluster:
    """All parts over one world."""

    def __init__(
        self, scenario: Scenario, seed: int, make_planning: Callable[[World], Planning],
        watchers: Sequence[Watcher], traces: Mapping[str, NDArray[np.float64]],
    ) -> None:  # fmt: skip
        if scenario.control.binding not in (EARLY, LATE):
            raise InvalidScenario(f"control: binding is {EARLY!r} or {LATE!r}, not {scenario.control.binding!r}")
        graphing = Graphing(scenario, seed)
        scenario = msgspec.structs.replace(scenario, catalog=graphing.catalog)
        self.scenario, self.seed = scenario, seed
        self.tally = Tally(
            [load.endpoint for load in scenario.loads],
            duration_s=scenario.duration_s,
            warm_up_s=scenario.warm_up_s,
            window_s=scenario.window_s,
        )
        self.world = world = World(scenario, seed, watchers, self.tally, START_MS - lead_in_ms(scenario))
        self.arriving = Arriving(scenario, seed, traces, world)
        world.arriving = self.arriving
        settings, limits = DispatcherSettings(), Limits()
        if scenario.control.binding == EARLY:
            settings = DispatcherSettings(window_ms=EARLY_WINDOW_MS, lease_factor=EARLY_LEASE_FACTOR)
            limits = Limits(lane_rows_max=EARLY_ROWS_MAX, worker_queue_rows_max=EARLY_ROWS_MAX)
        self.dispatchers = [
            SimulatedDispatcher(world, f"dispatcher-{number}", settings, limits, graphing.open) for number in range(scenario.dispatchers)
        ]
        self.workers = _workers(world, Stages(world, graphing), seed)
        self.planning = make_planning(world)
        self.membership = Membership(world.agenda, self.dispatchers, scenario.shards)
        Faults(world, seed, self.workers, self.dispatchers, self.membership, self.planning, self.arriving)
        self._busy_ms: dict[str, float] = {}

    def run(self, on_window: Callable[[float], None] | None) -> None:
        """The whole of it."""
        agenda, scenario = self.world.agenda, self.scenario
        self.membership.start()
        for number, worker in enumerate(self.workers):
            worker.start(number / len(self.workers) * REPORT_MS)
        self.planning.start()
        self.arriving.begin()
        window_ms = scenario.window_s * 1e3
        for window in range(int(np.ceil(scenario.duration_s / scenario.window_s - 1e-9))):
            if window * scenario.window_s >= scenario.warm_up_s and not self._busy_ms:
                self._busy_ms = {worker.name: worker.busy_ms for worker in self.workers}
            agenda.run(START_MS + min((window + 1) * window_ms, scenario.duration_s * 1e3))
            waiting = sum(dispatcher.live.waiting for dispatcher in self.dispatchers if dispatcher.live is not None)
            self.tally.look(window, waiting, sum(worker.alive for worker in self.workers))
            if on_window is not None:
                on_window(min((window + 1) * scenario.window_s, scenario.duration_s))
        self._utilised_ms = {worker.name: worker.busy_ms - self._busy_ms.get(worker.name, 0.0) for worker in self.workers}
        mended_ms = max((START_MS + (fault.at_s + fault.lasts_s) * 1e3 for fault in scenario.faults), default=0.0)
        agenda.run(max(self.arriving.last_deadline_ms, mended_ms) + AFTER_MS)
        if self.world.blind_ms:
            self.tally.expire_rest()
        for watcher in self.world.watchers:
            watcher.ended(agenda.now_ms)

    def result(self) -> Result:
        """What came of it."""
        scenario = self.scenario
        endpoints, total = self.tally.results(best_accuracies(scenario))
        rows: dict[str, int] = {}
        for worker in self.workers:
            for variant, count in worker.computed_rows.items():
                rows[variant] = rows.get(variant, 0) + count
        return Result(
            scenario=scenario.name,
            optimizer=scenario.control.optimizer,
            seed=self.seed,
            endpoints=endpoints,
            total=total,
            utilisation=self._utilisation(),
            variants=dict(sorted(rows.items())),
            plans=tuple(self.planning.made),
            virtual_s=scenario.duration_s,
        )

    def _utilisation(self) -> dict[str, float]:
        counted_ms = max(self.scenario.duration_s - self.scenario.warm_up_s, 1e-9) * 1e3
        by_type: dict[str, list[float]] = {}
        for worker in self.workers:
            by_type.setdefault(worker.group.type, []).append(self._utilised_ms[worker.name] / counted_ms)
        return {name: sum(parts) / len(parts) for name, parts in sorted(by_type.items())}


def _workers(world: World, stages: Stages, seed: int) -> list[SimulatedWorker]:
    scenario = world.scenario
    drawn = normals(generator(seed, COMPUTING))
    queue, rows_max = batching(scenario.control.batching), EARLY_ROWS_MAX if scenario.control.binding == EARLY else None
    costs = {group.type: Costs(scenario.variants, group.type, drawn, scenario.noise) for group in scenario.workers}
    return [
        SimulatedWorker(world, f"{group.type}-{at}-{number}", group, costs[group.type], stages, queue, hold_rows_max=rows_max)
        for at, group in enumerate(scenario.workers)
        for number in range(group.count)
    ]


def lead_in_ms(scenario: Scenario) -> float:
    """Time before the first request in which workers report, the first plan is made, and its variants are loaded."""
    loads_ms = max(
        (sum(variant.costs[group.type].load_ms for variant in scenario.variants if group.type in variant.costs) for group in scenario.workers),
        default=0.0,
    )
    return min(LEAD_IN_MS + loads_ms, LEAD_IN_MS_MAX)

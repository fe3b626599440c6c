"""Runs a scenario in virtual time over the policies that serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaler.optimizers.optimizer import Optimizer
from scaler.simulator.cluster import Cluster
from scaler.simulator.planning import OptimizerPlanning, Planning, StaticPlanning
from scaler.simulator.result import Result
from scaler.simulator.scenario import Scenario
from scaler.simulator.watching import Watcher
from scaler.simulator.world import World


class Outside(msgspec.Struct, frozen=True):
    """What a run needs and a pure package cannot get by itself."""

    traces: Mapping[str, NDArray[np.float64]] = {}
    """Time stamps in ms by `Arrivals.file`, as read from the file; sorted."""
    clock_s: Callable[[], float] | None = None
    """A clock, for `PlanMade.solve_ms` alone: for an optimizer time stands still while it thinks, so that plans do not depend on the machine."""


def simulate(
    scenario: Scenario,
    seed: int,
    optimizers: Callable[[str], Optimizer] | Optimizer | None = None,
    *,
    watchers: Sequence[Watcher] = (),
    on_window: Callable[[float], None] | None = None,
    outside: Outside | None = None,
) -> Result:
    """One run of a scenario: the same scenario and seed give the same result, and the same arrivals whatever the optimizer.

    `optimizers` makes the one that `scenario.control.optimizer` names, or is one; None: the static plan, every worker hosts what fits.
    `watchers` see what happens as it happens. `on_window(at_s)` is called at the end of every window (for a progress bar).
    `Result.violations` and `Result.real_s` are left to the caller. Raises InvalidWorkload for loads that cannot be generated, and
    InvalidScenario for one that contradicts itself.
    """
    outside = outside or Outside()

    def make_planning(world: World) -> Planning:
        if optimizers is None:
            return StaticPlanning(world)
        optimizer = optimizers if hasattr(optimizers, "propose") else cast("Callable[[str], Optimizer]", optimizers)(scenario.control.optimizer)
        return OptimizerPlanning(world, cast("Optimizer", optimizer), seed, outside.clock_s)

    cluster = Cluster(scenario, seed, make_planning, watchers, outside.traces)
    cluster.run(on_window)
    return cluster.result()

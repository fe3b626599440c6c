"""Runs every optimizer at every point of a sweep under every seed, in processes, and gathers what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import msgspec

from deploy.simulation.execution import job_of, made_of, work
from deploy.simulation.processes import Outcome, Processes
from deploy.simulation.report import Report, Run, cluster_in_words, offered_in_words, rows_of
from scaler.simulator.scenario import Scenario

OnProgress = Callable[[float, int], None]
"""Gets the part of all virtual time that is done, and how many runs have ended."""


class Planned(msgspec.Struct, frozen=True):
    """One run to be made."""

    scenario: Scenario
    seed: int
    point: dict[str, str] = {}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be compared: the scenario at each point, all optimizers and seeds on the same arrivals."""

    points: tuple[tuple[dict[str, str], Scenario], ...]
    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]

    def planned(self) -> list[Planned]:
        """Every run, by point, optimizer and seed."""
        return [
            Planned(with_optimizer(scenario, optimizer), seed, point)
            for point, scenario in self.points
            for optimizer in self.optimizers
            for seed in self.seeds
        ]


def with_optimizer(scenario: Scenario, name: str) -> Scenario:
    """The same scenario, steered by another optimizer; options are those of the one that it named."""
    options = scenario.control.options if scenario.control.optimizer == name else {}
    return msgspec.structs.replace(scenario, control=msgspec.structs.replace(scenario.control, optimizer=name, options=options))


def compare(comparison: Comparison, processes: int, on_progress: OnProgress | None = None) -> Report:
    """Make all runs, `processes` at once. A run that fails has its error in its row; the others go on."""
    started_s = time.monotonic()
    planned = comparison.planned()
    with Processes(work, min(processes, len(planned))) as pool:
        runs = run_all(planned, pool, on_progress)
    scenario = comparison.points[0][1]
    return Report(
        scenario=scenario.name,
        description=scenario.description,
        provenance=scenario.provenance,
        offered=("at the first point: " if len(comparison.points) > 1 else "") + offered_in_words(scenario),
        cluster=cluster_in_words(scenario),
        duration_s=scenario.duration_s,
        warm_up_s=scenario.warm_up_s,
        seeds=comparison.seeds,
        optimizers=comparison.optimizers,
        swept=tuple(next(iter(comparison.points))[0]),
        rows=rows_of(runs),
        runs=tuple(runs),
        real_s=time.monotonic() - started_s,
    )


def run_all(planned: Sequence[Planned], pool: Processes, on_progress: OnProgress | None = None) -> list[Run]:
    """Make these runs; in their order."""
    done_s = [0.0] * len(planned)
    total_s = sum(run.scenario.duration_s for run in planned)
    ended = 0

    def told(number: int, at_s: float) -> None:
        nonlocal ended
        ended += math.isinf(at_s)
        done_s[number] = min(at_s, planned[number].scenario.duration_s)
        if on_progress is not None:
            on_progress(sum(done_s) / total_s, ended)

    outcomes = pool.run([job_of(run.scenario, run.seed) for run in planned], told)
    return [_run_of(run, outcome) for run, outcome in zip(planned, outcomes, strict=True)]


def _run_of(planned: Planned, outcome: Outcome) -> Run:
    run = Run(optimizer=planned.scenario.control.optimizer, seed=planned.seed, point=planned.point, error=outcome.error)
    if outcome.error:
        return run
    made = made_of(outcome.value)
    return msgspec.structs.replace(run, result=made.result, notes=made.notes)

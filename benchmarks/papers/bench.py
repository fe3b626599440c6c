"""Makes the runs that rows ask for: variations of a scenario file on the same arrivals, in processes that stay for the whole bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from deploy.simulation.comparing import Planned, run_all
from deploy.simulation.known import known
from deploy.simulation.processes import Processes
from deploy.simulation.report import Report, Row, cluster_in_words, offered_in_words, rows_of
from deploy.simulation.scenario_files import load_scenario
from scaler.optimizers.registry import DEFAULT_OPTIMIZER, optimizer_names
from scaler.simulator.scenario import Scenario

SCENARIOS = Path(__file__).parent / "scenarios"
Changes = Mapping[str, str]
"""Values by path that hold instead of the scenario file's."""
Say = Callable[[str], None]


class Bench:
    """What a row runs on."""

    def __init__(self, pool: Processes, seeds: Sequence[int], say: Say) -> None:
        self.seeds = tuple(seeds)
        self.say = say
        self._pool = pool
        self._known = known()

    def scenario(self, name: str, changes: Changes | None = None) -> Scenario:
        """A scenario of this folder. Raises CatalogError."""
        return load_scenario(SCENARIOS / f"{name}.yaml", self._known, changes)

    def compare(self, name: str, variations: Mapping[str, Changes], common: Changes | None = None, seeds: Sequence[int] | None = None) -> Report:
        """Each variation (by its label) under every seed; a label stands where a report has an optimizer's name."""
        seeds = self.seeds if seeds is None else tuple(seeds)
        scenarios = {label: self.scenario(name, {**(common or {}), **changes}) for label, changes in variations.items()}
        planned = {(label, seed): Planned(scenario, seed) for label, scenario in scenarios.items() for seed in seeds}
        made = run_all(list(planned.values()), self._pool)
        runs = tuple(msgspec.structs.replace(run, optimizer=label) for (label, _), run in zip(planned, made, strict=True))
        first = next(iter(scenarios.values()))
        report = Report(
            scenario=first.name,
            description=first.description,
            provenance=first.provenance,
            offered=offered_in_words(first),
            cluster=cluster_in_words(first),
            duration_s=first.duration_s,
            warm_up_s=first.warm_up_s,
            seeds=seeds,
            optimizers=tuple(variations),
            rows=rows_of(runs),
            runs=runs,
        )
        for row in report.rows:
            self.say(f"  {summary(row)}")
        return report

    def rows(self, name: str, variations: Mapping[str, Changes], seeds: Sequence[int]) -> dict[str, Row]:
        """The same, as rows by label."""
        return {row.optimizer: row for row in self.compare(name, variations, seeds=seeds).rows}


def summary(row: Row) -> str:
    """One line of progress."""
    if row.attainment is None or row.offered_rps is None:
        return f"{row.optimizer}: {'; '.join(row.notes)}"
    accuracy = "-" if row.accuracy_served is None else f"{row.accuracy_served.mean:.4f}"
    notes = f" ({'; '.join(row.notes)})" if row.notes else ""
    return f"{row.optimizer}: {row.offered_rps.mean:.0f}/s offered, {row.attainment.mean:.2%} attained, accuracy {accuracy}{notes}"


def by_optimizer(names: Sequence[str]) -> dict[str, Changes]:
    """A variation for each optimizer."""
    return {name: {"control.optimizer": name} for name in names}


def all_optimizers() -> tuple[str, ...]:
    """Every optimizer that is installed, ours last."""
    return tuple(sorted(optimizer_names(), key=lambda name: (name == DEFAULT_OPTIMIZER, name)))

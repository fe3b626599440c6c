"""Runs seeds of a scenario under their checkers; `python seed_runs.py SCENARIO SEED` repeats one and says what was seen."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import msgspec
from sim_scenarios import SCENARIOS, run_checked

REGRESSIONS = Path(__file__).with_name("regression_seeds.txt")
Seed = tuple[str, int]


class Runs(msgspec.Struct):
    """What came of some seeds."""

    seeds: int = 0
    failures: list[str] = []
    outcomes: dict[str, int] = {}
    faults: dict[str, int] = {}

    def add(self, other: Runs) -> None:
        self.seeds += other.seeds
        self.failures += other.failures
        self.outcomes = dict(Counter(self.outcomes) + Counter(other.outcomes))
        self.faults = dict(Counter(self.faults) + Counter(other.faults))


def run_seeds(seeds: list[Seed]) -> Runs:
    """All of them, whatever happens to some."""
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failures: list[str] = []
    for name, seed in seeds:
        scenario = SCENARIOS[name](seed)
        faults.update(fault.kind for fault in scenario.faults)
        try:
            result, violations = run_checked(scenario, seed)
        except Exception as error:  # a seed that breaks the run is a finding like any other, and others are to be run too
            failures.append(_failure(name, seed, f"{type(error).__name__}: {error}"))
            continue
        if violations:
            failures.append(_failure(name, seed, f"{violations[0].checker}: {violations[0].what}"))
        if result is not None:
            total = result.total
            outcomes.update(completed=total.completed, expired=total.expired, rejected=total.rejected, failed=total.failed)
    return Runs(len(seeds), failures, dict(outcomes), dict(faults))


def _failure(name: str, seed: int, what: str) -> str:
    return f'{what}\n    repeat it: python tests/sim/seed_runs.py "{name}" {seed}'


def regression_seeds(file: Path = REGRESSIONS) -> list[Seed]:
    """Those of the file."""
    lines = [line.partition("#")[0].rsplit(maxsplit=1) for line in file.read_text().splitlines()]
    return [(parts[0].strip(), int(parts[1])) for parts in lines if len(parts) == 2]


if __name__ == "__main__":
    scenario = SCENARIOS[sys.argv[1]](int(sys.argv[2]))
    result, violations = run_checked(scenario, int(sys.argv[2]))
    sys.stdout.writelines(f"{violation.at_ms:.1f} {violation.checker}: {violation.what}\n" for violation in violations)
    sys.stdout.write(f"{len(violations)} violations; {result.total if result is not None else 'the run broke down'}\n")
    sys.exit(bool(violations))

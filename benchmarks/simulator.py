"""`python -m benchmarks.simulator`: requests of virtual work for each second of CPU, on fashion; large clusters; memory of longer runs."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
from collections.abc import Sequence

import msgspec

from deploy.families.fashion import fashion
from deploy.process_memory import settle_memory
from scaler.simulator.checking.checkers import Checkers
from scaler.simulator.result import Result
from scaler.simulator.run import simulate
from scaler.simulator.scenario import Arrivals, Choice, Control, Hop, Load, Scenario, WorkerGroup

MEGABYTE = 1e6
LARGE = ((1_000, 60_000.0), (10_000, 60_000.0))
"""(workers, requests per virtual second)"""


class Figures(msgspec.Struct, frozen=True):
    """Of one run, or of the best of several."""

    requests: int
    cpu_s: float
    completed: int
    violations: int

    @property
    def requests_per_cpu_s(self) -> float:
        """Including the time in which the cluster starts."""
        return self.requests / self.cpu_s


def scenario(rate_rps: float, workers: int, duration_s: float, dispatchers: int = 1) -> Scenario:
    """Two floors, half a second of time, Poisson arrivals; every worker hosts the whole ladder."""
    family = fashion()
    load = Load(
        endpoint="fashion",
        arrivals=Arrivals(rate_rps=rate_rps),
        floors=(Choice(0.8), Choice(0.9)),
        timeouts_ms=(Choice(500.0),),
    )
    return Scenario(
        name="fashion",
        catalog=family.catalog,
        variants=family.variants,
        workers=(WorkerGroup(type="cpu", count=workers),),
        loads=(load,),
        duration_s=duration_s,
        control=Control(optimizer="static"),
        hop=Hop(),
        dispatchers=dispatchers,
        shards=max(8, dispatchers),
    )


def run(wanted: Scenario, *, checked: bool) -> tuple[Result, int]:
    """The result, and how many violations the checkers saw."""
    checkers = Checkers.of(wanted) if checked else None
    result = simulate(wanted, 1, watchers=[checkers] if checkers is not None else [])
    return result, checkers.seen if checkers is not None else 0


def measure(wanted: Scenario, repeats: int, *, checked: bool) -> Figures:
    """The quickest of some runs: other work on the machine only ever makes them slower."""
    settle_memory()
    found: list[Figures] = []
    for _ in range(repeats):
        began_s = time.process_time()
        result, violations = run(wanted, checked=checked)
        found.append(Figures(result.total.offered, time.process_time() - began_s, result.total.completed, violations))
    return min(found, key=lambda figures: figures.cpu_s)


def tell_large(duration_s: float) -> int:
    """Clusters of many workers: what it costs until all are ready, and for each request then. Returns violations."""
    violations = 0
    for workers, rate_rps in LARGE:
        short, whole = (measure(scenario(rate_rps, workers, lasts_s), 1, checked=False) for lasts_s in (0.1, duration_s))
        each_us = (whole.cpu_s - short.cpu_s) / (whole.requests - short.requests) * 1e6
        violations += whole.violations
        sys.stdout.write(
            f"{workers:,} workers: {short.cpu_s:.1f} s of CPU until they serve, then {each_us:.1f} us for each of {whole.requests:,} requests at "
            f"{rate_rps:,.0f} per virtual second ({whole.completed / whole.requests:.1%} completed)\n"
        )
    return violations


def peak_bytes(wanted: Scenario, *, checked: bool) -> int:
    """The most that Python held during a run, beyond what it held before."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    run(wanted, checked=checked)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, or 1 where a checker saw something."""
    parser = argparse.ArgumentParser(prog="benchmarks.simulator", description="Requests of virtual work per second of CPU.")
    parser.add_argument("--rate", type=float, default=20_000.0, help="requests per virtual second (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--dispatchers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="virtual seconds (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="the quickest counts (default: %(default)s)")
    parser.add_argument("--checkers", choices=("off", "on", "both"), default="both")
    parser.add_argument("--memory", action="store_true", help="peak memory of this run and of one twice as long, in place of speed")
    parser.add_argument("--large", action="store_true", help="clusters of 1,000 and 10,000 workers in place of this one; takes minutes")
    stated = parser.parse_args(arguments)
    if stated.large:
        return 1 if tell_large(stated.seconds) else 0
    wanted = scenario(stated.rate, stated.workers, stated.seconds, stated.dispatchers)
    violations = 0
    for checked in {"off": (False,), "on": (True,), "both": (False, True)}[stated.checkers]:
        name = "checkers on " if checked else "checkers off"
        if stated.memory:
            longer = msgspec.structs.replace(wanted, duration_s=2 * wanted.duration_s)
            once, twice = (peak_bytes(each, checked=checked) / MEGABYTE for each in (wanted, longer))
            sys.stdout.write(f"{name}: peak {once:.1f} MB in {stated.seconds:g} virtual seconds, {twice:.1f} MB in twice that\n")
            continue
        found = measure(wanted, stated.repeats, checked=checked)
        violations += found.violations
        per_request_us = found.cpu_s / found.requests * 1e6
        sys.stdout.write(
            f"{name}: {found.requests_per_cpu_s:,.0f} requests per CPU second ({per_request_us:.1f} us each; {found.requests:,} offered, "
            f"{found.completed / found.requests:.1%} completed, {found.violations} violations)\n"
        )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

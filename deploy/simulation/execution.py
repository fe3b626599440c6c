"""What a process does for one run: reads the traces, makes the optimizer by name, simulates, and tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from deploy.simulation.processes import Going, Progress, Tell, Waiting
from deploy.traces import read_trace
from scaler.optimizers.checking import faults_of
from scaler.optimizers.optimizer import Limits, Optimizer, Proposal
from scaler.optimizers.registry import create_optimizer
from scaler.optimizers.snapshot import Snapshot
from scaler.simulator.checking.checkers import Checkers
from scaler.simulator.result import Result
from scaler.simulator.run import Outside, simulate
from scaler.simulator.scenario import Scenario

GRACE = 5.0
GRACE_S = 5.0
"""How long a proposal may take before its process is ended: so many times its limit (beside a solver's patience), and these seconds more."""
TOLD_EVERY_S = 0.1


class RunJob(msgspec.Struct, frozen=True):
    """One run."""

    scenario: Scenario
    seed: int


class RunMade(msgspec.Struct, frozen=True):
    """What became of it."""

    result: Result
    notes: tuple[str, ...] = ()
    """What the optimizer did wrong."""


_jobs = msgspec.msgpack.Decoder(RunJob)
_made = msgspec.msgpack.Decoder(RunMade)
_encode = msgspec.msgpack.Encoder().encode


class Watched:
    """An optimizer whose every proposal is announced, so that whoever waits outside can end one that never returns; what it does wrong is noted."""

    def __init__(self, optimizer: Optimizer, tell: Tell) -> None:
        self.name, self.source = optimizer.name, optimizer.source
        self.wrong: dict[str, list[str]] = {}
        """What was wrong, each time that it was, by kind."""
        self._optimizer, self._tell = optimizer, tell

    def propose(self, snapshot: Snapshot, limits: Limits) -> Proposal:
        """As the optimizer does; whatever it raises goes on to the caller."""
        self._tell(Waiting(f"optimizer {self.name!r}", limits.left_s * (GRACE + limits.patience) + GRACE_S))
        try:
            proposal = self._optimizer.propose(snapshot, limits)
        except Exception as error:  # a plug-in may raise anything: it is told in its row
            self.wrong.setdefault("raised", []).append(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._tell(Going())
        faults = faults_of(proposal, snapshot)
        if faults:
            self.wrong.setdefault("invalid plan", []).append(faults[0])
        return proposal

    @property
    def notes(self) -> tuple[str, ...]:
        """One for each kind of thing that it did wrong."""
        return tuple(f"{kind} ({len(times)} x), first: {times[0]}" for kind, times in self.wrong.items())


def work(job: bytes, tell: Tell) -> bytes:
    """Run what a RunJob says; returns the Result. Whatever an optimizer raises goes on to the caller."""
    run = _jobs.decode(job)
    told_s = 0.0

    def on_window(at_s: float) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= TOLD_EVERY_S:
            told_s = now_s
            tell(Progress(at_s))

    control = run.scenario.control
    optimizer = Watched(create_optimizer(control.optimizer, control.options), tell)
    return _encode(RunMade(simulated(run.scenario, run.seed, optimizer, on_window), optimizer.notes))


def simulated(scenario: Scenario, seed: int, optimizer: Optimizer, on_window: Callable[[float], None] | None = None) -> Result:
    """One run in this process, watched by the checkers of the promises."""
    started_s = time.monotonic()
    files = {(load.arrivals.file, load.arrivals.column) for load in scenario.loads if load.arrivals.kind == "trace"}
    outside = Outside(traces={file: read_trace(file, column).stamps_ms for file, column in files}, clock_s=time.monotonic)
    checkers = Checkers.of(scenario)
    result = simulate(scenario, seed, optimizer, watchers=[checkers], on_window=on_window, outside=outside)
    return msgspec.structs.replace(result, violations=checkers.violations, real_s=time.monotonic() - started_s)


def job_of(scenario: Scenario, seed: int) -> bytes:
    """What `work` takes."""
    return _encode(RunJob(scenario, seed))


def made_of(value: bytes) -> RunMade:
    """What `work` returned."""
    return _made.decode(value)

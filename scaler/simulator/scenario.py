"""A scenario: cluster, models, load, faults and control of one simulated run; what `headrace simulate FILE` reads."""

from __future__ import annotations

import msgspec

from scaler.optimizers.snapshot import Variant
from schemas.catalog import Catalog


class WorkerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """So many workers that are alike."""

    type: str
    """Key of `Variant.costs`."""
    accelerator: str = "cpu"
    count: int = 1
    memory_bytes: int = 0
    """0: no limit."""
    threads: int = 1


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """When requests come. `kind`: constant, poisson, gamma, mmpp, diurnal, flash, steps or trace; which fields count depends on it."""

    kind: str = "poisson"
    rate_rps: float = 100.0
    """Mean rate; a trace is thinned or thickened to it (0: as recorded)."""
    cv: float = 1.0
    """gamma: coefficient of variation of the gaps."""
    rates_rps: tuple[float, ...] = ()
    """mmpp, steps: the rate of each state or step."""
    hold_s: float = 10.0
    """mmpp, steps: mean (or exact) time in each."""
    period_s: float = 60.0
    """diurnal: one day."""
    amplitude: float = 0.5
    """diurnal: swing, as a part of the mean."""
    peak: float = 3.0
    """flash: the peak, as a multiple of the mean."""
    at_s: float = 10.0
    """flash: when it begins."""
    lasts_s: float = 5.0
    file: str = ""
    """trace: a CSV or JSON-lines file, or the name of a known trace."""
    column: str = ""
    """trace: the column with the time stamps; found by itself where empty."""
    speed: float = 1.0
    """trace: time runs so many times faster."""


class Choice(msgspec.Struct, frozen=True):
    """One value of a mix with its weight."""

    value: float
    weight: float = 1.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Requests to one endpoint."""

    endpoint: str
    arrivals: Arrivals = Arrivals()
    floors: tuple[Choice, ...] = (Choice(0.0),)
    timeouts_ms: tuple[Choice, ...] = (Choice(1_000.0),)
    tenants: dict[str, float] = {}
    """Weights by tenant; empty: one."""
    rows: int = 1
    fan_out: dict[str, dict[str, float]] = {}
    """On a graph, by path of a for_each: mean rows by variant key of the stage that makes them (`*`: any); Poisson around it."""
    branches: dict[str, dict[str, float]] = {}
    """On a graph, by name of a switch: the part of the requests that takes each branch."""


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One way through the log: log-normal with these quantiles, records of a partition stay in order."""

    p50_ms: float = 2.0
    p99_ms: float = 8.0


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that goes wrong. `kind`: worker, dispatcher, planner (dies and comes back), slow (computes `factor` times slower), skew (its clock is
    off by `skew_ms`), duplicates (records are delivered twice), delays (records come `factor` times later), load (a variant cannot be loaded)."""

    kind: str
    at_s: float
    lasts_s: float = 1.0
    target: str = ""
    """Name of a worker, dispatcher or variant; empty: chosen by the seed."""
    factor: float = 2.0
    skew_ms: float = 0.0
    part: float = 0.01
    """duplicates, delays: the part of the records."""


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """How the cluster is steered."""

    optimizer: str = "headrace"
    options: dict[str, float] = {}
    interval_s: float = 10.0
    time_s: float = 1.0
    """Time limit of one proposal."""
    forecast: str = "ewma"
    binding: str = "late"
    """late, or early: each request goes to a lane as soon as it arrives, as systems do that the papers compare with."""
    batching: str = "headrace"
    """headrace, or a baseline: proteus, nexus, aimd."""
    admission: bool = True
    """False: nothing is refused early, as in systems without admission."""
    shares: str = "both"
    """both: the plan's shares decide where it has them; plan: nothing but the plan; load: the dispatcher alone decides."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One run, but for its seed."""

    name: str
    description: str = ""
    provenance: str = ""
    """Where figures and traces come from."""
    catalog: Catalog
    variants: tuple[Variant, ...]
    """Costs by worker type; keys and accuracies as in the catalog."""
    workers: tuple[WorkerGroup, ...]
    loads: tuple[Load, ...]
    duration_s: float = 60.0
    warm_up_s: float = 0.0
    """Left out of all figures."""
    control: Control = Control()
    hop: Hop = Hop()
    noise: float = 0.05
    """Spread of computing times around the profile: they are log-normal between its p50 and p95, times this where the profile has no spread."""
    faults: tuple[Fault, ...] = ()
    shards: int = 8
    dispatchers: int = 1
    window_s: float = 1.0
    """Of the timeline."""

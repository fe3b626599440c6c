"""The snapshot: all that an optimizer may know, of one moment."""

from __future__ import annotations

import msgspec

from schemas.plan import Binding, Plan
from schemas.profile import Latency

READY, LOST = "ready", "lost"
ANY_VARIANT = "*"
"""In `StageDemand.rows`: whichever variant of the stage before answered."""


class FloorDemand(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one endpoint that ask for one floor."""

    floor: float
    """In [0, 1]: what the answer's accuracy must reach, over the whole path."""
    rate_rps: float
    """As measured, requests/s."""
    forecast_rps: float
    """To plan for, requests/s: an upper quantile of what is expected until the next plan."""


class StageDemand(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of an endpoint: stages form a tree, each below the stage whose answer it waits for last."""

    name: str
    """"" for an endpoint without a graph."""
    task: str
    after: str | None = None
    """Name of the stage before; None at the root. Stages stand after those that they wait for."""
    rows: dict[str, float] = {}
    """Mean rows that reach this stage for each row of the stage before (fan-out times the share of its branch), by the variant key that answered
    there (a better detector finds more), `*` for all others; at the root by `*`: rows of a request. Missing: 1."""
    rows_upper: dict[str, float] = {}
    """The same, as an upper quantile."""
    switch: str = ""
    """Of stages that end the branches of one switch, its name: each row is answered by one of them."""

    def rows_after(self, variant: str) -> float:
        """Mean rows here for each row that `variant` answered in the stage before."""
        return self.rows.get(variant, self.rows.get(ANY_VARIANT, 1.0))


class MeasuredPath(msgspec.Struct, frozen=True):
    """End-to-end accuracy of one combination of variants, as `headrace measure` found it."""

    variants: dict[str, str]
    """Variant key by stage name."""
    accuracy: float


class EndpointDemand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of one endpoint."""

    endpoint: str
    stages: tuple[StageDemand, ...]
    floors: tuple[FloorDemand, ...]
    timeout_ms: float
    """Time from arrival to deadline that 95 % of its requests have at least."""
    backlog: int = 0
    """Accepted and not yet started."""
    lag: int = 0
    """Log end minus committed offset."""
    attainment: float = 1.0
    """Of the last interval."""
    measured: tuple[MeasuredPath, ...] = ()
    """Where empty, a path's accuracy is the product of its variants'."""

    @property
    def forecast_rps(self) -> float:
        """Over all floors."""
        return sum(floor.forecast_rps for floor in self.floors)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one variant costs on one type of worker."""

    latency: dict[int, dict[int, Latency]]
    """By threads, then by batch size in rows. At least one entry each."""
    load_ms: float = 0.0
    memory_bytes: int = 0
    learned: bool = False
    """Taken from telemetry, where it differed from the profile."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One variant with its costs."""

    key: str
    """`task/variant`."""
    task: str
    accuracy: float
    """What floors are compared with."""
    accuracy_low: float | None = None
    """Lower bound of what labelled feedback says; None without any."""
    batch_size_max: int = 32
    costs: dict[str, Cost]
    """By worker type; a type that is missing cannot host it."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, dead ones too."""

    name: str
    accelerator: str
    """cpu, gpu, vpu, fpga."""
    type: str
    """Workers of one type are alike: class, device and size. Key of `Variant.costs`."""
    memory_bytes_max: int = 0
    """0: unknown, no limit is kept."""
    threads_max: int = 1
    state: str = READY
    binding: Binding | None = None
    """As the present plan has it."""
    hosted: tuple[str, ...] = ()
    """Variant keys that are ready there now: hosting them further costs no load."""
    refused: dict[str, str] = {}
    """Variants that could not be made ready there, with the reason: quarantined."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that an optimizer may know."""

    at_ms: float
    endpoints: tuple[EndpointDemand, ...]
    variants: tuple[Variant, ...]
    workers: tuple[Worker, ...]
    plan: Plan = Plan()
    """In force now."""
    hop_ms: float = 8.0
    """One way through the log, 99th percentile."""
    interval_ms: float = 10_000.0
    """Until the next periodic plan."""
    lanes_per_class: int = 64
    """Lanes are numbered from 0; no two workers of a class share one."""
    memory: dict[str, float] = {}
    """`Proposal.memory` of the optimizer's last proposal: an optimizer keeps nothing in itself."""

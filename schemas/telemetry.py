"""Telemetry records: what workers and dispatchers say of themselves on {p}.telemetry, as JSON, tagged by `kind`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from schemas.decoding import strict
from schemas.profile import Latency

TELEMETRY_VERSION = 1
Count = Annotated[int, msgspec.Meta(ge=0)]
Rows = Annotated[int, msgspec.Meta(ge=1)]


class HostedVariant(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one worker: `state` is loading, warming, ready, draining or failed (then `reason` says why)."""

    state: str
    reason: str = ""
    latency: dict[Rows, Latency] = {}
    """By batch size in rows: the stored profile, corrected by what was measured since."""
    load_ms: float = 0.0
    memory_bytes: Count = 0
    computed_rows: Count = 0


class BoardState(msgspec.Struct, frozen=True, kw_only=True):
    """How an FPGA board is."""

    overlay: str = ""
    """SHA-256 of the bitfile that is on it; empty: none."""
    clock_mhz: float = 0.0
    """Of its fabric, as the board says."""
    temperature_celsius: float = 0.0
    """0 where there is no sensor."""
    reconfiguration_ms: float = 0.0
    """What the last change of overlays took."""
    power_watts: float = 0.0
    """Of all rails with a sensor; 0 where there is none. An emulated board's is modelled."""


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="worker"):
    """Sent each second and at each change of state; `incarnation` grows with every start of the process."""

    worker: str
    incarnation: int
    accelerator: str
    """The class of the lane that it reads."""
    device: str
    """The device that really computes."""
    host: str
    at_ms: int
    lane: Count | None = None
    state: str = "starting"
    """starting, ready, draining (takes nothing new) or stopped."""
    epoch: int = 0
    """The plan it acts on."""
    credits: Count = 0
    """Rows that it is willing to hold, waiting and running."""
    batch_size_max: int = 32
    variants: dict[str, HostedVariant] = {}
    waiting_rows: Count = 0
    memory_bytes: Count = 0
    memory_bytes_max: Count = 0
    """Device or cgroup memory; 0 where it cannot be told."""
    threads: int = 1
    reason: str = ""
    """Why its device cannot be used now; empty while it can."""
    board: BoardState | None = None
    """Of a worker that drives one."""
    version: int = TELEMETRY_VERSION


class StageCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a graph, since the dispatcher's start."""

    rows: Count = 0
    """Rows that were to be computed: over the rows answered in the stage before, they are fan-out times the share of the branch."""
    done: dict[str, int] = {}
    """Rows answered, by variant key."""
    led_to: dict[str, dict[str, int]] = {}
    """By variant key that answered here: rows that its answers started at once, by stage."""


class EndpointCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint, since the dispatcher's start."""

    arrived: dict[str, int] = {}
    """Requests by the floor that they ask for, as text; refused ones too."""
    rows: Count = 0
    """Of all that arrived."""
    ended: Count = 0
    """Requests that have their terminal record."""
    missed: Count = 0
    """Of these, not completed in time, as far as the dispatcher can tell."""
    waiting: Count = 0
    """Now: accepted, and no worker has it."""
    timeout_ms: float = 0.0
    """Time from arrival to deadline that 95 % of the latest requests had at least; 0: none seen."""
    stages: dict[str, StageCounts] = {}
    """Of a graph, by the stage's path."""


class DispatcherReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="dispatcher"):
    """Sent each second: who shares the lanes' credits, and what waits."""

    dispatcher: str
    incarnation: int
    at_ms: int
    shards: tuple[int, ...] = ()
    epoch: int = 0
    waiting: int = 0
    leased: int = 0
    arrived: dict[str, dict[str, int]] = {}
    """Requests since start by task, by lowest variant that meets their floor (`-` where none does)."""
    outcomes: dict[str, int] = {}
    """Terminal records seen since start, by outcome."""
    running: dict[str, int] = {}
    """Requests on graphs, by `endpoint@revision`."""
    fan_out: dict[str, tuple[float, float]] = {}
    """Rows of each for_each, as (mean, upper quantile), by `endpoint/path`."""
    endpoints: dict[str, EndpointCounts] = {}
    """What was asked of each endpoint, and how it went: demand is the difference of two reports of one incarnation."""
    version: int = TELEMETRY_VERSION


class Departed(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="departed"):
    """A supervisor saw this process end: whatever was leased to this incarnation moves on at once."""

    role: str
    name: str
    incarnation: int
    """0: whichever incarnation was seen up to `at_ms`."""
    at_ms: int
    version: int = TELEMETRY_VERSION


class Returned(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="returned"):
    """A worker hands requests back unstarted: they are sent elsewhere, or to a faster variant."""

    worker: str
    incarnation: int
    ids: tuple[str, ...]
    reason: str
    cause: str = "unhosted"
    """unhosted (it is not offered here again until the next report), draining, full, or late: this variant cannot make the deadline here."""
    at_ms: int
    version: int = TELEMETRY_VERSION


class ScalerReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="scaler"):
    """Sent each second by whoever leads: it keeps the leader's own consumer busy (and proves that it reads), and names the leader."""

    scaler: str
    incarnation: int
    at_ms: int
    leads_since_ms: int
    epoch: int = 0
    optimizer: str = ""
    version: int = TELEMETRY_VERSION


Telemetry = WorkerReport | DispatcherReport | Departed | Returned

_encoder = msgspec.json.Encoder()
_telemetry: msgspec.json.Decoder[Telemetry] = msgspec.json.Decoder(Telemetry)
_decode = strict(_telemetry.decode)
_reported: msgspec.json.Decoder[Telemetry | ScalerReport] = msgspec.json.Decoder(Telemetry | ScalerReport)
_decode_reported = strict(_reported.decode)


def encode_telemetry(record: Telemetry | ScalerReport) -> bytes:
    """The value of a record in {p}.telemetry."""
    return _encoder.encode(record)


def decode_telemetry(value: bytes) -> Telemetry:
    """Raises msgspec.DecodeError (or ValidationError) for what is not telemetry, or a kind that this version does not know."""
    return _decode(value)


def decode_reported(value: bytes) -> Telemetry | ScalerReport:
    """All that stands in {p}.telemetry. Raises as decode_telemetry does."""
    return _decode_reported(value)

"""What a worker is told at its start."""

from __future__ import annotations

import msgspec

from schemas.limits import Limits


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one worker process."""

    name: str
    accelerator: str
    """The class whose lanes it reads."""
    threads: int = 1
    """Processor threads that it offers; the plan's binding says how many it uses."""
    hop_ms: float = 8.0
    """Room that a batch leaves before the deadline for decoding, and for the way to {p}.responses."""
    hold_ms: float = 100.0
    """Computing time that it is willing to hold in its queue (or two efficient batches, where that is more)."""
    hold_rows_max: int = 256
    telemetry_interval_ms: int = 1_000
    commit_interval_ms: int = 500
    grace_ms: int = 2_000
    """At shut-down: time for what is queued; the rest is handed back."""
    hang_factor: float = 10.0
    hang_ms_min: float = 5_000.0
    """A batch that takes longer than this and than `hang_factor` times its p95 hangs: the process ends."""
    load_ms_max: float = 120_000.0
    """The same for loading, warming and profiling one variant."""
    look_ms: float = 2_000.0
    """A device that has had nothing to do for so long is looked at: one that died meanwhile must not be found out by the next batch."""
    profile_ms: float = 250.0
    """Measuring time where no profile is stored; while other variants serve, a third of it."""
    delivery_ms_max: float = 60_000.0
    """Answers that the log does not take for so long end the process: whoever sent the orders sends them elsewhere."""
    undelivered_max: int = 4_096
    """Answers waiting for the log; above it no batch starts."""
    limits: Limits = Limits()

"""The dispatcher's constants, in one place, with why each has its value."""

from __future__ import annotations

import msgspec


class DispatcherSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All times in milliseconds."""

    hop_ms: float = 8.0
    """One way through the log, 99th percentile on an unloaded machine: dispatcher to worker, or worker to the responses."""
    window_ms: float = 80.0
    """Work kept on a lane: enough to bridge the way of an answer back and an order out again, little enough to bind late."""
    shadow_room_ms: float = 4.0
    """A shadow joins a lane with no more work than this: an empty one alone is rarely seen, for answers are always on their way, and a comparison
    of a canary's arms must not wait for one."""
    overhead_ms: float = 0.15
    """What a worker spends on a request beside the model: decoding, validation, encoding."""
    slack: float = 0.9
    """Part of the time until a deadline that admission plans with; the rest is for what profiles do not know."""
    reserve: float = 0.15
    """Part of the time until a deadline that is kept for flows that have had less than their share."""
    utilisation: float = 0.8
    """Part of the capacity that better answers may use up; requests at their floors may use all of it."""
    backlog_part: float = 0.25
    """What waits should be done within this part of its mean time left, before better answers get any: a standing queue makes nobody happy."""
    upgrade_margin: float = 1.5
    """A variant dearer than the cheapest is chosen only where this multiple of its 95th percentile fits before the deadline."""
    lease_ms: float = 2_000.0
    """Shortest lease; longer where the work is expected to take longer."""
    lease_factor: float = 5.0
    expiry_grace_ms: float = 6.0
    """A request that a worker has is answered `expired` this much after its deadline: an answer sent in time may be on its way."""
    worker_lost_ms: float = 3_500.0
    """Without a report for this long a worker is taken for dead (its supervisor usually says so much earlier)."""
    worker_return_ms: float = 1_500.0
    """With no worker for a request, it waits for one only where its deadline is further away than a restart takes."""
    tune_interval_ms: float = 20.0
    rate_window_ms: float = 300.0
    """Time constant of the arrival rates."""
    horizon_ms_min: float = 60.0
    horizon_ms_max: float = 5_000.0

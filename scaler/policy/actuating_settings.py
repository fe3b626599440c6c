"""The actuating policy's constants in one place, with why each has its value."""

from __future__ import annotations

import msgspec


class ActuatingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All times in milliseconds."""

    look_ms: float = 1_000.0
    """Between two decisions: demand is counted once a second."""
    headroom: float = 1.25
    """Workers are counted for this multiple of the forecast: one that the forecast fills answers late."""
    calm_decisions: int = 10
    """So many decisions running must need no more than the ones before, until threads are exchanged for workers; or fewer workers, until some end."""
    up_cool_down_ms: float = 3_000.0
    """Between two orders for more workers of a class: those under way are not in the measured demand yet."""
    down_cool_down_ms: float = 30_000.0
    """From any change of a class until fewer are wanted."""
    start_cost_factor: float = 10.0
    """... and at least so many times what a worker of the class takes to start and load: it must be worth that."""
    idle_ms: float = 60_000.0
    """Without a single request for so long, a class may go to zero."""
    leave_ms_max: float = 60_000.0
    """A worker that is to leave, and for so long no plan came without it, stays."""
    drain_ms: float = 1_500.0
    """From the plan that unbinds a worker until it may end: dispatchers that have not seen the plan yet still send."""
    drain_ms_max: float = 10_000.0
    """A worker that still hosts something by then ends all the same: what it holds it hands back."""
    end_ms_max: float = 20_000.0
    """From the order that ends a worker until it is taken for a new one, if it is still there."""
    offer_ms_max: float = 15_000.0
    """An offer that is not repeated for so long is none."""
